// A thread owns a range of views and scratch memory for two images. Operations
// alternate between the two, and the last result is copied out. Tonal
// operations work in place, mostly through a table of 256 values per channel.
#include "augment.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "../common/augment_blur.h"
#include "../common/augment_tones.h"

namespace s3h::cpu {
namespace {

using augment::Shape;
using Table = std::array<uint8_t, 256>;
using Histogram = std::array<int64_t, 256>;

int64_t pixels(const Shape& s) { return s.height * s.width; }

template <typename Function>
Table table_of(const Function& function) {
  Table table;
  for (int64_t i = 0; i < 256; ++i) table[static_cast<size_t>(i)] = function(i);
  return table;
}

void apply(const Table& table, const Shape& s, int64_t channel, uint8_t* data) {
  for (int64_t i = channel; i < pixels(s) * s.channels; i += s.channels)
    data[i] = table[data[i]];
}

void apply_to_all(const Table& table, const Shape& s, uint8_t* data) {
  for (int64_t i = 0; i < pixels(s) * s.channels; ++i) data[i] = table[data[i]];
}

Histogram histogram_of(const uint8_t* data, const Shape& s, int64_t channel) {
  Histogram counts{};
  for (int64_t i = channel; i < pixels(s) * s.channels; i += s.channels)
    ++counts[data[i]];
  return counts;
}

void auto_contrast(const Shape& s, uint8_t* data) {
  for (int64_t c = 0; c < s.channels; ++c) {
    uint8_t low = 255, high = 0;
    for (int64_t i = c; i < pixels(s) * s.channels; i += s.channels) {
      low = std::min(low, data[i]);
      high = std::max(high, data[i]);
    }
    if (high <= low) continue;
    const tones::Stretch stretch = tones::stretch_of(low, high);
    apply(table_of([&](int64_t i) { return tones::stretched(i, stretch); }), s,
          c, data);
  }
}

void equalize(const Shape& s, uint8_t* data) {
  for (int64_t c = 0; c < s.channels; ++c) {
    const Histogram counts = histogram_of(data, s, c);
    int64_t last = 255;
    while (counts[static_cast<size_t>(last)] == 0) --last;
    const int64_t step = (pixels(s) - counts[static_cast<size_t>(last)]) / 255;
    if (step == 0) continue;
    int64_t before = 0;
    apply(table_of([&](int64_t i) {
            const uint8_t value = tones::equalized(before, step);
            before += counts[static_cast<size_t>(i)];
            return value;
          }),
          s, c, data);
  }
}

void blend_with(uint8_t zero, float factor, const Shape& s, uint8_t* data) {
  apply_to_all(table_of([&](int64_t i) {
                 return tones::blended(zero, static_cast<uint8_t>(i), factor);
               }),
               s, data);
}

void colour(float factor, const Shape& s, uint8_t* data) {
  for (int64_t i = 0; i < pixels(s); ++i) {
    uint8_t* pixel = data + i * s.channels;
    const uint8_t grey = tones::luma(pixel, s.channels);
    for (int64_t c = 0; c < s.channels; ++c)
      pixel[c] = tones::blended(grey, pixel[c], factor);
  }
}

void contrast(float factor, const Shape& s, uint8_t* data) {
  int64_t sum = 0;
  for (int64_t i = 0; i < pixels(s); ++i)
    sum += tones::luma(data + i * s.channels, s.channels);
  blend_with(tones::rounded_mean(sum, pixels(s)), factor, s, data);
}

void sharpness(const uint8_t* from, float factor, const Shape& s, uint8_t* to) {
  const int64_t row = s.width * s.channels, step = s.channels;
  for (int64_t y = 0; y < s.height; ++y)
    for (int64_t i = 0; i < row; ++i) {
      const uint8_t* at = from + y * row + i;
      const bool inside =
          y > 0 && y + 1 < s.height && i >= step && i + step < row;
      const uint8_t smooth = inside ? tones::smoothed(at, row, step) : at[0];
      to[y * row + i] = tones::blended(smooth, at[0], factor);
    }
}

// Box means of the bytes at from[0], from[stride], ...
void box_line(const uint8_t* from, int64_t length, int64_t stride,
              const blur::Box& box, uint8_t* to) {
  const auto at = [=](int64_t i) -> uint32_t {
    return from[blur::inside(i, length) * stride];
  };
  uint32_t sum = 0;
  for (int64_t i = -box.radius; i <= box.radius; ++i) sum += at(i);
  for (int64_t i = 0; i < length; ++i) {
    const uint32_t next = at(i + box.radius + 1);
    to[i * stride] = blur::mean(sum, at(i - box.radius - 1) + next, box);
    sum += next - at(i - box.radius);
  }
}

// Leaves the result in `data`.
void gaussian_blur(double sigma, const Shape& s, uint8_t* data,
                   uint8_t* other) {
  if (sigma == 0) return;
  const blur::Box box = blur::box_of(sigma);
  const int64_t row = s.width * s.channels;
  for (int pass = 0; pass < 2 * blur::kPasses; ++pass) {
    const uint8_t* from = pass % 2 == 0 ? data : other;
    uint8_t* to = pass % 2 == 0 ? other : data;
    if (pass < blur::kPasses) {
      for (int64_t y = 0; y < s.height; ++y)
        for (int64_t c = 0; c < s.channels; ++c)
          box_line(from + y * row + c, s.width, s.channels, box,
                   to + y * row + c);
    } else {
      for (int64_t i = 0; i < row; ++i)
        box_line(from + i, s.height, row, box, to + i);
    }
  }
}

// Returns true if the result is in `to`, false if it is in `from`.
bool run(Operation operation, double magnitude, const Shape& s, uint8_t fill,
         uint8_t* from, uint8_t* to) {
  const float factor = static_cast<float>(magnitude);
  switch (operation) {
    case Operation::kShearX:
    case Operation::kShearY:
    case Operation::kShearXCubic:
    case Operation::kShearYCubic:
      augment::shear(from, s,
                     operation == Operation::kShearY ||
                         operation == Operation::kShearYCubic,
                     operation == Operation::kShearXCubic ||
                         operation == Operation::kShearYCubic,
                     magnitude, fill, to);
      return true;
    case Operation::kTranslateX:
    case Operation::kTranslateY:
      augment::translate(from, s, operation == Operation::kTranslateY,
                         magnitude, fill, to);
      return true;
    case Operation::kRotate:
      augment::rotate(from, s, magnitude, fill, to);
      return true;
    case Operation::kAutoContrast:
      auto_contrast(s, from);
      return false;
    case Operation::kInvert:
      apply_to_all(table_of([](int64_t i) { return tones::clipped(255 - i); }),
                   s, from);
      return false;
    case Operation::kEqualize:
      equalize(s, from);
      return false;
    case Operation::kPosterize: {
      const auto bits = static_cast<int64_t>(magnitude);
      apply_to_all(
          table_of([&](int64_t i) { return tones::posterized(i, bits); }), s,
          from);
      return false;
    }
    case Operation::kSolarize:
      apply_to_all(
          table_of([&](int64_t i) { return tones::solarized(i, magnitude); }),
          s, from);
      return false;
    case Operation::kColour:
      colour(factor, s, from);
      return false;
    case Operation::kContrast:
      contrast(factor, s, from);
      return false;
    case Operation::kBrightness:
      blend_with(0, factor, s, from);
      return false;
    case Operation::kSharpness:
      sharpness(from, factor, s, to);
      return true;
    case Operation::kSolarizeAdd:
      apply_to_all(table_of([&](int64_t i) {
                     return tones::solarize_added(i, magnitude);
                   }),
                   s, from);
      return false;
    case Operation::kBlur:
      gaussian_blur(magnitude, s, from, to);
      return false;
    case Operation::kNone:
    case Operation::kCount:
      return false;
  }
  return false;
}

// Pixel (y, x) of the crop is pixel (top + y, left + x) of the image.
void crop_and_flip(const uint8_t* from, const Shape& s, int64_t top,
                   int64_t left, bool flip, uint8_t* to) {
  const int64_t row_bytes = s.width * s.channels;
  if (top != 0 || left != 0)
    std::memset(to, 0, static_cast<size_t>(s.height * row_bytes));
  const int64_t first = std::max<int64_t>(0, -left);
  const int64_t last = std::min(s.width, s.width - left);
  if (first >= last) return;
  for (int64_t y = std::max<int64_t>(0, -top);
       y < std::min(s.height, s.height - top); ++y) {
    const uint8_t* source = from + (top + y) * row_bytes + left * s.channels;
    uint8_t* row = to + y * row_bytes;
    if (!flip) {
      std::memcpy(row + first * s.channels, source + first * s.channels,
                  static_cast<size_t>((last - first) * s.channels));
      continue;
    }
    for (int64_t x = first; x < last; ++x)
      for (int64_t c = 0; c < s.channels; ++c)
        row[(s.width - 1 - x) * s.channels + c] = source[x * s.channels + c];
  }
}

void cut_hole(const int64_t* hole, const Shape& s, uint8_t* data) {
  const int64_t top = std::max<int64_t>(hole[0], 0);
  const int64_t left = std::max<int64_t>(hole[1], 0);
  const int64_t bottom = std::min(hole[0] + hole[2], s.height);
  const int64_t right = std::min(hole[1] + hole[3], s.width);
  if (right <= left) return;
  for (int64_t y = top; y < bottom; ++y)
    std::memset(data + (y * s.width + left) * s.channels, 0,
                static_cast<size_t>((right - left) * s.channels));
}

}  // namespace

void augment_images(const AugmentProblem& p, const Threads& threads,
                    uint8_t* out) {
  const Shape shape{p.height, p.width, p.channels};
  const int64_t bytes = p.height * p.width * p.channels;
  if (bytes == 0 || p.views == 0) return;
  threads.parallel_for(0, p.views, [&](int64_t begin, int64_t end) {
    std::vector<uint8_t> memory(static_cast<size_t>(2 * bytes));
    for (int64_t view = begin; view < end; ++view) {
      uint8_t* now = memory.data();
      uint8_t* other = now + bytes;
      crop_and_flip(p.images + p.source[view] * bytes, shape,
                    p.corners == nullptr ? 0 : p.corners[2 * view],
                    p.corners == nullptr ? 0 : p.corners[2 * view + 1],
                    p.flips != nullptr && p.flips[view], now);
      for (int64_t k = 0; k < p.steps; ++k) {
        const int64_t at = view * p.steps + k;
        if (run(static_cast<Operation>(p.operations[at]), p.magnitudes[at],
                shape, p.fill, now, other))
          std::swap(now, other);
      }
      if (p.holes != nullptr) cut_hole(p.holes + 4 * view, shape, now);
      std::memcpy(out + view * bytes, now, static_cast<size_t>(bytes));
    }
  });
}

}  // namespace s3h::cpu
