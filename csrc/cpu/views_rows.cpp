// Compiled once per instruction set, see level.h.
//
// resize: four outputs at a time. With AVX2 a 16-byte load holds an output's
// first four taps in three interleaved channels; a byte shuffle pairs
// neighbouring taps channel by channel, a 16-bit multiply-add sums the pairs,
// and a transpose of four results gives the planes. All of it is exact, so it
// has the same bits as the portable form, which sums the same integers as
// floats. finish: one vector of pixels at a time, from the planes of all taps
// through the colour matrix to interleaved output, without a store in between.
// A NaN from the colour matrix passes the clamp.
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "shuffle.h"
#include "vec.h"
#include "views_rows.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

static_assert(kPlaneStep % kLanes == 0);

typedef uint8_t FourBytes __attribute__((vector_size(4)));
typedef int32_t FourInts __attribute__((vector_size(16)));
typedef float FourFloats __attribute__((vector_size(16)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

// Copying and resizing rows ---------------------------------------------------

void copy_grey(const uint8_t* row, int64_t width, bool flip, float* plane) {
  if (flip)
    for (int64_t x = 0; x < width; ++x) plane[x] = row[width - 1 - x];
  else
    for (int64_t x = 0; x < width; ++x) plane[x] = row[x];
}

void copy_pixels(const uint8_t* row, int64_t begin, int64_t width, bool flip,
                 int64_t plane, float* planes) {
  for (int64_t x = begin; x < width; ++x) {
    const uint8_t* pixel = row + 3 * (flip ? width - 1 - x : x);
    for (int64_t c = 0; c < 3; ++c) planes[c * plane + x] = pixel[c];
  }
}

#if defined(__AVX2__)
// Reads up to four bytes after the row.
void copy_colour(const uint8_t* row, int64_t width, bool flip, int64_t plane,
                 float* planes) {
  const __m128i forward =
      _mm_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
  const __m128i backward =
      _mm_setr_epi8(9, 6, 3, 0, 10, 7, 4, 1, 11, 8, 5, 2, -1, -1, -1, -1);
  const __m128i order = flip ? backward : forward;
  const int64_t whole = width / 4 * 4;
  for (int64_t x = 0; x < whole; x += 4) {
    const uint8_t* from = row + 3 * (flip ? width - 4 - x : x);
    const __m128i bytes = _mm_shuffle_epi8(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)), order);
    const __m256 red_green = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes));
    const __m128 blue =
        _mm_cvtepi32_ps(_mm_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
    _mm_storeu_ps(planes + x, _mm256_castps256_ps128(red_green));
    _mm_storeu_ps(planes + plane + x, _mm256_extractf128_ps(red_green, 1));
    _mm_storeu_ps(planes + 2 * plane + x, blue);
  }
  copy_pixels(row, whole, width, flip, plane, planes);
}

__m256i load_two(const uint8_t* low, const uint8_t* high) {
  return _mm256_inserti128_si256(
      _mm256_castsi128_si256(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
}

__m256i load_weights(const uint32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Reads kRowSlack bytes from the first tap of an output, and of every fourth
// one after it.
template <bool Two>
void resize_pairs(const RowTaps& taps, const uint8_t* row, float* planes) {
  const __m256i low = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1));
  const __m256i high = _mm256_broadcastsi128_si256(_mm_setr_epi8(
      6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1));
  const uint32_t* weights = taps.pairs;
  for (int64_t x = 0; x < taps.width; x += 4) {
    const uint8_t* from[4];
    for (int i = 0; i < 4; ++i) from[i] = row + 3 * taps.first[x + i];
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (int64_t t = 0; t < taps.taps; t += 4) {
      const __m256i a = load_two(from[0] + 3 * t, from[2] + 3 * t);
      const __m256i b = load_two(from[1] + 3 * t, from[3] + 3 * t);
      even =
          _mm256_add_epi32(even, _mm256_madd_epi16(_mm256_shuffle_epi8(a, low),
                                                   load_weights(weights)));
      odd = _mm256_add_epi32(odd, _mm256_madd_epi16(_mm256_shuffle_epi8(b, low),
                                                    load_weights(weights + 8)));
      weights += 16;
      if constexpr (!Two) {
        even = _mm256_add_epi32(even,
                                _mm256_madd_epi16(_mm256_shuffle_epi8(a, high),
                                                  load_weights(weights)));
        odd = _mm256_add_epi32(odd,
                               _mm256_madd_epi16(_mm256_shuffle_epi8(b, high),
                                                 load_weights(weights + 8)));
        weights += 16;
      }
    }
    // even: r0 g0 b0 . r2 g2 b2 .   odd: r1 g1 b1 . r3 g3 b3 .
    const __m256 e = _mm256_cvtepi32_ps(even), o = _mm256_cvtepi32_ps(odd);
    const __m256i red_green = _mm256_permute4x64_epi64(
        _mm256_castps_si256(_mm256_unpacklo_ps(e, o)), 0xd8);
    const __m256i blue = _mm256_permute4x64_epi64(
        _mm256_castps_si256(_mm256_unpackhi_ps(e, o)), 0xd8);
    const __m256 rg = _mm256_castsi256_ps(red_green);
    _mm_storeu_ps(planes + x, _mm256_castps256_ps128(rg));
    _mm_storeu_ps(planes + taps.plane + x, _mm256_extractf128_ps(rg, 1));
    _mm_storeu_ps(planes + 2 * taps.plane + x,
                  _mm256_castps256_ps128(_mm256_castsi256_ps(blue)));
  }
}
#else
void copy_colour(const uint8_t* row, int64_t width, bool flip, int64_t plane,
                 float* planes) {
  copy_pixels(row, 0, width, flip, plane, planes);
}
#endif

void copy(const uint8_t* row, int64_t width, bool flip, int64_t channels,
          int64_t plane, float* planes) {
  if (channels == 1)
    copy_grey(row, width, flip, planes);
  else
    copy_colour(row, width, flip, plane, planes);
}

void resize_grey(const RowTaps& taps, const uint8_t* row, float* plane) {
  const float* weights = taps.weights;
  for (int64_t x = 0; x < taps.width; ++x, weights += taps.taps) {
    float sum = 0;
    for (int64_t t = 0; t < taps.taps; ++t)
      sum += weights[t] * row[taps.first[x] + t];
    plane[x] = sum;
  }
}

// Reads one byte after the last tap.
void resize_colour(const RowTaps& taps, const uint8_t* row, float* planes) {
  const float* weights = taps.weights;
  for (int64_t x = 0; x < taps.width; ++x, weights += taps.taps) {
    FourFloats sum{};
    const uint8_t* from = row + 3 * taps.first[x];
    for (int64_t t = 0; t < taps.taps; ++t) {
      FourBytes bytes;
      std::memcpy(&bytes, from + 3 * t, 4);
      sum += weights[t] *
             __builtin_convertvector(__builtin_convertvector(bytes, FourInts),
                                     FourFloats);
    }
    for (int64_t c = 0; c < 3; ++c) planes[c * taps.plane + x] = sum[c];
  }
}

void resize(const RowTaps& taps, const uint8_t* row, int64_t channels,
            float* planes) {
  if (channels == 1) return resize_grey(taps, row, planes);
#if defined(__AVX2__)
  if (taps.pairs != nullptr)
    return taps.taps == 2 ? resize_pairs<true>(taps, row, planes)
                          : resize_pairs<false>(taps, row, planes);
#endif
  resize_colour(taps, row, planes);
}

// Finishing -------------------------------------------------------------------

S3H_INLINE BitVec select(BitVec condition, BitVec a, BitVec b) {
  return (condition & a) | (~condition & b);
}

// To the nearest, ties to even.
S3H_INLINE HalfVec to_bfloat16(Vec x) {
  const BitVec bits = (BitVec)x;
  const BitVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitVec nan = rounded * 0u + 0x7fc0u;
  return __builtin_convertvector(select((BitVec)(x == x), rounded, nan),
                                 HalfVec);
}

S3H_INLINE HalfVec to_half(Vec x) {
  const BitVec bits = (BitVec)x;
  const BitVec sign = (bits >> 16) & 0x8000u;
  const BitVec size = bits & 0x7fffffffu;
  const BitVec zero = size * 0u;
  // 2^-14 and above: the exponent moves by 112, and 13 bits are rounded off.
  const BitVec normal =
      (size + 0xfffu + ((size >> 13) & 1u) - 0x38000000u) >> 13;
  // Below, adding 1/2 leaves the multiple of 2^-24 in the low bits.
  const BitVec small = (BitVec)((Vec)size + 0.5f) - 0x3f000000u;
  BitVec half = select((BitVec)(size < 0x38800000u), small, normal);
  // Anything that rounds to 2^16 or more becomes infinite.
  half = select((BitVec)(size >= 0x477ff000u), zero + 0x7c00u, half);
  half = select((BitVec)(size > 0x7f800000u), zero + 0x7e00u, half);
  return __builtin_convertvector(half | sign, HalfVec);
}

template <ViewType Type>
S3H_INLINE void put(void* out, int64_t index, Vec v) {
  if constexpr (Type == ViewType::kFloat) {
    store(static_cast<float*>(out) + index, v);
  } else {
    const HalfVec h = Type == ViewType::kHalf ? to_half(v) : to_bfloat16(v);
    std::memcpy(static_cast<uint16_t*>(out) + index, &h, sizeof h);
  }
}

// Source of element l of vector k of interleaved pixels: first from two
// channels (without the third), then from that and the third.
constexpr int from_two(int k, int l) {
  const int element = k * kLanes + l, pixel = element / 3;
  return element % 3 == 1 ? kLanes + pixel : pixel;
}

constexpr int from_third(int k, int l) {
  const int element = k * kLanes + l, pixel = element / 3;
  return element % 3 == 2 ? kLanes + pixel : l;
}

template <int K, int... L>
S3H_INLINE Vec interleave(Vec red, Vec green, Vec blue,
                          std::integer_sequence<int, L...>) {
  const Vec two = shuffle<from_two(K, L)...>(red, green);
  return shuffle<from_third(K, L)...>(two, blue);
}

template <int Channels, ViewType Type>
S3H_INLINE void put_pixels(void* out, int64_t x, const Vec (&v)[Channels]) {
  if constexpr (Channels == 1) {
    put<Type>(out, x, v[0]);
  } else {
    constexpr std::make_integer_sequence<int, kLanes> lanes;
    put<Type>(out, 3 * x, interleave<0>(v[0], v[1], v[2], lanes));
    put<Type>(out, 3 * x + kLanes, interleave<1>(v[0], v[1], v[2], lanes));
    put<Type>(out, 3 * x + 2 * kLanes, interleave<2>(v[0], v[1], v[2], lanes));
  }
}

S3H_INLINE Vec clamp_to_unit(Vec x) {
  x = x < 0.0f ? Vec{} : x;
  return x > 1.0f ? broadcast(1.0f) : x;
}

template <int Channels, bool Coloured, ViewType Type>
void finish_pixels(const RowFinish& f, const float* const* rows,
                   const float* weights, int64_t taps, void* out) {
  constexpr int64_t kSize = Type == ViewType::kFloat ? 4 : 2;
  for (int64_t x = 0; x < f.width; x += kLanes) {
    Vec sum[Channels];
    S3H_UNROLL for (int c = 0; c < Channels; ++c) sum[c] =
        load(rows[0] + c * f.plane + x) * weights[0];
    for (int64_t t = 1; t < taps; ++t)
      S3H_UNROLL for (int c = 0; c < Channels; ++c) sum[c] +=
          load(rows[t] + c * f.plane + x) * weights[t];
    Vec v[Channels];
    S3H_UNROLL for (int c = 0; c < Channels; ++c) {
      v[c] = sum[c];
      if constexpr (Coloured) {
        v[c] = broadcast(f.colour[c][Channels]);
        S3H_UNROLL for (int k = 0; k < Channels; ++k) v[c] +=
            sum[k] * f.colour[c][k];
        v[c] = clamp_to_unit(v[c]);
      }
      v[c] = v[c] * f.scale[c] + f.shift[c];
    }
    if (x + kLanes <= f.width) {
      put_pixels<Channels, Type>(out, x, v);
    } else {
      alignas(64) char block[Channels * kLanes * kSize];
      put_pixels<Channels, Type>(block, 0, v);
      std::memcpy(static_cast<char*>(out) + x * Channels * kSize, block,
                  static_cast<size_t>((f.width - x) * Channels * kSize));
    }
  }
}

template <int Channels, bool Coloured>
void finish_typed(const RowFinish& f, const float* const* rows,
                  const float* weights, int64_t taps, ViewType type,
                  void* out) {
  if (type == ViewType::kFloat)
    finish_pixels<Channels, Coloured, ViewType::kFloat>(f, rows, weights, taps,
                                                        out);
  else if (type == ViewType::kBfloat16)
    finish_pixels<Channels, Coloured, ViewType::kBfloat16>(f, rows, weights,
                                                           taps, out);
  else
    finish_pixels<Channels, Coloured, ViewType::kHalf>(f, rows, weights, taps,
                                                       out);
}

void finish(const RowFinish& f, const float* const* rows, const float* weights,
            int64_t taps, int64_t channels, ViewType type, void* out) {
  if (channels == 1)
    (f.coloured ? finish_typed<1, true>
                : finish_typed<1, false>)(f, rows, weights, taps, type, out);
  else
    (f.coloured ? finish_typed<3, true>
                : finish_typed<3, false>)(f, rows, weights, taps, type, out);
}

}  // namespace

const RowKernels kRows = {
#if defined(__AVX2__)
    true,
#else
    false,
#endif
    &copy,
    &resize,
    &finish,
};

}  // namespace s3h::cpu::S3H_LEVEL
