// Single pixels: read through an affine map, coloured, erased.
#pragma once

#include "views_patches.cuh"

namespace s3h::cuda::rendering {

// Whole numbers below 2^23 in float: added to the bits of 2^23.
constexpr uint32_t kMagicBits = 0x4b000000u;
constexpr float kMagic = 8388608.f;

__device__ inline float to_grey_level(uint8_t byte) {
  return bits_to_float(kMagicBits | byte) - kMagic;
}

// One pixel of a patch that is seen through an affine map.
template <int kChannels>
__device__ inline void map(const Job& job, const float* a, int x, int y,
                           float fill, bool nearest, float (&out)[kChannels]) {
  const double across = x + 0.5, down = y + 0.5;
  const double u = a[0] * across + (a[1] * down + a[2]);
  const double v = a[3] * across + (a[4] * down + a[5]);
  // False for NaN as well.
  if (!(u >= 0 && u < job.columns && v >= 0 && v < job.rows)) {
    for (int c = 0; c < kChannels; ++c) out[c] = fill;
    return;
  }
  const auto pixel = [&](int row_in, int column_in, float (&to)[kChannels]) {
    const int r = row_in < 0 ? 0 : row_in < job.rows ? row_in : job.rows - 1;
    int x_in = column_in < 0             ? 0
               : column_in < job.columns ? column_in
                                         : job.columns - 1;
    if (job.flip) x_in = job.columns - 1 - x_in;
    const int64_t row = job.top + r, column = job.left + x_in;
    const bool known = row >= 0 && row < job.image.height && column >= 0 &&
                       column < job.image.width;
    for (int c = 0; c < kChannels; ++c)
      to[c] =
          known
              ? to_grey_level(
                    job.image
                        .data[(row * job.image.width + column) * kChannels + c])
              : 0.f;
  };
  if (nearest) {
    pixel(static_cast<int>(v), static_cast<int>(u), out);
    return;
  }
  const int row = static_cast<int>(v + 0.5) - 1;
  const int column = static_cast<int>(u + 0.5) - 1;
  const auto lower_share = static_cast<float>(v - 0.5 - row);
  const auto right_share = static_cast<float>(u - 0.5 - column);
  float a00[kChannels], a01[kChannels], a10[kChannels], a11[kChannels];
  pixel(row, column, a00);
  pixel(row, column + 1, a01);
  pixel(row + 1, column, a10);
  pixel(row + 1, column + 1, a11);
  for (int c = 0; c < kChannels; ++c) {
    const float upper = a00[c] + right_share * (a01[c] - a00[c]);
    const float lower = a10[c] + right_share * (a11[c] - a10[c]);
    out[c] = upper + lower_share * (lower - upper);
  }
}

// Grey levels to pixels in [0, 1] through the colour matrix; NaN passes.
template <int kChannels>
__device__ inline void colour(const float* matrix, float (&pixel)[kChannels]) {
  float result[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    const float* row = matrix + c * (kChannels + 1);
    float x = row[kChannels];
    for (int k = 0; k < kChannels; ++k) x += pixel[k] * (row[k] * (1 / 255.f));
    x = x < 0.f ? 0.f : x;
    result[c] = x > 1.f ? 1.f : x;
  }
  for (int c = 0; c < kChannels; ++c) pixel[c] = result[c];
}

// The pixels of the view that an erasing rectangle, which may be anywhere,
// takes away. Sums in double cannot overflow.
__device__ inline bool erased(const int64_t* rect, int y, int x) {
  const auto inside = [](int64_t start, int64_t size, int at) {
    return at >= start &&
           static_cast<double>(at) <
               static_cast<double>(start) + static_cast<double>(size);
  };
  return inside(rect[0], rect[2], y) && inside(rect[1], rect[3], x);
}

}  // namespace s3h::cuda::rendering
