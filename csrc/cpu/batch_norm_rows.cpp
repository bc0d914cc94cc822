// Compiled once per instruction set, see level.h.
//
// A tile is a few rows of one vector of channels, with its rows unrolled, so
// that per-channel values are loaded once for all of them. Sums run over a tile
// first, then over the tiles.
#include "batch_norm_rows.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "vec.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

constexpr int kTile = kLanes == 16 ? 16 : 8;

static_assert(kChannelPadding % kLanes == 0);

// Inlines a lambda.
#define S3H_ALWAYS __attribute__((always_inline))

typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

// Without this, compilers take several steps for a conversion.
S3H_INLINE Vec widen(HalfVec v) {
#if defined(__AVX512F__)
  const BitVec wide = (BitVec)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)v);
#else
  const BitVec wide = __builtin_convertvector(v, BitVec);
#endif
  return (Vec)(wide << 16);
}

// Rounds like from_float(float, Bfloat16&).
S3H_INLINE HalfVec narrow(Vec v) {
#if defined(__AVX512BF16__)
  return (HalfVec)_mm512_maskz_cvtneps_pbh(0xffff, v);
#else
  const BitVec bits = (BitVec)v;
  const BitVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitVec result = v == v ? rounded : BitVec{} + 0x7fc0u;
#if defined(__AVX512F__)
  return (HalfVec)_mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)result);
#else
  return __builtin_convertvector(result, HalfVec);
#endif
#endif
}

// The elements of one row in a vector of channels: all of them, or the first
// `count`, padded with zeros.
template <typename Element, bool kWhole>
struct Row {
  typedef std::conditional_t<std::is_same_v<Element, float>, Vec, HalfVec> Raw;

  static S3H_INLINE Vec read(const Element* from, int64_t count) {
    Raw raw{};
    std::memcpy(&raw, from, kWhole ? sizeof raw : count * sizeof(Element));
    if constexpr (std::is_same_v<Element, float>)
      return raw;
    else
      return widen(raw);
  }

  static S3H_INLINE void write(Element* to, Vec v, int64_t count) {
    Raw raw;
    if constexpr (std::is_same_v<Element, float>)
      raw = v;
    else
      raw = narrow(v);
    std::memcpy(to, &raw, kWhole ? sizeof raw : count * sizeof(Element));
  }
};

// Calls body(Row, rows of the tile, row, channel, channels of the vector); the
// number of rows is a constant except in the last tiles.
template <typename Element, typename Body>
S3H_INLINE void tiles(int64_t rows, int64_t channels, const Body& body) {
  const auto across = [&](auto size, int64_t row) S3H_ALWAYS {
    int64_t c = 0;
    for (; c + kLanes <= channels; c += kLanes)
      body(Row<Element, true>{}, size, row, c, int64_t{kLanes});
    if (c < channels) body(Row<Element, false>{}, size, row, c, channels - c);
  };
  int64_t row = 0;
  for (; row + kTile <= rows; row += kTile)
    across(std::integral_constant<int, kTile>{}, row);
  for (; row < rows; ++row) across(std::integral_constant<int, 1>{}, row);
}

// Sets the sum for the first tile, adds to it for the others.
S3H_INLINE void add_tile(int64_t row, Vec tile, float* sum) {
  store(sum, row == 0 ? tile : load(sum) + tile);
}

template <typename Element>
void moments(const Element* x, int64_t rows, int64_t channels, float* middle,
             float* sum, float* squares) {
  const int64_t spread = std::min<int64_t>(rows, kTile);
  const auto tile = [&](auto row_of, auto size, int64_t row, int64_t c,
                        int64_t count) S3H_ALWAYS {
    using R = decltype(row_of);
    constexpr int kRows = size;
    Vec total{}, squared{};
    if (row == 0) {
      for (int64_t r = 0; r < spread; ++r)
        total += R::read(x + r * (rows / spread) * channels + c, count);
      store(middle + c, total * (1.0f / static_cast<float>(spread)));
      total = Vec{};
    }
    const Vec from = load(middle + c);
    S3H_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Vec away = R::read(x + (row + r) * channels + c, count) - from;
      total += away;
      squared += away * away;
    }
    add_tile(row, total, sum + c);
    add_tile(row, squared, squares + c);
  };
  tiles<Element>(rows, channels, tile);
}

template <typename Element>
void normalise(const Element* x, const Element* residual, int64_t rows,
               int64_t channels, const float* mean, const float* scale,
               const float* bias, Element* out) {
  const auto run = [&](auto adds) S3H_ALWAYS {
    tiles<Element>(rows, channels,
                   [&](auto row_of, auto size, int64_t row, int64_t c,
                       int64_t count) S3H_ALWAYS {
                     using R = decltype(row_of);
                     constexpr int kRows = size;
                     const Vec m = load(mean + c), s = load(scale + c),
                               b = load(bias + c);
                     S3H_UNROLL
                     for (int r = 0; r < kRows; ++r) {
                       const int64_t at = (row + r) * channels + c;
                       Vec y = (R::read(x + at, count) - m) * s + b;
                       if constexpr (adds) y += R::read(residual + at, count);
                       R::write(out + at, y < 0.0f ? Vec{} : y, count);
                     }
                   });
  };
  if (residual == nullptr)
    run(std::false_type{});
  else
    run(std::true_type{});
}

// Like PyTorch's ReLU, passes the gradient where out is NaN.
S3H_INLINE Vec masked_by(Vec out, Vec grad) {
  return out <= 0.0f ? Vec{} : grad;
}

template <typename Element>
void sums(const Element* grad, const Element* out, const Element* x,
          int64_t rows, int64_t channels, const float* mean, float* sum,
          float* product, Element* masked) {
  const auto run = [&](auto writes) S3H_ALWAYS {
    tiles<Element>(rows, channels,
                   [&](auto row_of, auto size, int64_t row, int64_t c,
                       int64_t count) S3H_ALWAYS {
                     using R = decltype(row_of);
                     constexpr int kRows = size;
                     const Vec m = load(mean + c);
                     Vec total{}, products{};
                     S3H_UNROLL
                     for (int r = 0; r < kRows; ++r) {
                       const int64_t at = (row + r) * channels + c;
                       const Vec g = masked_by(R::read(out + at, count),
                                               R::read(grad + at, count));
                       if constexpr (writes) R::write(masked + at, g, count);
                       total += g;
                       products += g * (R::read(x + at, count) - m);
                     }
                     add_tile(row, total, sum + c);
                     add_tile(row, products, product + c);
                   });
  };
  if (masked == nullptr)
    run(std::false_type{});
  else
    run(std::true_type{});
}

template <typename Element>
void gradient(const Element* grad, const Element* out, const Element* x,
              int64_t rows, int64_t channels, const float* mean,
              const float* scale, const float* centre, const float* slope,
              Element* to) {
  const auto run = [&](auto masks) S3H_ALWAYS {
    tiles<Element>(rows, channels,
                   [&](auto row_of, auto size, int64_t row, int64_t c,
                       int64_t count) S3H_ALWAYS {
                     using R = decltype(row_of);
                     constexpr int kRows = size;
                     const Vec m = load(mean + c), s = load(scale + c);
                     const Vec middle = load(centre + c), k = load(slope + c);
                     S3H_UNROLL
                     for (int r = 0; r < kRows; ++r) {
                       const int64_t at = (row + r) * channels + c;
                       Vec g = R::read(grad + at, count);
                       if constexpr (masks)
                         g = masked_by(R::read(out + at, count), g);
                       const Vec away = R::read(x + at, count) - m;
                       R::write(to + at, s * (g - middle - away * k), count);
                     }
                   });
  };
  if (out == nullptr)
    run(std::false_type{});
  else
    run(std::true_type{});
}

template <typename Element>
constexpr BatchNormRows<Element> table() {
  return {moments<Element>, normalise<Element>, sums<Element>,
          gradient<Element>};
}

}  // namespace

const BatchNormRows<float> kBatchNormFloat = table<float>();
const BatchNormRows<Bfloat16> kBatchNormBfloat16 = table<Bfloat16>();

}  // namespace s3h::cpu::S3H_LEVEL
