// Renders patches of every kind with two threads and compares them with a
// direct double-precision sum over the whole box. Meant for the sanitizers
// (tools/sanitize.sh): images are exact-size heap blocks, so that a read past
// the end is seen. Prints what it ran; exits with 1 at the first mismatch.
#include "../cpu/views.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "../cpu/dispatch.h"
#include "threads.h"

namespace {

using s3h::ByteImage;
using s3h::ViewsProblem;
using s3h::ViewType;

constexpr int64_t kImages = 12, kPatches = 60, kViews = 25;

struct Data {
  std::vector<std::unique_ptr<uint8_t[]>> pixels;
  std::vector<ByteImage> images;
  std::vector<int64_t> image, box, view, rect, erase;
  std::unique_ptr<bool[]> flip{new bool[kPatches]};
  std::vector<float> colour, affine;
};

Data draw(int64_t channels, int64_t height, int64_t width) {
  std::mt19937 random(3);
  const auto below = [&](int64_t end) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(end));
  };
  Data d;
  for (int64_t i = 0; i < kImages; ++i) {
    const int64_t h = i == 0 ? 1 : 1 + below(70),
                  w = i == 1 ? 1 : 1 + below(70);
    d.pixels.emplace_back(new uint8_t[static_cast<size_t>(h * w * channels)]);
    for (int64_t k = 0; k < h * w * channels; ++k)
      d.pixels.back()[static_cast<size_t>(k)] = static_cast<uint8_t>(random());
    d.images.push_back({d.pixels.back().get(), h, w});
  }
  for (int64_t i = 0; i < kPatches; ++i) {
    d.image.push_back(below(kImages));
    d.view.push_back(below(kViews));
    const ByteImage& image = d.images[static_cast<size_t>(d.image.back())];
    const int64_t bottom = 1 + below(height), right = 1 + below(width);
    const int64_t top = below(bottom), left = below(right);
    d.rect.insert(d.rect.end(), {top, left, bottom - top, right - left});
    switch (i % 4) {
      case 0:  // the whole image
        d.box.insert(d.box.end(), {0, 0, image.height, image.width});
        break;
      case 1:  // the rectangle's size, shifted
        d.box.insert(d.box.end(),
                     {below(9) - 4, below(9) - 4, bottom - top, right - left});
        break;
      default:
        d.box.insert(d.box.end(), {below(99) - 40, below(99) - 40,
                                   1 + below(150), 1 + below(150)});
    }
    d.flip[static_cast<size_t>(i)] = below(2) == 1;
    for (int k = 0; k < channels * (channels + 1); ++k)
      d.colour.push_back(static_cast<float>(below(200)) / 150 - 0.3f);
    for (int k = 0; k < 6; ++k)
      d.affine.push_back(static_cast<float>(below(400)) / 100 - 1);
  }
  for (int64_t v = 0; v < kViews; ++v)
    d.erase.insert(d.erase.end(),
                   {below(2 * height) - height, below(2 * width) - width,
                    below(height + 2), INT64_MAX / (1 + below(3))});
  return d;
}

double pixel(const ViewsProblem& p, int64_t patch, int64_t row, int64_t column,
             int64_t channel) {
  const ByteImage& image = p.list[p.image[patch]];
  const int64_t* box = p.box + 4 * patch;
  if (p.flip != nullptr && p.flip[patch]) column = box[3] - 1 - column;
  row += box[0];
  column += box[1];
  if (row < 0 || row >= image.height || column < 0 || column >= image.width)
    return 0;
  return image.data[(row * image.width + column) * p.channels + channel];
}

std::vector<double> window(int64_t i, int64_t outputs, int64_t size) {
  const double scale = static_cast<double>(size) / static_cast<double>(outputs);
  const double reach = std::max(scale, 1.0);
  std::vector<double> weights(static_cast<size_t>(size));
  double sum = 0;
  for (int64_t j = 0; j < size; ++j) {
    const double distance = std::abs(static_cast<double>(j) + 0.5 -
                                     (static_cast<double>(i) + 0.5) * scale);
    sum += weights[static_cast<size_t>(j)] =
        std::max(0.0, 1 - distance / reach);
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

// Grey levels of one pixel of a patch; false if rounding in an affine map could
// move it across a pixel's edge.
bool expect(const ViewsProblem& p, int64_t patch, int64_t y, int64_t x,
            double* levels) {
  const int64_t* box = p.box + 4 * patch;
  const int64_t* rect = p.rect + 4 * patch;
  if (p.affine == nullptr) {
    const auto down = window(y, rect[2], box[2]);
    const auto across = window(x, rect[3], box[3]);
    for (int64_t c = 0; c < p.channels; ++c) {
      levels[c] = 0;
      for (int64_t i = 0; i < box[2]; ++i)
        for (int64_t j = 0; j < box[3]; ++j)
          if (down[static_cast<size_t>(i)] * across[static_cast<size_t>(j)] > 0)
            levels[c] += down[static_cast<size_t>(i)] *
                         across[static_cast<size_t>(j)] *
                         pixel(p, patch, i, j, c);
    }
    return true;
  }
  const float* a = p.affine + 6 * patch;
  const double middle_x = static_cast<double>(x) + 0.5;
  const double middle_y = static_cast<double>(y) + 0.5;
  const double u = a[0] * middle_x + a[1] * middle_y + a[2];
  const double v = a[3] * middle_x + a[4] * middle_y + a[5];
  if (std::min(std::abs(u - std::round(u)), std::abs(v - std::round(v))) < 1e-6)
    return false;
  const auto rows = static_cast<double>(box[2]);
  const auto columns = static_cast<double>(box[3]);
  for (int64_t c = 0; c < p.channels; ++c) {
    levels[c] = 255 * p.fill;
    if (u < 0 || v < 0 || u >= columns || v >= rows) continue;
    if (p.nearest) {
      levels[c] =
          pixel(p, patch, static_cast<int64_t>(v), static_cast<int64_t>(u), c);
      continue;
    }
    levels[c] = 0;
    for (int i = 0; i < 2; ++i)
      for (int j = 0; j < 2; ++j) {
        const double row = std::floor(v - 0.5) + i;
        const double column = std::floor(u - 0.5) + j;
        levels[c] +=
            (1 - std::abs(v - 0.5 - row)) * (1 - std::abs(u - 0.5 - column)) *
            pixel(
                p, patch, static_cast<int64_t>(std::clamp(row, 0.0, rows - 1)),
                static_cast<int64_t>(std::clamp(column, 0.0, columns - 1)), c);
      }
  }
  return true;
}

double read(const ViewsProblem& p, const char* out, int64_t index) {
  if (p.type == ViewType::kFloat)
    return reinterpret_cast<const float*>(out)[index];
  const uint32_t bits = reinterpret_cast<const uint16_t*>(out)[index];
  const double sign = bits >> 15 ? -1 : 1;
  const int mantissa_bits = p.type == ViewType::kHalf ? 10 : 7;
  const int bias = p.type == ViewType::kHalf ? 15 : 127;
  const auto exponent = static_cast<int>((bits & 0x7fff) >> mantissa_bits);
  const auto mantissa = static_cast<double>(bits & ((1u << mantissa_bits) - 1));
  const double one = 1 << mantissa_bits;
  return exponent == 0 ? sign * std::ldexp(mantissa / one, 1 - bias)
                       : sign * std::ldexp(1 + mantissa / one, exponent - bias);
}

bool erased(const ViewsProblem& p, int64_t view, int64_t y, int64_t x) {
  if (p.erase == nullptr) return false;
  const int64_t* e = p.erase + 4 * view;
  return y >= e[0] && y - e[0] < e[2] && x >= e[1] && x - e[1] < e[3];
}

void fail(const char* what, const ViewsProblem& p, double got, double right) {
  std::printf("%s: %g, not %g (channels %d, %d x %d, type %d, affine %d)\n",
              what, got, right, static_cast<int>(p.channels),
              static_cast<int>(p.height), static_cast<int>(p.width),
              static_cast<int>(p.type), p.affine != nullptr);
  std::exit(1);
}

void check(const ViewsProblem& p, const char* out) {
  const double half = p.type == ViewType::kFloat ? 0 : 0.02;
  for (int64_t v = 0; v < p.views; ++v)
    for (int64_t y = 0; y < p.height; ++y)
      for (int64_t x = 0; x < p.width; ++x) {
        double levels[3] = {}, mixed[3];
        bool known = true;
        int64_t last = -1;
        for (int64_t i = 0; i < p.patches; ++i) {
          const int64_t* r = p.rect + 4 * i;
          if (p.view[i] == v && y >= r[0] && y < r[0] + r[2] && x >= r[1] &&
              x < r[1] + r[3])
            last = i;
        }
        if (last >= 0)
          known = expect(p, last, y - p.rect[4 * last],
                         x - p.rect[4 * last + 1], levels);
        for (int64_t c = 0; known && c < p.channels; ++c) {
          mixed[c] = levels[c] / 255;
          if (last >= 0 && p.colour != nullptr) {
            const float* m =
                p.colour + (last * p.channels + c) * (p.channels + 1);
            double sum = m[p.channels];
            for (int64_t k = 0; k < p.channels; ++k)
              sum += m[k] * levels[k] / 255;
            mixed[c] = std::clamp(sum, 0.0, 1.0);
          }
          double right = (mixed[c] - p.mean[c]) / p.std[c];
          if (erased(p, v, y, x)) right = 0;
          const double got =
              read(p, out, ((v * p.height + y) * p.width + x) * p.channels + c);
          if (!(std::abs(got - right) <= (0.2 / 255 + half) / p.std[c]))
            fail("pixel", p, got, right);
        }
      }
}

}  // namespace

int main() {
  int cases = 0;
  const int64_t sizes[][2] = {{1, 1}, {7, 5}, {32, 32}, {20, 37}};
  for (int64_t channels : {1, 3})
    for (const auto& size : sizes) {
      const Data d = draw(channels, size[0], size[1]);
      for (int flags = 0; flags < 16; ++flags)
        for (ViewType type :
             {ViewType::kFloat, ViewType::kBfloat16, ViewType::kHalf}) {
          ViewsProblem p{};
          p.list = d.images.data();
          p.images = static_cast<int64_t>(d.images.size());
          p.channels = channels;
          p.patches = kPatches;
          p.image = d.image.data();
          p.box = d.box.data();
          p.flip = (flags & 1) != 0 ? d.flip.get() : nullptr;
          p.colour = (flags & 2) != 0 ? d.colour.data() : nullptr;
          p.affine = (flags & 4) != 0 ? d.affine.data() : nullptr;
          p.nearest = (flags & 8) != 0;
          if (p.nearest && p.affine == nullptr) continue;
          p.view = d.view.data();
          p.rect = d.rect.data();
          p.erase = (flags & 1) != 0 ? d.erase.data() : nullptr;
          p.views = kViews;
          p.height = size[0];
          p.width = size[1];
          for (int c = 0; c < 3; ++c) {
            p.mean[c] = 0.3 + 0.1 * c;
            p.std[c] = 0.2 + 0.1 * c;
          }
          p.fill = 0.5;
          p.type = type;
          const auto bytes =
              static_cast<size_t>(kViews * size[0] * size[1] * channels *
                                  (type == ViewType::kFloat ? 4 : 2));
          std::unique_ptr<char[]> out(new char[bytes]), again(new char[bytes]);
          s3h::cpu::render_views(p, kThreads, out.get());
          check(p, out.get());
          s3h::cpu::render_views(p, kOneThread, again.get());
          if (!std::equal(out.get(), out.get() + bytes, again.get()))
            fail("one thread's bits", p, 0, 0);
          ++cases;
        }
    }
  std::printf("%d cases at level %s\n", cases,
              s3h::cpu::level_name(s3h::cpu::dispatch_level()));
}
