#include "views_patch.h"

#include <algorithm>
#include <cstring>

#include "../common/resample.h"
#include "dispatch.h"

namespace s3h::cpu {
namespace {

const RowKernels& row_kernels() {
#if defined(S3H_X86_LEVELS)
  if (dispatch_level() >= Level::kAvx512) return avx512::kRows;
  if (dispatch_level() >= Level::kAvx2) return avx2::kRows;
#endif
  return baseline::kRows;
}

ByteImage image_at(const ViewsProblem& p, int64_t number) {
  if (p.list != nullptr) return p.list[number];
  const int64_t bytes = p.first.height * p.first.width * p.channels;
  return {p.first.data + number * bytes, p.first.height, p.first.width};
}

int64_t round_up(int64_t x, int64_t step) {
  return (x + step - 1) / step * step;
}

template <typename T>
void grow(std::vector<T>& values, int64_t size) {
  if (static_cast<int64_t>(values.size()) < size)
    values.resize(static_cast<size_t>(size));
}

// Rounds weights to integers with the same sum; the largest weight absorbs the
// rounding error.
void make_whole(float* weights, int64_t count) {
  float left = kWeightUnit;
  for (int64_t t = 0; t < count; ++t) {
    weights[t] = static_cast<float>(static_cast<int32_t>(weights[t] + 0.5f));
    left -= weights[t];
  }
  *std::max_element(weights, weights + count) += left;
}

// Windows of `outputs` pixels on `size` pixels, each weight times `unit`.
void set_taps(AxisTaps& axis, int64_t outputs, int64_t size, bool mirrored,
              double unit) {
  grow(axis.first, round_up(outputs, 4));
  grow(axis.count, outputs);
  int64_t most = 0;
  const auto window = [&](int64_t i) {
    return resample_window(mirrored ? outputs - 1 - i : i, outputs, size);
  };
  for (int64_t i = 0; i < outputs; ++i) {
    const ResampleWindow w = window(i);
    axis.first[static_cast<size_t>(i)] = static_cast<int32_t>(w.first);
    axis.count[static_cast<size_t>(i)] = static_cast<int32_t>(w.count);
    most = std::max(most, w.count);
  }
  for (int64_t i = outputs; i < round_up(outputs, 4); ++i)
    axis.first[static_cast<size_t>(i)] = 0;
  axis.taps = most <= 2 ? 2 : round_up(most, 4);
  grow(axis.weights, outputs * axis.taps);
  for (int64_t i = 0; i < outputs; ++i) {
    const ResampleWindow w = window(i);
    float* weights = axis.weights.data() + i * axis.taps;
    double sum = 0;
    for (int64_t t = 0; t < w.count; ++t)
      sum += resample_weight(w, w.first + t);
    const double factor = unit / sum;
    for (int64_t t = 0; t < w.count; ++t)
      weights[t] = static_cast<float>(resample_weight(w, w.first + t) * factor);
    std::fill(weights + w.count, weights + axis.taps, 0.0f);
  }
}

}  // namespace

struct PatchRenderer::Job {
  int64_t patch;
  ByteImage image;
  int64_t top, left, rows, columns;  // the box
  bool flip;
  int64_t height, width;  // size of the rectangle
  char* out;              // its first pixel
};

PatchRenderer::PatchRenderer(const ViewsProblem& problem)
    : problem_(problem),
      kernels_(row_kernels()),
      plane_(round_up(problem.width, kPlaneStep)),
      pixel_bytes_(problem.channels *
                   (problem.type == ViewType::kFloat ? 4 : 2)) {
  black_.resize(static_cast<size_t>(problem.channels * plane_));
  grow(planes_, problem.channels * plane_);
  finish_.plane = plane_;
}

void PatchRenderer::render(int64_t patch, char* view) {
  const ViewsProblem& p = problem_;
  const int64_t* box = p.box + 4 * patch;
  const int64_t whole[4] = {0, 0, p.height, p.width};
  const int64_t* rect = p.rect != nullptr ? p.rect + 4 * patch : whole;
  const Job job{patch,
                image_at(p, p.image[patch]),
                box[0],
                box[1],
                box[2],
                box[3],
                p.flip != nullptr && p.flip[patch],
                rect[2],
                rect[3],
                view + (rect[0] * p.width + rect[1]) * pixel_bytes_};
  const int64_t elements = p.channels * (p.channels + 1);
  set_finish(job.width,
             p.colour != nullptr ? p.colour + patch * elements : nullptr);
  if (p.affine != nullptr)
    map(job);
  else if (job.rows == job.height && job.columns == job.width)
    copy(job);
  else
    resize(job);
}

void PatchRenderer::set_finish(int64_t width, const float* colour) {
  const int64_t channels = problem_.channels;
  finish_.width = width;
  finish_.coloured = colour != nullptr;
  const double range = finish_.coloured ? 1 : 255;
  for (int64_t c = 0; c < channels; ++c) {
    finish_.scale[c] = static_cast<float>(1 / (range * problem_.std[c]));
    finish_.shift[c] = static_cast<float>(-problem_.mean[c] / problem_.std[c]);
    if (colour == nullptr) continue;
    const float* matrix = colour + c * (channels + 1);
    for (int64_t k = 0; k < channels; ++k)
      finish_.colour[c][k] = matrix[k] / 255;
    finish_.colour[c][channels] = matrix[channels];
  }
}

void PatchRenderer::finish(const Job& job, int64_t y, const float* const* rows,
                           const float* weights, int64_t taps) {
  kernels_.finish(finish_, rows, weights, taps, problem_.channels,
                  problem_.type, job.out + y * problem_.width * pixel_bytes_);
}

void PatchRenderer::fill_black(char* view) {
  Job job{};
  job.out = view;
  set_finish(problem_.width, nullptr);
  const float* row = black_.data();
  const float one = 1;
  for (int64_t y = 0; y < problem_.height; ++y) finish(job, y, &row, &one, 1);
}

// The box's pixels of an image row, `reach` bytes of which can be read: in the
// image itself if possible, otherwise in a padded copy.
const uint8_t* PatchRenderer::padded_row(const Job& job, int64_t row,
                                         int64_t reach) {
  const int64_t channels = problem_.channels;
  const int64_t width = job.image.width;
  const uint8_t* start = job.image.data + row * width * channels;
  const int64_t rest = ((job.image.height - row) * width - job.left) * channels;
  if (job.left >= 0 && job.left + job.columns <= width && reach <= rest)
    return start + job.left * channels;
  const int64_t first = std::max<int64_t>(job.left, 0);
  const int64_t last = std::min(job.left + job.columns, width);
  const int64_t size = std::max(reach, job.columns * channels);
  grow(row_, size);
  std::memset(row_.data(), 0, static_cast<size_t>(size));
  if (first < last)
    std::memcpy(row_.data() + (first - job.left) * channels,
                start + first * channels,
                static_cast<size_t>((last - first) * channels));
  return row_.data();
}

void PatchRenderer::copy(const Job& job) {
  const int64_t reach = job.columns * problem_.channels + kRowSlack;
  const float one = 1;
  for (int64_t y = 0; y < job.height; ++y) {
    const int64_t row = job.top + y;
    const float* planes = black_.data();
    if (row >= 0 && row < job.image.height) {
      kernels_.copy(padded_row(job, row, reach), job.width, job.flip,
                    problem_.channels, plane_, planes_.data());
      planes = planes_.data();
    }
    finish(job, y, &planes, &one, 1);
  }
}

RowTaps PatchRenderer::column_taps(const Job& job) {
  set_taps(columns_, job.width, job.columns, job.flip, kWeightUnit);
  const int64_t taps = columns_.taps;
  const uint32_t* pairs = nullptr;
  if (taps <= kMostWholeTaps) {
    for (int64_t x = 0; x < job.width; ++x)
      make_whole(columns_.weights.data() + x * taps,
                 columns_.count[static_cast<size_t>(x)]);
    if (kernels_.pairs && problem_.channels == 3) {
      expand_pairs(job.width);
      pairs = pairs_.data();
    }
  }
  return {
      job.width, plane_, taps, columns_.first.data(), columns_.weights.data(),
      pairs};
}

void PatchRenderer::expand_pairs(int64_t width) {
  const int64_t taps = columns_.taps;
  const int64_t quads = round_up(width, 4) / 4;
  grow(pairs_, quads * taps * 8);
  uint32_t* to = pairs_.data();
  for (int64_t q = 0; q < quads; ++q)
    for (int64_t t = 0; t < taps; t += 2)
      for (int64_t i : {0, 2, 1, 3}) {
        const int64_t x = 4 * q + i;
        const float* w = columns_.weights.data() + x * taps + t;
        const uint32_t pair = x < width ? static_cast<uint32_t>(w[0]) |
                                              static_cast<uint32_t>(w[1]) << 16
                                        : 0;
        for (int k = 0; k < 4; ++k) *to++ = pair;
      }
}

void PatchRenderer::resize(const Job& job) {
  const int64_t channels = problem_.channels;
  const RowTaps across = column_taps(job);
  set_taps(rows_, job.height, job.rows, false, 1 / kWeightUnit);
  // The bytes covered by the padded window of the last output, or of the first
  // one in a mirrored box.
  const int64_t last = std::max(across.first[0], across.first[job.width - 1]);
  const int64_t reach =
      (last + round_up(across.taps, 4)) * channels + kRowSlack;
  // A ring of as many source rows as a window has.
  const int64_t slots = rows_.taps, slot = channels * plane_;
  grow(planes_, slots * slot);
  grow(window_, slots);
  int64_t next = 0;
  for (int64_t y = 0; y < job.height; ++y) {
    const int64_t first = rows_.first[static_cast<size_t>(y)];
    const int64_t count = rows_.count[static_cast<size_t>(y)];
    for (int64_t t = 0; t < count; ++t) {
      const int64_t row = job.top + first + t;
      float* planes = planes_.data() + (first + t) % slots * slot;
      window_[static_cast<size_t>(t)] = planes;
      if (row < 0 || row >= job.image.height)
        window_[static_cast<size_t>(t)] = black_.data();
      else if (first + t >= next)
        kernels_.resize(across, padded_row(job, row, reach), channels, planes);
    }
    next = first + count;
    finish(job, y, window_.data(), rows_.weights.data() + y * rows_.taps,
           count);
  }
}

template <int Channels, bool Nearest>
void PatchRenderer::map_row(const Job& job, int64_t y) {
  static constexpr uint8_t kBlack[3] = {};
  const float* a = problem_.affine + 6 * job.patch;
  const double middle = static_cast<double>(y) + 0.5;
  const double u0 = a[1] * middle + a[2], v0 = a[4] * middle + a[5];
  const double rows = static_cast<double>(job.rows);
  const double columns = static_cast<double>(job.columns);
  const auto fill = static_cast<float>(255 * problem_.fill);
  const auto pixel = [&](int64_t row, int64_t column) {
    row = std::clamp<int64_t>(row, 0, job.rows - 1) + job.top;
    column = std::clamp<int64_t>(column, 0, job.columns - 1);
    column = (job.flip ? job.columns - 1 - column : column) + job.left;
    const bool known = row >= 0 && row < job.image.height && column >= 0 &&
                       column < job.image.width;
    return known ? job.image.data + (row * job.image.width + column) * Channels
                 : kBlack;
  };
  for (int64_t x = 0; x < job.width; ++x) {
    const double u = a[0] * (static_cast<double>(x) + 0.5) + u0;
    const double v = a[3] * (static_cast<double>(x) + 0.5) + v0;
    float* to = planes_.data() + x;
    // False for NaN too.
    if (!(u >= 0 && u < columns && v >= 0 && v < rows)) {
      for (int c = 0; c < Channels; ++c) to[c * plane_] = fill;
    } else if constexpr (Nearest) {
      const uint8_t* from =
          pixel(static_cast<int64_t>(v), static_cast<int64_t>(u));
      for (int c = 0; c < Channels; ++c) to[c * plane_] = from[c];
    } else {
      const auto row = static_cast<int64_t>(v + 0.5) - 1;
      const auto column = static_cast<int64_t>(u + 0.5) - 1;
      const auto down = static_cast<float>(v - 0.5 - static_cast<double>(row));
      const auto across =
          static_cast<float>(u - 0.5 - static_cast<double>(column));
      const uint8_t *a00 = pixel(row, column), *a01 = pixel(row, column + 1);
      const uint8_t *a10 = pixel(row + 1, column),
                    *a11 = pixel(row + 1, column + 1);
      for (int c = 0; c < Channels; ++c) {
        const float upper =
            a00[c] + across * static_cast<float>(a01[c] - a00[c]);
        const float lower =
            a10[c] + across * static_cast<float>(a11[c] - a10[c]);
        to[c * plane_] = upper + down * (lower - upper);
      }
    }
  }
}

void PatchRenderer::map(const Job& job) {
  const bool grey = problem_.channels == 1, nearest = problem_.nearest;
  const auto row = grey      ? nearest ? &PatchRenderer::map_row<1, true>
                                       : &PatchRenderer::map_row<1, false>
                   : nearest ? &PatchRenderer::map_row<3, true>
                             : &PatchRenderer::map_row<3, false>;
  const float* planes = planes_.data();
  const float one = 1;
  for (int64_t y = 0; y < job.height; ++y) {
    (this->*row)(job, y);
    finish(job, y, &planes, &one, 1);
  }
}

}  // namespace s3h::cpu
