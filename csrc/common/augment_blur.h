// Pillow's Gaussian blur (libImaging/BoxBlur.c): three box means along the rows
// and three along the columns, each rounded to bytes. A box extends a fraction
// of a pixel beyond its integer radius, so that three boxes have the requested
// variance (Gwosdek et al., "Theoretical foundations of Gaussian convolution by
// extended box filtering", SSVM 2011); the last pixel is repeated at borders.
// One rounding per operation: the same bytes on host and device.
#pragma once

#include <cstdint>

#include "exact.h"

namespace s3h::blur {

constexpr int kPasses = 3;

// The mean is (whole sum + edge * (the two pixels beyond) + 2^23) / 2^24.
struct Box {
  int64_t radius;
  uint32_t whole, edge;
};

S3H_COMMON float quotient(float a, float b) {
  // A double has more than twice the bits of a float, so it rounds only once.
  return static_cast<float>(
      exact::divide(static_cast<double>(a), static_cast<double>(b)));
}

// For a Gaussian with a standard deviation of 0 <= sigma <= 64 pixels.
S3H_COMMON Box box_of(double sigma) {
  const auto given = static_cast<float>(sigma);
  const float variance =
      quotient(exact::multiply(given, given), static_cast<float>(kPasses));
  const auto length = static_cast<float>(exact::square_root(
      exact::add(exact::multiply(12.0, static_cast<double>(variance)), 1.0)));
  const auto whole = static_cast<float>(exact::round_down(
      exact::multiply(exact::add(static_cast<double>(length), -1.0), 0.5)));
  const float next = exact::add(whole, 1.0f);
  const float above =
      exact::multiply(exact::add(exact::multiply(2.0f, whole), 1.0f),
                      exact::add(exact::multiply(whole, next),
                                 -exact::multiply(3.0f, variance)));
  const float below =
      exact::multiply(6.0f, exact::add(variance, -exact::multiply(next, next)));
  const float radius = exact::add(whole, quotient(above, below));
  const float side = exact::add(exact::multiply(radius, 2.0f), 1.0f);
  Box box{};
  box.radius = static_cast<int64_t>(radius);
  box.whole = static_cast<uint32_t>(quotient(16777216.0f, side));
  const auto inside = static_cast<uint32_t>(2 * box.radius + 1);
  box.edge = ((1u << 24) - inside * box.whole) / 2;
  return box;
}

S3H_COMMON int64_t inside(int64_t at, int64_t length) {
  return at < 0 ? 0 : at >= length ? length - 1 : at;
}

S3H_COMMON uint8_t mean(uint32_t sum, uint32_t beyond, const Box& box) {
  return static_cast<uint8_t>(
      (sum * box.whole + beyond * box.edge + (1u << 23)) >> 24);
}

}  // namespace s3h::blur
