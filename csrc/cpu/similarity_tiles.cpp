// Compiled once per instruction set, see level.h.
//
// Micro-tile: kRows x kVecs vectors of accumulators (AVX-512: 8 x 3 of 16
// lanes, 24 of the 32 registers; AVX2 and baseline: 4 x 3, 12 of 16). Per step
// of the depth it loads kVecs vectors of the column panel and broadcasts kRows
// elements of the row panel. The row panel is walked inside the column panel,
// which stays in the first-level cache.
//
// Fast: every score is known to lie in a range where 2^score is a normal
// number, so biases are factors and no shift is taken. Exact: each lane keeps
// its own running maximum, merged by the caller; a row costs one exponential
// more per micro-tile, and symmetric column sums need a second set.
#include "similarity_tiles.h"

#include "vec.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kVecs = 3;
constexpr int kPanel = kVecs * kLanes;

constexpr float kLowest = -3.402823466e+38f;
constexpr float kInfinity = __builtin_inff();

// Depth that is added up in sequence: long sums in sequence lose digits.
constexpr int64_t kChain = 128;

S3H_INLINE void dot_chain(const float* rows, const float* columns,
                          int64_t steps, Vec (&acc)[kRows][kVecs]) {
  S3H_UNROLL for (int r = 0; r < kRows; ++r)
      S3H_UNROLL for (int c = 0; c < kVecs; ++c) acc[r][c] = Vec{};
  for (int64_t k = 0; k < steps; ++k) {
    Vec b[kVecs];
    S3H_UNROLL for (int c = 0; c < kVecs; ++c) b[c] =
        load(columns + k * kPanel + c * kLanes);
    S3H_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec a = broadcast(rows[k * kPanel + r]);
      S3H_UNROLL for (int c = 0; c < kVecs; ++c) acc[r][c] =
          multiply_add(a, b[c], acc[r][c]);
    }
  }
}

// Dot products of kRows rows, from `row` of their panel, with a column panel.
S3H_INLINE void dot_products(const float* rows, const float* columns,
                             int64_t steps, Vec (&acc)[kRows][kVecs]) {
  dot_chain(rows, columns, steps < kChain ? steps : kChain, acc);
  for (int64_t k = kChain; k < steps; k += kChain) {
    Vec part[kRows][kVecs];
    dot_chain(rows + k * kPanel, columns + k * kPanel,
              steps - k < kChain ? steps - k : kChain, part);
    S3H_UNROLL for (int r = 0; r < kRows; ++r)
        S3H_UNROLL for (int c = 0; c < kVecs; ++c) acc[r][c] += part[r][c];
  }
}

#if defined(__AVX512BF16__)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

// Calls body(row, column, acc) for every micro-tile with a row that exists.
template <bool Exact, typename Body>
S3H_INLINE void for_micro_tiles(const Tile& t, const Body& body) {
  const int64_t panel_size = t.steps * kPanel;
  for (int64_t column = 0; column < t.column.count; column += kPanel) {
    const float* columns = t.column.panels + column / kPanel * panel_size;
    for (int64_t row = 0; row < t.row.count; row += kRows) {
      const float* rows =
          t.row.panels + row / kPanel * panel_size + row % kPanel;
      Vec acc[kRows][kVecs];
      dot_products(rows, columns, t.steps, acc);
      if constexpr (Exact || kPairs)
        S3H_UNROLL for (int r = 0; r < kRows; ++r)
            S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
          const Vec dot = acc[r][c];
          acc[r][c] = Exact ? rounded(dot * t.score_scale +
                                      rounded(dot * t.score_scale_rest))
                            : dot * t.score_scale;
        }
      body(row, column, acc);
    }
  }
}

template <bool Labels, bool Exclude, bool Symmetric>
void forward_fast(const Tile& t) {
  for_micro_tiles<false>(
      t, [&](int64_t row, int64_t column,
             Vec(&acc)[kRows][kVecs]) __attribute__((always_inline)) {
        // Added up by themselves first: long sums in sequence lose digits.
        Vec sums[kVecs] = {};
        S3H_UNROLL for (int r = 0; r < kRows; ++r) {
          Vec sum = {};
          S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
            const int64_t j = column + c * kLanes;
            Vec e = exp2_bounded(acc[r][c]);
            if constexpr (Exclude) {
              const IntVec own =
                  broadcast(t.row.self[row + r] - static_cast<int32_t>(j));
              e = lane_numbers() == own ? Vec{} : e;
            }
            Vec row_term = e;
            if constexpr (Labels) {
              const auto same =
                  load(t.column.label + j) == broadcast(t.row.label[row + r]);
              row_term = same ? e * t.row.same[row + r] : e;
              if constexpr (Symmetric)
                e = same ? e * load(t.column.same + j) : e;
            }
            sum += row_term * load(t.column.bias + j);
            if constexpr (Symmetric) sums[c] += e * t.row.bias[row + r];
          }
          float* sum_at = t.row_sum + (row + r) * kLanes;
          store(sum_at, load(sum_at) + sum);
        }
        if constexpr (Symmetric) S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
            float* sum_at = t.column_sum + column + c * kLanes;
            store(sum_at, load(sum_at) + sums[c]);
          }
      });
}

template <bool Labels, bool Exclude, bool Symmetric>
void forward_exact(const Tile& t) {
  for_micro_tiles<true>(
      t, [&](int64_t row, int64_t column, Vec(&acc)[kRows][kVecs])
             __attribute__((always_inline)) {
               // Exclusions and same-label terms once; the key's bias by side
               // below.
               Vec flipped[kRows][kVecs];
               S3H_UNROLL for (int r = 0; r < kRows; ++r)
                   S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
                 const int64_t j = column + c * kLanes;
                 Vec x = acc[r][c];
                 if constexpr (Exclude) {
                   const IntVec own =
                       broadcast(t.row.self[row + r] - static_cast<int32_t>(j));
                   x = lane_numbers() == own ? broadcast(-kInfinity) : x;
                 }
                 Vec y = x;
                 if constexpr (Labels) {
                   const auto same = load(t.column.label + j) ==
                                     broadcast(t.row.label[row + r]);
                   if constexpr (Symmetric)
                     y = same ? x + load(t.column.same + j) : x;
                   x = same ? x + t.row.same[row + r] : x;
                 }
                 acc[r][c] = x + load(t.column.bias + j);
                 if constexpr (Symmetric)
                   flipped[r][c] = y + t.row.bias[row + r];
               }
               S3H_UNROLL for (int r = 0; r < kRows; ++r) {
                 float* max_at = t.row_max + (row + r) * kLanes;
                 float* sum_at = t.row_sum + (row + r) * kLanes;
                 const Vec before = load(max_at);
                 Vec top = before;
                 S3H_UNROLL for (int c = 0; c < kVecs; ++c) top =
                     max_or_first(top, acc[r][c]);
                 Vec sum = {};
                 S3H_UNROLL for (int c = 0; c < kVecs; ++c) sum +=
                     exp2_any(acc[r][c] - top);
                 store(max_at, top);
                 store(sum_at, load(sum_at) * exp2_any(before - top) + sum);
               }
               if constexpr (Symmetric) {
                 S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
                   float* max_at = t.column_max + column + c * kLanes;
                   float* sum_at = t.column_sum + column + c * kLanes;
                   const Vec before = load(max_at);
                   Vec top = before;
                   S3H_UNROLL for (int r = 0; r < kRows; ++r) top =
                       max_or_first(top, flipped[r][c]);
                   Vec sum = {};
                   S3H_UNROLL for (int r = 0; r < kRows; ++r) sum +=
                       exp2_any(flipped[r][c] - top);
                   store(max_at, top);
                   store(sum_at, load(sum_at) * exp2_any(before - top) + sum);
                 }
               }
             });
}

// Keeps the gradient of one row of a micro-tile, in the layout that `apply`
// broadcasts from.
S3H_INLINE void keep_gradient(const Tile& t, int64_t row, int64_t column,
                              const Vec (&g)[kRows][kVecs]) {
#if defined(__AVX512BF16__)
  // As queries' side: neighbours in a row make a pair. As keys' side:
  // neighbours in a column do, interleaved from two rows.
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(kInterleave);
  S3H_UNROLL for (int r = 0; r < kRows; ++r) {
    float* at = t.gradient + (row + r) * t.gradient_ld + column / 2;
    const __m512bh first = _mm512_cvtne2ps_pbh(g[r][1], g[r][0]);
    const __m256bh second = _mm512_cvtneps_pbh(g[r][2]);
    std::memcpy(at, &first, sizeof first);
    std::memcpy(at + kLanes, &second, sizeof second);
  }
  S3H_UNROLL for (int r = 0; r < kRows; r += 2) {
    float* at = t.gradient_pairs + (row + r) / 2 * t.gradient_pairs_ld + column;
    S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
      const __m512bh both = _mm512_cvtne2ps_pbh(g[r + 1][c], g[r][c]);
      const __m512i pairs = _mm512_permutexvar_epi16(interleave, (__m512i)both);
      _mm512_storeu_si512(at + c * kLanes, pairs);
    }
  }
#else
  S3H_UNROLL for (int r = 0; r < kRows; ++r)
      S3H_UNROLL for (int c = 0; c < kVecs; ++c)
          store(t.gradient + (row + r) * t.gradient_ld + column + c * kLanes,
                g[r][c]);
#endif
}

template <bool Labels, bool Exclude, bool Symmetric>
void backward_fast(const Tile& t) {
  for_micro_tiles<false>(
      t, [&](int64_t row, int64_t column, Vec(&acc)[kRows][kVecs])
             __attribute__((always_inline)) {
               S3H_UNROLL for (int r = 0; r < kRows; ++r)
                   S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
                 const int64_t j = column + c * kLanes;
                 Vec factor = load(t.column.bias + j) * t.row.scale[row + r];
                 Vec other;
                 if constexpr (Symmetric)
                   other = load(t.column.scale + j) * t.row.bias[row + r];
                 if constexpr (Labels) {
                   const auto same = load(t.column.label + j) ==
                                     broadcast(t.row.label[row + r]);
                   factor = same ? factor * t.row.same[row + r] : factor;
                   if constexpr (Symmetric)
                     other = same ? other * load(t.column.same + j) : other;
                 }
                 if constexpr (Symmetric) factor += other;
                 Vec g = exp2_bounded(acc[r][c]) * factor;
                 if constexpr (Exclude) {
                   const IntVec own =
                       broadcast(t.row.self[row + r] - static_cast<int32_t>(j));
                   g = lane_numbers() == own ? Vec{} : g;
                 }
                 acc[r][c] = g;
               }
               keep_gradient(t, row, column, acc);
             });
}

// 2^(x - lse), at most 1: above that are only roundings and keys that the row
// leaves out, which are taken away later.
S3H_INLINE Vec share(Vec x, Vec lse, Vec lse_rest) {
  const Vec below = (x - lse) - lse_rest;
  return exp2_any(below > 0.0f ? Vec{} : below);
}

template <bool Labels, bool Exclude, bool Symmetric>
void backward_exact(const Tile& t) {
  for_micro_tiles<true>(
      t, [&](int64_t row, int64_t column,
             Vec(&acc)[kRows][kVecs]) __attribute__((always_inline)) {
        S3H_UNROLL for (int r = 0; r < kRows; ++r)
            S3H_UNROLL for (int c = 0; c < kVecs; ++c) {
          const int64_t j = column + c * kLanes;
          Vec x = acc[r][c];
          Vec y = x;
          if constexpr (Labels) {
            const auto same =
                load(t.column.label + j) == broadcast(t.row.label[row + r]);
            if constexpr (Symmetric) y = same ? x + load(t.column.same + j) : x;
            x = same ? x + t.row.same[row + r] : x;
          }
          x = x + load(t.column.bias + j);
          Vec g = share(x, broadcast(t.row.lse[row + r]),
                        broadcast(t.row.lse_rest[row + r])) *
                  t.row.grad[row + r];
          if constexpr (Symmetric) {
            y = y + t.row.bias[row + r];
            g += share(y, load(t.column.lse + j), load(t.column.lse_rest + j)) *
                 load(t.column.grad + j);
          }
          if constexpr (Exclude) {
            const IntVec own =
                broadcast(t.row.self[row + r] - static_cast<int32_t>(j));
            g = lane_numbers() == own ? Vec{} : g;
          }
          acc[r][c] = g;
        }
        keep_gradient(t, row, column, acc);
      });
}

// Picks the instantiation of Pass<Labels, Exclude, Symmetric>.
#define S3H_DISPATCH(pass, tile, kind)                     \
  switch ((kind.labels ? 4 : 0) + (kind.exclude ? 2 : 0) + \
          (kind.symmetric ? 1 : 0)) {                      \
    case 0:                                                \
      return pass<false, false, false>(tile);              \
    case 1:                                                \
      return pass<false, false, true>(tile);               \
    case 2:                                                \
      return pass<false, true, false>(tile);               \
    case 3:                                                \
      return pass<false, true, true>(tile);                \
    case 4:                                                \
      return pass<true, false, false>(tile);               \
    case 5:                                                \
      return pass<true, false, true>(tile);                \
    case 6:                                                \
      return pass<true, true, false>(tile);                \
    default:                                               \
      return pass<true, true, true>(tile);                 \
  }

void forward(const Tile& tile, TileKind kind) {
  if (kind.exact) {
    S3H_DISPATCH(forward_exact, tile, kind)
  }
  S3H_DISPATCH(forward_fast, tile, kind)
}

void backward(const Tile& tile, TileKind kind) {
  if (kind.exact) {
    S3H_DISPATCH(backward_exact, tile, kind)
  }
  S3H_DISPATCH(backward_fast, tile, kind)
}

// One column group, Width vectors wide: Rows x Width accumulators.
template <int Width, int Rows>
void apply_group(const Apply& a, int64_t column) {
  for (int64_t row = 0; row < a.count; row += Rows) {
    const float* g = a.g + row * a.row_stride;
    float* out = a.out + row * a.out_ld + column;
    Vec acc[Rows][Width];
    S3H_UNROLL for (int r = 0; r < Rows; ++r)
        S3H_UNROLL for (int c = 0; c < Width; ++c) acc[r][c] = Vec{};
    // The loads at the end would be waited for.
    if (a.accumulate)
      S3H_UNROLL for (int r = 0; r < Rows; ++r)
          S3H_UNROLL for (int c = 0; c < Width; ++c)
              __builtin_prefetch(out + r * a.out_ld + c * kLanes, 1);
    for (int64_t t = 0; t < a.steps; ++t) {
      const float* from = a.rows + t * a.rows_ld + column;
      Vec b[Width];
      S3H_UNROLL for (int c = 0; c < Width; ++c) b[c] = load(from + c * kLanes);
      S3H_UNROLL for (int r = 0; r < Rows; ++r) {
        const Vec scale = broadcast(g[r * a.row_stride + t * a.step_stride]);
        S3H_UNROLL for (int c = 0; c < Width; ++c) acc[r][c] =
            multiply_add(scale, b[c], acc[r][c]);
      }
    }
    // Added up by themselves first: long sums in sequence lose digits.
    S3H_UNROLL for (int r = 0; r < Rows; ++r)
        S3H_UNROLL for (int c = 0; c < Width; ++c) {
      float* at = out + r * a.out_ld + c * kLanes;
      store(at, a.accumulate ? load(at) + acc[r][c] : acc[r][c]);
    }
  }
}

void apply(const Apply& a) {
  int64_t left = a.width / kLanes;
  int64_t column = 0;
  while (left > 0) {
    // Widest first, but never a single vector left over: it would starve.
#if defined(__AVX512F__)
    const int64_t take = left == 5 ? 3 : left < 4 ? left : 4;
    switch (take) {
      case 4:
        apply_group<4, 6>(a, column);
        break;
      case 3:
        apply_group<3, 8>(a, column);
        break;
      case 2:
        apply_group<2, 12>(a, column);
        break;
      default:
        apply_group<1, 12>(a, column);
    }
#else
    const int64_t take = left == 4 ? 2 : left < 3 ? left : 3;
    switch (take) {
      case 3:
        apply_group<3, 4>(a, column);
        break;
      case 2:
        apply_group<2, 6>(a, column);
        break;
      default:
        apply_group<1, 12>(a, column);
    }
#endif
    column += take * kLanes;
    left -= take;
  }
}

}  // namespace

const TileKernels kTiles = {
    kLanes, kPanel, kPairs, &forward, &backward, &apply,
};

}  // namespace s3h::cpu::S3H_LEVEL
