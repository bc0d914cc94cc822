// Arithmetic with the same bits on every host and device: one IEEE rounding per
// operation, no library function. The device intrinsics are never contracted to
// a fused multiply-add. The host needs -ffp-contract=off, which a file confirms
// by defining S3H_FP_CONTRACT_OFF (CMakeLists.txt).
#pragma once

#include <cstdint>

#include "philox.h"

#if defined(__FAST_MATH__) || \
    (!defined(S3H_FP_CONTRACT_OFF) && !defined(__CUDACC__))
#error "exact geometry needs -ffp-contract=off and no -ffast-math"
#endif
#if !defined(__CUDA_ARCH__)
#include <cmath>
#endif

namespace s3h::exact {

S3H_COMMON double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

S3H_COMMON double multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

S3H_COMMON double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __ddiv_rn(a, b);
#else
  return a / b;
#endif
}

S3H_COMMON float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

S3H_COMMON float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// IEEE 754 requires correct rounding of the square root, but of no other
// function.
S3H_COMMON double square_root(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return std::sqrt(a);
#endif
}

// To the nearest integer, ties to even; 0 <= a < 2^51. Adding 2^52 leaves no
// bits for a fraction.
S3H_COMMON int64_t round_even(double a) {
  constexpr double kShift = 4503599627370496.0;
  return static_cast<int64_t>(add(add(a, kShift), -kShift));
}

// To the nearest integer, ties up; 0 <= a < 2^51.
S3H_COMMON int64_t round_up(double a) {
  return static_cast<int64_t>(add(a, 0.5));
}

// The largest integer <= a; |a| < 2^63.
S3H_COMMON int64_t round_down(double a) {
  const auto cut = static_cast<int64_t>(a);
  return static_cast<double>(cut) > a ? cut - 1 : cut;
}

// To the nearest integer, ties away from 0; |a| < 2^51.
S3H_COMMON double round_away(double a) {
  return a < 0 ? -static_cast<double>(round_up(-a))
               : static_cast<double>(round_up(a));
}

// floor(uniform * count), below count for every uniform below 1: a 24-bit
// uniform times an integer below 2^29 is exact.
S3H_COMMON int64_t pick(double uniform, int64_t count) {
  return static_cast<int64_t>(multiply(uniform, static_cast<double>(count)));
}

// exp for |x| <= log(10) / 2 by its Taylor series: relative error below 1e-12.
S3H_COMMON double exponential(double x) {
  double result = 1;
  for (int n = 18; n > 0; --n)
    result = add(divide(multiply(result, x), static_cast<double>(n)), 1.0);
  return result;
}

struct Turn {
  double cosine, sine;
};

// Cosine and sine of 0 <= x <= 2 pi by their Taylor series about the nearest
// multiple k of a right angle; tested to be within 2^-53.
S3H_COMMON Turn turn(double x) {
  // A right angle in two parts: k times the first part is exact.
  constexpr double kCoarse = 1.5707963267341256;  // 33 bits
  constexpr double kFine = 6.077100506506192e-11;
  constexpr double kInverse = 0.6366197723675814;
  const int64_t k = round_even(multiply(x, kInverse));
  const auto angles = static_cast<double>(k);
  const double near = add(x, -multiply(angles, kCoarse));
  const double shift = multiply(angles, kFine);
  const double r = add(near, -shift);
  const double rest = add(add(near, -r), -shift);  // what r rounds off
  const double square = multiply(r, r);
  constexpr double kSine[] = {1.0 / 51090942171709440000.0,
                              -1.0 / 121645100408832000.0,
                              1.0 / 355687428096000.0,
                              -1.0 / 1307674368000.0,
                              1.0 / 6227020800.0,
                              -1.0 / 39916800.0,
                              1.0 / 362880.0,
                              -1.0 / 5040.0,
                              1.0 / 120.0,
                              -1.0 / 6.0};
  constexpr double kCosine[] = {1.0 / 2432902008176640000.0,
                                -1.0 / 6402373705728000.0,
                                1.0 / 20922789888000.0,
                                -1.0 / 87178291200.0,
                                1.0 / 479001600.0,
                                -1.0 / 3628800.0,
                                1.0 / 40320.0,
                                -1.0 / 720.0,
                                1.0 / 24.0};
  double sine = 0, cosine = 0;
  for (const double term : kSine) sine = add(multiply(sine, square), term);
  for (const double term : kCosine)
    cosine = add(multiply(cosine, square), term);
  // sin(r + rest) = r + (r^3 sine + rest), cos likewise; largest terms last.
  sine = add(r, add(multiply(multiply(r, square), sine), rest));
  const double half = multiply(square, 0.5);
  const double most = add(1.0, -half);
  const double small =
      add(multiply(multiply(square, square), cosine), -multiply(r, rest));
  cosine = add(most, add(add(add(1.0, -most), -half), small));
  switch (k & 3) {
    case 0:
      return {cosine, sine};
    case 1:
      return {-sine, cosine};
    case 2:
      return {-cosine, -sine};
    default:
      return {sine, -cosine};
  }
}

}  // namespace s3h::exact
