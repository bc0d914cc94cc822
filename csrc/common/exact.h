// Double-precision arithmetic whose bits are the same on every host and device:
// one IEEE rounding per operation, no library function. On the device the
// intrinsics are never contracted to a fused multiply-add; on the host that
// takes -ffp-contract=off, and a file says that it has it by defining
// S3H_FP_CONTRACT_OFF (CMakeLists.txt).
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

// IEEE 754 rounds the square root correctly, unlike every other function.
S3H_COMMON double square_root(double a) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(a);
#else
  return std::sqrt(a);
#endif
}

// To the nearest whole number, ties to even; 0 <= a < 2^51. Adding 2^52 leaves
// no bits for a fraction.
S3H_COMMON int64_t round_even(double a) {
  constexpr double kShift = 4503599627370496.0;
  return static_cast<int64_t>(add(add(a, kShift), -kShift));
}

// To the nearest whole number, ties up; 0 <= a < 2^51.
S3H_COMMON int64_t round_up(double a) {
  return static_cast<int64_t>(add(a, 0.5));
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

}  // namespace s3h::exact
