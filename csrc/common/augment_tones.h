// Tonal operations on bytes, pixel by pixel or as table entries, as in Pillow:
// luma in 16.16 fixed point (libImaging/Convert.c), blends in float, truncated
// (Blend.c), tables in double (ImageOps.py), the smoothing kernel of
// ImageFilter.SMOOTH (Filter.c). One rounding per operation: the same bytes on
// host and device.
#pragma once

#include <cstdint>

#include "exact.h"

namespace s3h::tones {

S3H_COMMON uint8_t clipped(int64_t value) {
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

S3H_COMMON uint8_t luma(const uint8_t* pixel, int64_t channels) {
  if (channels == 1) return pixel[0];
  const uint32_t sum =
      pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u;
  return static_cast<uint8_t>(sum >> 16);
}

// The mean of integers, rounded.
S3H_COMMON uint8_t rounded_mean(int64_t sum, int64_t count) {
  return static_cast<uint8_t>(exact::round_up(
      exact::divide(static_cast<double>(sum), static_cast<double>(count))));
}

// Blends `zero` at factor 0 with `one` at factor 1.
S3H_COMMON uint8_t blended(uint8_t zero, uint8_t one, float factor) {
  const float value =
      exact::add(static_cast<float>(zero),
                 exact::multiply(factor, static_cast<float>(one - zero)));
  return static_cast<uint8_t>(value < 0.0f     ? 0.0f
                              : value > 255.0f ? 255.0f
                                               : value);
}

// Stretches the values low .. high, low < high, to 0 .. 255.
struct Stretch {
  double scale, offset;
};

S3H_COMMON Stretch stretch_of(int64_t low, int64_t high) {
  const double scale = exact::divide(255.0, static_cast<double>(high - low));
  return {scale, exact::multiply(-static_cast<double>(low), scale)};
}

S3H_COMMON uint8_t stretched(int64_t value, const Stretch& stretch) {
  return clipped(static_cast<int64_t>(
      exact::add(exact::multiply(static_cast<double>(value), stretch.scale),
                 stretch.offset)));
}

// before: number of pixels with smaller values; step: number of pixels below
// the largest value present, divided by 255, at least 1.
S3H_COMMON uint8_t equalized(int64_t before, int64_t step) {
  return clipped((step / 2 + before) / step);
}

S3H_COMMON uint8_t posterized(int64_t value, int64_t bits) {
  return static_cast<uint8_t>(value & (256 - (int64_t{1} << (8 - bits))));
}

S3H_COMMON uint8_t solarized(int64_t value, double threshold) {
  return clipped(static_cast<double>(value) < threshold ? value : 255 - value);
}

S3H_COMMON uint8_t solarize_added(int64_t value, double added) {
  return clipped(value < 128 ? value + static_cast<int64_t>(added) : value);
}

// The smoothed byte at `at`, whose eight neighbours are `step` bytes to its
// sides and `row` bytes above and below.
S3H_COMMON uint8_t smoothed(const uint8_t* at, int64_t row, int64_t step) {
  const int sum = at[-row - step] + at[-row] + at[-row + step] + at[-step] +
                  5 * at[0] + at[step] + at[row - step] + at[row] +
                  at[row + step];
  // sum / 13 rounded; 13 is odd, so there are no ties.
  return static_cast<uint8_t>((2 * sum + 13) / 26);
}

}  // namespace s3h::tones
