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
    const int row = job.top + r, column = job.left + x_in;
    const bool known =
        row >= 0 && row < job.height && column >= 0 && column < job.width;
    const int64_t at = (int64_t{row} * job.width + column) * kChannels;
    for (int c = 0; c < kChannels; ++c)
      to[c] = known ? to_grey_level(job.data[at + c]) : 0.f;
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

// A number of the colour matrix [channels, channels + 1] of a patch, with the
// scale from grey levels to [0, 1].
template <int kChannels>
__device__ inline float colour_factor(const float* matrix, int i) {
  const float x = matrix[i];
  return i % (kChannels + 1) == kChannels ? x : x * (1 / 255.f);
}

// Grey levels to pixels in [0, 1] through such a matrix; NaN passes.
template <int kChannels, int kCount>
__device__ inline void colour(const float* matrix,
                              float (&pixels)[kCount][kChannels]) {
  float result[kCount][kChannels];
#pragma unroll
  for (int c = 0; c < kChannels; ++c) {
    float row[kChannels + 1];
    for (int k = 0; k <= kChannels; ++k)
      row[k] = matrix[c * (kChannels + 1) + k];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      float x = row[kChannels];
      for (int k = 0; k < kChannels; ++k) x += pixels[i][k] * row[k];
      result[i][c] = within_unit(x);
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i)
    for (int c = 0; c < kChannels; ++c) pixels[i][c] = result[i][c];
}

// The part of a view that an erasing rectangle, which may be anywhere, takes
// away. Sums in double cannot overflow.
__device__ inline Rect erased(const int64_t* rect, int height, int width) {
  const auto within = [](double place, int size) {
    return place <= 0 ? 0 : place >= size ? size : static_cast<int>(place);
  };
  const auto top = static_cast<double>(rect[0]);
  const auto left = static_cast<double>(rect[1]);
  const int y = within(top, height), x = within(left, width);
  return {y, x, within(top + static_cast<double>(rect[2]), height) - y,
          within(left + static_cast<double>(rect[3]), width) - x};
}

}  // namespace s3h::cuda::rendering
