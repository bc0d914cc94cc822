// Compiled once per instruction set, see level.h.
//
// Fast: every score is known to lie in a range where 2^score is a normal
// number, so biases are factors and no shift is needed. Exact: each lane keeps
// its own running maximum, merged by the caller; a row needs one exponential
// more per micro-tile, and symmetric column sums need a second set.
#include "similarity_tiles.h"

#include "similarity_micro_tiles.h"
#include "vec.h"

#if defined(S3H_TILE_UNIT)
#include "similarity_tile_unit.h"
#endif

namespace s3h::cpu::S3H_LEVEL {
namespace {

constexpr float kInfinity = __builtin_inff();

enum class Labels { kNone, kBias, kApart };

// True in the lanes whose key has the row's label.
S3H_INLINE IntVec same_label(const Tile& t, int64_t row, int64_t column) {
  return load(t.column.label + column) == broadcast(t.row.label[row]);
}

// True in the lane of the key that the row must not see.
S3H_INLINE IntVec left_out(const Tile& t, int64_t row, int64_t column) {
  return lane_numbers() ==
         broadcast(t.row.self[row] - static_cast<int32_t>(column));
}

template <Labels kLabels, bool Exclude, bool Symmetric>
void forward_fast(const Tile& t) {
  for_micro_tiles<false>(
      t, [&]<int Vecs>(int64_t row, int64_t column, Vec(&acc)[kRows][Vecs])
             __attribute__((always_inline)) {
               // Summed separately first: long sequential sums lose
               // precision.
               Vec sums[Vecs] = {};
               S3H_UNROLL for (int r = 0; r < kRows; ++r) {
                 Vec sum = {}, own = {};
                 S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
                   const int64_t j = column + c * kLanes;
                   Vec e = acc[r][c];
                   if constexpr (Exclude)
                     e = left_out(t, row + r, j) ? Vec{} : e;
                   Vec row_term = e;
                   if constexpr (kLabels != Labels::kNone) {
                     const auto same = same_label(t, row + r, j);
                     if constexpr (kLabels == Labels::kApart) {
                       own += (same ? e : Vec{}) * load(t.column.bias + j);
                       row_term = same ? Vec{} : e;
                     } else {
                       row_term = same ? e * t.row.same[row + r] : e;
                     }
                     if constexpr (Symmetric)
                       e = same ? e * load(t.column.same + j) : e;
                   }
                   sum += row_term * load(t.column.bias + j);
                   if constexpr (Symmetric) sums[c] += e * t.row.bias[row + r];
                 }
                 float* sum_at = t.row_sum + (row + r) * kLanes;
                 store(sum_at, load(sum_at) + sum);
                 if constexpr (kLabels == Labels::kApart) {
                   float* own_at = t.own_sum + (row + r) * kLanes;
                   store(own_at, load(own_at) + own);
                 }
               }
               if constexpr (Symmetric)
                 S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
                   float* sum_at = t.column_sum + column + c * kLanes;
                   store(sum_at, load(sum_at) + sums[c]);
                 }
             });
}

// Adds scores to a sum of exponentials with a running maximum.
template <int Count>
S3H_INLINE void add_scores(const Vec (&scores)[Count], float* max_at,
                           float* sum_at) {
  const Vec before = load(max_at);
  Vec top = before;
  S3H_UNROLL for (int i = 0; i < Count; ++i) top = max_or_first(top, scores[i]);
  Vec sum = {};
  S3H_UNROLL for (int i = 0; i < Count; ++i) sum += exp2_any(scores[i] - top);
  store(max_at, top);
  store(sum_at, load(sum_at) * exp2_any(before - top) + sum);
}

template <Labels kLabels, bool Exclude, bool Symmetric>
void forward_exact(const Tile& t) {
  for_micro_tiles<true>(
      t, [&]<int Vecs>(int64_t row, int64_t column, Vec(&acc)[kRows][Vecs])
             __attribute__((always_inline)) {
               const Vec none = broadcast(-kInfinity);
               // Exclusions and same-label terms once; the key's bias for
               // each side below.
               Vec flipped[Vecs][kRows];
               Vec own[kRows][Vecs];
               S3H_UNROLL for (int r = 0; r < kRows; ++r)
                   S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
                 const int64_t j = column + c * kLanes;
                 Vec x = acc[r][c];
                 if constexpr (Exclude) x = left_out(t, row + r, j) ? none : x;
                 Vec y = x;
                 if constexpr (kLabels != Labels::kNone) {
                   const auto same = same_label(t, row + r, j);
                   if constexpr (Symmetric)
                     y = same ? x + load(t.column.same + j) : x;
                   if constexpr (kLabels == Labels::kApart) {
                     own[r][c] = (same ? x : none) + load(t.column.bias + j);
                     x = same ? none : x;
                   } else {
                     x = same ? x + t.row.same[row + r] : x;
                   }
                 }
                 acc[r][c] = x + load(t.column.bias + j);
                 if constexpr (Symmetric)
                   flipped[c][r] = y + t.row.bias[row + r];
               }
               S3H_UNROLL for (int r = 0; r < kRows; ++r) {
                 const int64_t at = (row + r) * kLanes;
                 add_scores(acc[r], t.row_max + at, t.row_sum + at);
                 if constexpr (kLabels == Labels::kApart)
                   add_scores(own[r], t.own_max + at, t.own_sum + at);
               }
               if constexpr (Symmetric)
                 S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
                   const int64_t at = column + c * kLanes;
                   add_scores(flipped[c], t.column_max + at, t.column_sum + at);
                 }
             });
}

#if !defined(S3H_TILE_UNIT)

// Stores the gradient of one row of a micro-tile, in the layout that `apply`
// broadcasts from.
template <int Vecs>
S3H_INLINE void keep_gradient(const Tile& t, int64_t row, int64_t column,
                              const Vec (&g)[kRows][Vecs]) {
#if defined(__AVX512BF16__)
  // For the queries, neighbours in a row make a pair; for the keys, neighbours
  // in a column, interleaved from two rows.
  alignas(64) static constexpr uint16_t kInterleave[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i interleave = _mm512_load_si512(kInterleave);
  S3H_UNROLL for (int r = 0; r < kRows; ++r) {
    float* at = t.gradient + (row + r) * t.gradient_ld + column / 2;
    if constexpr (Vecs > 1) {
      const __m512bh both = _mm512_cvtne2ps_pbh(g[r][1], g[r][0]);
      std::memcpy(at, &both, sizeof both);
    }
    if constexpr (Vecs != 2) {
      const __m256bh last = _mm512_cvtneps_pbh(g[r][Vecs - 1]);
      std::memcpy(at + (Vecs - 1) / 2 * kLanes, &last, sizeof last);
    }
  }
  S3H_UNROLL for (int r = 0; r < kRows; r += 2) {
    float* at = t.gradient_pairs + (row + r) / 2 * t.gradient_pairs_ld + column;
    S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
      const __m512bh both = _mm512_cvtne2ps_pbh(g[r + 1][c], g[r][c]);
      const __m512i pairs = _mm512_permutexvar_epi16(interleave, (__m512i)both);
      _mm512_storeu_si512(at + c * kLanes, pairs);
    }
  }
#else
  S3H_UNROLL for (int r = 0; r < kRows; ++r)
      S3H_UNROLL for (int c = 0; c < Vecs; ++c)
          store(t.gradient + (row + r) * t.gradient_ld + column + c * kLanes,
                g[r][c]);
#endif
}

#endif

template <Labels kLabels, bool Exclude, bool Symmetric>
void backward_fast(const Tile& t) {
  for_micro_tiles<false>(
      t, [&]<int Vecs>(int64_t row, int64_t column, Vec(&acc)[kRows][Vecs])
             __attribute__((always_inline)) {
               S3H_UNROLL for (int r = 0; r < kRows; ++r)
                   S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
                 const int64_t j = column + c * kLanes;
                 Vec factor = load(t.column.bias + j) * t.row.scale[row + r];
                 Vec other;
                 if constexpr (Symmetric)
                   other = load(t.column.scale + j) * t.row.bias[row + r];
                 if constexpr (kLabels != Labels::kNone) {
                   const auto same = same_label(t, row + r, j);
                   factor = same ? factor * t.row.same[row + r] : factor;
                   if constexpr (Symmetric)
                     other = same ? other * load(t.column.same + j) : other;
                 }
                 if constexpr (Symmetric) factor += other;
                 Vec g = acc[r][c] * factor;
                 if constexpr (Exclude) g = left_out(t, row + r, j) ? Vec{} : g;
                 acc[r][c] = g;
               }
               keep_gradient(t, row, column, acc);
             });
}

// 2^(x - lse), at most 1: only rounding errors exceed that, and keys that the
// row must not see, which are subtracted later.
S3H_INLINE Vec share(Vec x, Vec lse, Vec lse_rest) {
  const Vec below = (x - lse) - lse_rest;
  return exp2_any(below > 0.0f ? Vec{} : below);
}

template <Labels kLabels, bool Exclude, bool Symmetric>
void backward_exact(const Tile& t) {
  for_micro_tiles<true>(
      t, [&]<int Vecs>(int64_t row, int64_t column,
                       Vec(&acc)[kRows][Vecs]) __attribute__((always_inline)) {
        S3H_UNROLL for (int r = 0; r < kRows; ++r)
            S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
          const int64_t j = column + c * kLanes;
          Vec x = acc[r][c];
          Vec y = x;
          Vec lse = broadcast(t.row.lse[row + r]);
          Vec rest = broadcast(t.row.lse_rest[row + r]);
          Vec grad = broadcast(t.row.grad[row + r]);
          if constexpr (kLabels != Labels::kNone) {
            const auto same = same_label(t, row + r, j);
            if constexpr (Symmetric) y = same ? x + load(t.column.same + j) : x;
            if constexpr (kLabels == Labels::kApart) {
              lse = same ? broadcast(t.row.own_lse[row + r]) : lse;
              rest = same ? broadcast(t.row.own_lse_rest[row + r]) : rest;
              grad = same ? -grad : grad;
            } else {
              x = same ? x + t.row.same[row + r] : x;
            }
          }
          x = x + load(t.column.bias + j);
          Vec g = share(x, lse, rest) * grad;
          if constexpr (Symmetric) {
            y = y + t.row.bias[row + r];
            g += share(y, load(t.column.lse + j), load(t.column.lse_rest + j)) *
                 load(t.column.grad + j);
          }
          if constexpr (Exclude) g = left_out(t, row + r, j) ? Vec{} : g;
          acc[r][c] = g;
        }
        keep_gradient(t, row, column, acc);
      });
}

// Picks the instantiation of pass<Labels, Exclude, Symmetric>.
#define S3H_DISPATCH(pass, tile, kind)                                 \
  switch ((kind.labels ? 4 : 0) + (kind.exclude ? 2 : 0) +             \
          (kind.symmetric ? 1 : 0)) {                                  \
    case 0:                                                            \
      return pass<Labels::kNone, false, false>(tile);                  \
    case 1:                                                            \
      return pass<Labels::kNone, false, true>(tile);                   \
    case 2:                                                            \
      return pass<Labels::kNone, true, false>(tile);                   \
    case 3:                                                            \
      return pass<Labels::kNone, true, true>(tile);                    \
    case 4:                                                            \
      if (kind.apart) return pass<Labels::kApart, false, false>(tile); \
      return pass<Labels::kBias, false, false>(tile);                  \
    case 5:                                                            \
      return pass<Labels::kBias, false, true>(tile);                   \
    case 6:                                                            \
      return pass<Labels::kBias, true, false>(tile);                   \
    default:                                                           \
      return pass<Labels::kBias, true, true>(tile);                    \
  }

void forward(const Tile& tile, TileKind kind) {
  if (kind.exact) {
    S3H_DISPATCH(forward_exact, tile, kind)
  }
  S3H_DISPATCH(forward_fast, tile, kind)
}

void backward_tiles(const Tile& tile, TileKind kind) {
  if (kind.exact) {
    S3H_DISPATCH(backward_exact, tile, kind)
  }
  // The factor for equal labels also serves for separate sums.
  kind.apart = false;
  S3H_DISPATCH(backward_fast, tile, kind)
}

void backward(const Tile& tile, TileKind kind) {
  backward_tiles(tile, kind);
#if defined(S3H_TILE_UNIT)
  if (tile.gradient_pairs != nullptr) fill_pairs(tile);
#endif
}

#if !defined(S3H_TILE_UNIT)

// One column group, Width vectors wide: Rows x Width accumulators.
template <int Width, int Rows>
void apply_group(const Apply& a, int64_t column) {
  for (int64_t row = 0; row < a.count; row += Rows) {
    const float* g = a.g + row * a.row_stride;
    float* out = a.out + row * a.out_ld + column;
    Vec acc[Rows][Width];
    S3H_UNROLL for (int r = 0; r < Rows; ++r)
        S3H_UNROLL for (int c = 0; c < Width; ++c) acc[r][c] = Vec{};
    // Loads at the end would stall.
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
    // Summed separately first: long sequential sums lose precision.
    S3H_UNROLL for (int r = 0; r < Rows; ++r)
        S3H_UNROLL for (int c = 0; c < Width; ++c) {
      float* at = out + r * a.out_ld + c * kLanes;
      store(at, a.accumulate ? load(at) + acc[r][c] : acc[r][c]);
    }
  }
}

void nothing() {}

void apply(const Apply& a) {
  int64_t left = a.width / kLanes;
  int64_t column = 0;
  while (left > 0) {
    // Widest first, but never leave a single vector: it would starve.
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

#endif

}  // namespace

const TileKernels kTiles = {
    kLanes,       kPanel,       kPairs,
#if defined(S3H_TILE_UNIT)
    true,         &shape_tiles, &release_tiles,
#else
    false,    &nothing,  &nothing,
#endif
    &forward,     &backward,    &apply,
#if defined(S3H_TILE_UNIT)
    &take_floats, &take_pairs,  &pair_rows,     &turn,
#else
    nullptr,  nullptr,   nullptr,  nullptr,
#endif
};

}  // namespace s3h::cpu::S3H_LEVEL
