// A vector of floats of the width that this translation unit is compiled for,
// written with the compilers' vector extension: +, *, comparisons and ?: work
// lane by lane, and a * b + c becomes a fused multiply-add if there is one.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "level.h"

#if defined(__clang__)
#define S3H_UNROLL _Pragma("unroll")
#else
#define S3H_UNROLL _Pragma("GCC unroll 16")
#endif
#define S3H_INLINE inline __attribute__((always_inline))

namespace s3h::cpu::S3H_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
// For bit patterns: their sums and shifts may wrap.
typedef uint32_t BitVec __attribute__((vector_size(kLanes * 4)));

S3H_INLINE Vec load(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

S3H_INLINE IntVec load(const int32_t* from) {
  IntVec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

S3H_INLINE void store(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

S3H_INLINE IntVec broadcast(int32_t x) { return x - IntVec{}; }

// Copies the bits: pairs of bfloat16 are passed as floats and may look like
// NaN.
S3H_INLINE Vec broadcast(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (Vec)broadcast(bits);
}

S3H_INLINE IntVec lane_numbers() {
  IntVec v;
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// A NaN in x survives; a NaN in y does not.
S3H_INLINE Vec max_or_first(Vec x, Vec y) { return x < y ? y : x; }

// 2^x on [-1/2, 1/2]: minimax of degree 5 with the constant term at 1, relative
// error 9.1e-8.
S3H_INLINE Vec exp2_polynomial(Vec r) {
  Vec p = broadcast(1.326472731e-3f);
  p = p * r + 9.671512991e-3f;
  p = p * r + 5.550733581e-2f;
  p = p * r + 2.402224243e-1f;
  p = p * r + 6.931470037e-1f;
  return p * r + 1.0f;
}

// 2^x for |x| <= 126.
S3H_INLINE Vec exp2_bounded(Vec x) {
#if defined(__AVX512F__)
  const __m512 n = _mm512_maskz_roundscale_ps(0xffff, x, 0);
  return _mm512_maskz_scalef_ps(0xffff, exp2_polynomial(x - Vec(n)), n);
#else
  // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
  const Vec shifted = x + 12582912.0f;
  const Vec p = exp2_polynomial(x - (shifted - 12582912.0f));
  return (Vec)((BitVec)p + ((BitVec)shifted << 23));
#endif
}

// 2^x for x <= 126: 0 below the normal numbers, NaN for NaN.
S3H_INLINE Vec exp2_any(Vec x) {
  const Vec y = exp2_bounded(max_or_first(x, broadcast(-126.0f)));
  const Vec zeroed = x < -126.0f ? Vec{} : y;
#if defined(__AVX512F__)
  return zeroed;
#else
  // The bits of a NaN do not survive exp2_bounded here.
  return x == x ? zeroed : x;
#endif
}

// The rounded product: fusing it with the next operation would change its value
// at each use.
S3H_INLINE Vec rounded(Vec x) {
#if defined(__x86_64__)
  __asm__("" : "+v"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}

// acc + a * b over 32-bit elements: floats, or pairs of bfloat16.
S3H_INLINE Vec multiply_add(Vec a, Vec b, Vec acc) {
#if defined(__AVX512BF16__)
  return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b);
#else
  return a * b + acc;
#endif
}

#if defined(S3H_TILE_UNIT)
// Pairs of numbers rounded to bfloat16: neighbours, those of x before y's.
S3H_INLINE Vec to_pairs(Vec x, Vec y) {
#if defined(__AVX512BF16__)
  return (Vec)_mm512_cvtne2ps_pbh(y, x);
#else
  Vec pairs;
  const auto put = [&](Vec number, int64_t at) {
    const BitVec bits = (BitVec)number;
    const BitVec even = bits + 0x7fff + (bits >> 16 & 1);
    const BitVec rounded = (number == number ? even : bits | 0x400000) >> 16;
    const __m256i halves =
        _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)rounded);
    std::memcpy(reinterpret_cast<char*>(&pairs) + at, &halves, sizeof halves);
  };
  put(x, 0);
  put(y, sizeof pairs / 2);
  return pairs;
#endif
}
#endif

}  // namespace
}  // namespace s3h::cpu::S3H_LEVEL
