// The operations of augmentation as a block of 256 threads carries them out on
// an image; augment.cu says how they follow each other.
#pragma once

#include "../common/augment_blur.h"
#include "../common/augment_maps.h"
#include "../common/augment_steps.h"
#include "../common/augment_tones.h"
#include "device.cuh"

namespace s3h::cuda::augmentation {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kValues = 256;  // of a byte
constexpr int kGroups = 32;
constexpr int kInGroup = kValues / kGroups;
static_assert(kBlock == kValues, "a thread for each value");

// In shared memory, before the images.
struct alignas(16) Shared {
  maps::Fixed map;
  maps::Translation moved;
  blur::Box box;
  double sums[kWarps];
  int64_t steps[3];
  uint32_t counts[3][kValues];
  uint32_t groups[3][kGroups];  // sums of eight counts
  float extremes[6][kWarps];
  uint8_t tables[3][kValues];
};

// Calls function(pixel, y, x) for the thread's pixels.
template <typename Function>
__device__ inline void each_pixel(int height, int width,
                                  const Function& function) {
  for (int i = thread_x(); i < height * width; i += kBlock)
    function(i, i / width, i % width);
}

// All of these are for all threads of the block, and end with a barrier.

// The table of each channel has this thread's value of it in `entry`.
template <int kChannels>
__device__ inline void through_tables(const uint8_t (&entry)[kChannels],
                                      int pixels, Shared& shared,
                                      uint8_t* data) {
  for (int c = 0; c < kChannels; ++c) shared.tables[c][thread_x()] = entry[c];
  block_barrier();
  for (int i = thread_x(); i < pixels; i += kBlock)
    for (int c = 0; c < kChannels; ++c)
      data[i * kChannels + c] = shared.tables[c][data[i * kChannels + c]];
  block_barrier();
}

// One table for all channels.
template <int kChannels>
__device__ inline void through_table(uint8_t entry, int pixels, Shared& shared,
                                     uint8_t* data) {
  uint8_t entries[kChannels];
  for (int c = 0; c < kChannels; ++c) entries[c] = entry;
  through_tables<kChannels>(entries, pixels, shared, data);
}

template <int kChannels>
__device__ inline void auto_contrast(int pixels, Shared& shared,
                                     uint8_t* data) {
  // The greatest value of each channel, and the greatest of 255 - value.
  float most[2 * kChannels] = {};
  for (int i = thread_x(); i < pixels; i += kBlock)
    for (int c = 0; c < kChannels; ++c) {
      const float value = data[i * kChannels + c];
      most[c] = max_of(most[c], value);
      most[kChannels + c] = max_of(most[kChannels + c], 255.f - value);
    }
  for (int j = 0; j < 2 * kChannels; ++j) {
    for (int mask = 16; mask > 0; mask /= 2)
      most[j] = max_of(most[j], shuffle_xor(most[j], mask));
    if (thread_x() % 32 == 0) shared.extremes[j][thread_x() / 32] = most[j];
  }
  block_barrier();
  uint8_t entry[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    float high = 0.f, below = 0.f;
    for (int w = 0; w < kWarps; ++w) {
      high = max_of(high, shared.extremes[c][w]);
      below = max_of(below, shared.extremes[kChannels + c][w]);
    }
    const int low = 255 - static_cast<int>(below);
    entry[c] = static_cast<uint8_t>(thread_x());
    if (static_cast<int>(high) > low)
      entry[c] = tones::stretched(
          thread_x(), tones::stretch_of(low, static_cast<int64_t>(high)));
  }
  through_tables<kChannels>(entry, pixels, shared, data);
}

template <int kChannels>
__device__ inline void equalize(int pixels, Shared& shared, uint8_t* data) {
  const int value = thread_x();
  for (int c = 0; c < kChannels; ++c) shared.counts[c][value] = 0;
  block_barrier();
  for (int i = thread_x(); i < pixels; i += kBlock)
    for (int c = 0; c < kChannels; ++c)
      atomic_add(&shared.counts[c][data[i * kChannels + c]], 1u);
  block_barrier();
  if (value < kChannels * kGroups) {
    const int c = value / kGroups, group = value % kGroups;
    uint32_t sum = 0;
    for (int i = 0; i < kInGroup; ++i)
      sum += shared.counts[c][group * kInGroup + i];
    shared.groups[c][group] = sum;
  }
  block_barrier();
  uint32_t before[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    uint32_t sum = 0;
    for (int g = 0; g < value / kInGroup; ++g) sum += shared.groups[c][g];
    for (int i = value / kInGroup * kInGroup; i < value; ++i)
      sum += shared.counts[c][i];
    before[c] = sum;
    const uint32_t own = shared.counts[c][value];
    // The greatest value that there is.
    if (own > 0 && sum + own == static_cast<uint32_t>(pixels))
      shared.steps[c] = sum / 255;
  }
  block_barrier();
  uint8_t entry[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    const int64_t step = shared.steps[c];
    entry[c] = step == 0 ? static_cast<uint8_t>(value)
                         : tones::equalized(before[c], step);
  }
  through_tables<kChannels>(entry, pixels, shared, data);
}

template <int kChannels>
__device__ inline void colour(float factor, int pixels, uint8_t* data) {
  for (int i = thread_x(); i < pixels; i += kBlock) {
    uint8_t* pixel = data + i * kChannels;
    const uint8_t grey = tones::luma(pixel, kChannels);
    for (int c = 0; c < kChannels; ++c)
      pixel[c] = tones::blended(grey, pixel[c], factor);
  }
  block_barrier();
}

template <int kChannels>
__device__ inline void contrast(float factor, int pixels, Shared& shared,
                                uint8_t* data) {
  // Whole numbers below 2^53 have no rounding in a double.
  double sum = 0;
  for (int i = thread_x(); i < pixels; i += kBlock)
    sum += tones::luma(data + i * kChannels, kChannels);
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  if (thread_x() % 32 == 0) shared.sums[thread_x() / 32] = sum;
  block_barrier();
  sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared.sums[w];
  const uint8_t mean = tones::rounded_mean(static_cast<int64_t>(sum), pixels);
  through_table<kChannels>(
      tones::blended(mean, static_cast<uint8_t>(thread_x()), factor), pixels,
      shared, data);
}

template <int kChannels>
__device__ inline void sharpness(const uint8_t* from, float factor, int height,
                                 int width, uint8_t* to) {
  const int row = width * kChannels;
  each_pixel(height, width, [&](int i, int y, int x) {
    const bool inside = y > 0 && y + 1 < height && x > 0 && x + 1 < width;
    for (int c = 0; c < kChannels; ++c) {
      const uint8_t* at = from + i * kChannels + c;
      const uint8_t smooth =
          inside ? tones::smoothed(at, row, kChannels) : at[0];
      to[i * kChannels + c] = tones::blended(smooth, at[0], factor);
    }
  });
  block_barrier();
}

// Pixel i becomes pixel (y, x) of `from`, or the fill where there is none.
template <int kChannels>
__device__ inline void copy_pixel(const uint8_t* from, int height, int width,
                                  int64_t y, int64_t x, uint8_t fill, int i,
                                  uint8_t* to) {
  const bool inside = y >= 0 && y < height && x >= 0 && x < width;
  const int at = inside ? static_cast<int>(y) * width + static_cast<int>(x) : 0;
  for (int c = 0; c < kChannels; ++c)
    to[i * kChannels + c] = inside ? from[at * kChannels + c] : fill;
}

// By shared.map, which the first thread has just written.
template <int kChannels>
__device__ inline void nearest(const uint8_t* from, int height, int width,
                               uint8_t fill, const Shared& shared,
                               uint8_t* to) {
  block_barrier();
  const maps::Fixed map = shared.map;
  each_pixel(height, width, [&](int i, int y, int x) {
    copy_pixel<kChannels>(
        from, height, width, (map.y0 + map.yy * y + map.yx * x) >> 16,
        (map.x0 + map.xy * y + map.xx * x) >> 16, fill, i, to);
  });
  block_barrier();
}

template <int kChannels>
__device__ inline void translate(const uint8_t* from, bool vertical,
                                 double magnitude, int height, int width,
                                 uint8_t fill, Shared& shared, uint8_t* to) {
  const int length = vertical ? height : width;
  if (thread_x() == 0) shared.moved = maps::translation(magnitude, length);
  block_barrier();
  // Within 2^21 of 0.
  const int first = static_cast<int>(shared.moved.first);
  const int late = static_cast<int>(shared.moved.late);
  each_pixel(height, width, [&](int i, int y, int x) {
    const int place = vertical ? y : x;
    const int at = first + place + (place >= late ? 1 : 0);
    copy_pixel<kChannels>(from, height, width, vertical ? at : y,
                          vertical ? x : at, fill, i, to);
  });
  block_barrier();
}

template <int kChannels>
__device__ inline void shear_cubic(const uint8_t* from, bool vertical,
                                   double coefficient, int height, int width,
                                   uint8_t fill, uint8_t* to) {
  const int length = vertical ? height : width;
  const int stride = (vertical ? width : 1) * kChannels;
  each_pixel(height, width, [&](int i, int y, int x) {
    const double position =
        maps::shear_position(coefficient, vertical ? y : x, vertical ? x : y);
    if (!(position >= 0 && position < static_cast<double>(length))) {
      for (int c = 0; c < kChannels; ++c) to[i * kChannels + c] = fill;
      return;
    }
    const maps::Taps taps = maps::taps_of(position, length);
    const uint8_t* line = from + (vertical ? x : y * width) * kChannels;
    for (int c = 0; c < kChannels; ++c) {
      double tap[4];
      for (int t = 0; t < 4; ++t)
        tap[t] = line[static_cast<int>(taps.at[t]) * stride + c];
      to[i * kChannels + c] =
          maps::cubic(tap[0], tap[1], tap[2], tap[3], taps.d);
    }
  });
  block_barrier();
}

// By three box means along the rows and three along the columns; the result is
// in `data`.
template <int kChannels>
__device__ inline void gaussian_blur(double sigma, int height, int width,
                                     Shared& shared, uint8_t* data,
                                     uint8_t* other) {
  if (sigma == 0) return;
  if (thread_x() == 0) shared.box = blur::box_of(sigma);
  block_barrier();
  const blur::Box box = shared.box;
  const auto radius = static_cast<int>(box.radius);
  for (int pass = 0; pass < 2 * blur::kPasses; ++pass) {
    const uint8_t* from = pass % 2 == 0 ? data : other;
    uint8_t* to = pass % 2 == 0 ? other : data;
    const bool vertical = pass >= blur::kPasses;
    const int length = vertical ? height : width;
    const int stride = (vertical ? width : 1) * kChannels;
    each_pixel(height, width, [&](int i, int y, int x) {
      const int place = vertical ? y : x;
      const uint8_t* line = from + (i * kChannels - place * stride);
      for (int c = 0; c < kChannels; ++c) {
        const auto at = [&](int offset) -> uint32_t {
          const auto near =
              static_cast<int>(blur::inside(place + offset, length));
          return line[near * stride + c];
        };
        uint32_t sum = 0;
        for (int offset = -radius; offset <= radius; ++offset)
          sum += at(offset);
        to[i * kChannels + c] =
            blur::mean(sum, at(-radius - 1) + at(radius + 1), box);
      }
    });
    block_barrier();
  }
}

// Whether the result is in `to`; otherwise it is in `from`.
template <int kChannels>
__device__ inline bool run(Operation operation, double magnitude, int height,
                           int width, uint8_t fill, Shared& shared,
                           uint8_t* from, uint8_t* to) {
  const auto factor = static_cast<float>(magnitude);
  const int pixels = height * width, value = thread_x();
  const auto own = static_cast<uint8_t>(value);
  switch (operation) {
    case Operation::kShearX:
    case Operation::kShearY:
      if (thread_x() == 0)
        shared.map =
            maps::shear_map(operation == Operation::kShearY, magnitude);
      nearest<kChannels>(from, height, width, fill, shared, to);
      return true;
    case Operation::kShearXCubic:
    case Operation::kShearYCubic:
      shear_cubic<kChannels>(from, operation == Operation::kShearYCubic,
                             magnitude, height, width, fill, to);
      return true;
    case Operation::kTranslateX:
    case Operation::kTranslateY:
      translate<kChannels>(from, operation == Operation::kTranslateY, magnitude,
                           height, width, fill, shared, to);
      return true;
    case Operation::kRotate:
      if (thread_x() == 0)
        shared.map = maps::rotation_map(magnitude, height, width);
      nearest<kChannels>(from, height, width, fill, shared, to);
      return true;
    case Operation::kAutoContrast:
      auto_contrast<kChannels>(pixels, shared, from);
      return false;
    case Operation::kEqualize:
      equalize<kChannels>(pixels, shared, from);
      return false;
    case Operation::kInvert:
      through_table<kChannels>(tones::clipped(255 - value), pixels, shared,
                               from);
      return false;
    case Operation::kPosterize:
      through_table<kChannels>(
          tones::posterized(value, static_cast<int64_t>(magnitude)), pixels,
          shared, from);
      return false;
    case Operation::kSolarize:
      through_table<kChannels>(tones::solarized(value, magnitude), pixels,
                               shared, from);
      return false;
    case Operation::kColour:
      colour<kChannels>(factor, pixels, from);
      return false;
    case Operation::kContrast:
      contrast<kChannels>(factor, pixels, shared, from);
      return false;
    case Operation::kBrightness:
      through_table<kChannels>(tones::blended(0, own, factor), pixels, shared,
                               from);
      return false;
    case Operation::kSharpness:
      sharpness<kChannels>(from, factor, height, width, to);
      return true;
    case Operation::kSolarizeAdd:
      through_table<kChannels>(tones::solarize_added(value, magnitude), pixels,
                               shared, from);
      return false;
    case Operation::kBlur:
      gaussian_blur<kChannels>(magnitude, height, width, shared, from, to);
      return false;
    default:
      return false;
  }
}

}  // namespace s3h::cuda::augmentation
