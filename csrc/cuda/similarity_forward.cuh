// The forward of the similarity kernels.
//
// scores_forward: log-sum-exp of whole rows. Each thread keeps maximum and sum
//   of its own columns, the four threads of a row meet once at the end. With
//   few rows the columns are split among blocks, whose (maximum, sum) pairs a
//   second kernel merges in fixed order: the same bits on every run. Where x is
//   expected to be bounded, sums are taken without a maximum, and a block with
//   a row whose sum comes out too large or too small starts again with one.
// triangle_forward: the symmetric case with x expected to be bounded: tiles on
//   and above the diagonal, e^x without a shift, row sums in registers, column
//   sums by shuffles within a warp; both end in atomic additions to one float
//   per row, in no fixed order. scores_forward follows: it takes the logarithms
//   and does the rows again that are out of bounds. The deterministic mode
//   takes it alone.
#pragma once

#include "similarity_tiles.cuh"

namespace s3h::cuda {

__device__ inline float finite_or_zero(float x) {
  return magnitude(x) < kInfinity ? x : 0.f;
}

// Takes a sum of e^(x - from) to one of e^(x - to), to >= from. An empty sum
// has from = -inf; an infinite maximum stands for no shift.
__device__ inline float rescale(float from, float to) {
  return from == -kInfinity
             ? 0.f
             : exp2_fast((finite_or_zero(from) - finite_or_zero(to)) * kLog2e);
}

// Adds values of lanes a multiple of 4 apart: lane l ends with the sums of
// index kCount / 8 * (l / 4) and following, at the front.
template <int kCount, int kMask = 16, int kSize>
__device__ inline void sum_over_rows(float (&values)[kSize]) {
  constexpr int kHalf = kCount / 2;
  const bool upper = (lane_index() & kMask) != 0;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const float keep = upper ? values[i + kHalf] : values[i];
    const float send = upper ? values[i] : values[i + kHalf];
    values[i] = keep + shuffle_xor(send, kMask);
  }
  if constexpr (kMask > 4) sum_over_rows<kHalf, kMask / 2>(values);
}

// Turns dot products into x_ij of the rows' view, -inf where excluded.
template <typename Type, bool kPlain>
__device__ inline void to_exponents(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors, int64_t first_row,
    int64_t first_column) {
  using T = Tile<Type>;
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      [[maybe_unused]] const Entry row =
          entry_of<kPlain>(*shared.rows, own_row<Type>(f, h));
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = scores[f][n][2 * h + e];
          x = score_of<Type>(a, x);
          if constexpr (!kPlain) {
            const int c = 8 * n + 2 * (lane_index() & 3) + e;
            x += column_vectors.bias[c];
            if (row.label == column_vectors.labels[c])
              x = row.same == -kInfinity ? -kInfinity : x + row.same;
          }
        }
    }
  leave_out<Type, false, kPlain>(scores, a, shared, column_vectors, first_row,
                                 first_column, -kInfinity);
}

// Where all numbers are bounded: adds e^x of a tile's pairs to the sums of its
// rows, and of the triangle to those of its columns, all of a thread's own.
template <typename Type, bool kTriangle, bool kPlain>
__device__ inline void add_powers(
    const typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors,
    float (&row_sums)[Tile<Type>::kRowFragments][2],
    float (&column_sums)[2 * Tile<Type>::kColumnFragments]) {
  using T = Tile<Type>;
  [[maybe_unused]] Role rows[T::kRowFragments][2];
  float parts[T::kRowFragments][2] = {};
  if constexpr (!kPlain)
#pragma unroll
    for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h)
        rows[f][h] = role_of(*shared.rows, own_row<Type>(f, h));
#pragma unroll
  for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      [[maybe_unused]] Role column;
      if constexpr (!kPlain)
        column = role_of(column_vectors, 8 * n + 2 * (lane_index() & 3) + e);
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const float power = power_of_dot<Type>(a, scores[f][n][2 * h + e]);
          if constexpr (kPlain) {
            parts[f][h] += power;
            if constexpr (kTriangle) column_sums[2 * n + e] += power;
          } else {
            const Role& row = rows[f][h];
            const bool same = row.label == column.label;
            parts[f][h] += power * row.asks(same, column);
            if constexpr (kTriangle)
              column_sums[2 * n + e] += power * column.asks(same, row);
          }
        }
    }
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) row_sums[f][h] += parts[f][h];
}

// The log-sum-exps of the block's rows, or of its share of the columns, by the
// running maximum if `shifted`; else returns whether that is called for.
template <typename Type, Depth kDepth, bool kPlain>
__device__ inline bool sum_rows_of_block(const ScoreArguments& a,
                                         const ForwardOutputs& out,
                                         const Shared<Type>& shared,
                                         bool shifted) {
  using T = Tile<Type>;
  using Bounded = BoundedOf<Type>;
  using Columns = typename Shared<Type>::Columns;
  const Shared<Bounded> own(a.chunks, a.stages);
  const int64_t first_row = static_cast<int64_t>(block_x()) * T::kRows;
  clear_short_rows(own);
  float top[T::kRowFragments][2], sum[T::kRowFragments][2];
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[f][h] = shifted ? -kInfinity : 0.f;
      sum[f][h] = 0.f;
    }

  int begin, end;
  share_of_tiles<Type>(a, 0, begin, end);
  if (shifted)
    for_each_tile<Type, T::kSplit ? Depth::kAny : kDepth, kPlain>(
        a, shared, first_row, begin, end, a.chunks - 1, false, 1.f,
        [&](typename T::Scores& x, const unsigned char*, const Columns& vectors,
            int64_t first_column) {
          to_exponents<Type, kPlain>(x, a, shared, vectors, first_row,
                                     first_column);
#pragma unroll
          for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              float now = top[f][h];
#pragma unroll
              for (int n = 0; n < T::kColumnFragments; ++n)
                now = max_of(now, max_of(x[f][n][2 * h], x[f][n][2 * h + 1]));
              const float shift = finite_or_zero(now);
              sum[f][h] *= rescale(top[f][h], now);
              top[f][h] = now;
              float part = 0.f;
#pragma unroll
              for (int n = 0; n < T::kColumnFragments; ++n)
                part += exp_of<Type>(x[f][n][2 * h] - shift) +
                        exp_of<Type>(x[f][n][2 * h + 1] - shift);
              sum[f][h] += part;
            }
        });
  else
    for_each_tile<Bounded, kDepth, kPlain>(
        a, own, first_row, begin, end, a.chunks - 1, true, 1.f,
        [&](typename T::Scores& x, const unsigned char*, const Columns& vectors,
            int64_t first_column) {
          leave_out<Bounded, false, kPlain>(x, a, own, vectors, first_row,
                                            first_column, kNoDot);
          float unused[2 * T::kColumnFragments];
          add_powers<Bounded, false, kPlain>(x, a, own, vectors, sum, unused);
        });

  copies_wait<0>();
  bool beyond = had_short_rows(own);
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float m = top[f][h], s = sum[f][h];
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        const float other_m = shuffle_xor(m, mask);
        const float other_s = shuffle_xor(s, mask);
        const float both = max_of(m, other_m);
        s = s * rescale(m, both) + other_s * rescale(other_m, both);
        m = both;
      }
      const int64_t i = first_row + own_row<Type>(f, h);
      if (i >= a.rows.matrix.count) continue;
      beyond = beyond || !in_bounds(s, a.most_sum);
      if ((lane_index() & 3) != 0) continue;
      if (grid_y() == 1) {
        write_logarithm(out.lse + i, out.correction + i, m, s);
      } else {
        const int64_t at = block_y() * a.rows.matrix.count + i;
        out.tops[at] = m;
        out.sums[at] = s;
      }
    }
  return !shifted && block_any(shared, beyond);
}

template <typename Type, Depth kDepth, bool kPlain>
__global__ void __launch_bounds__(kThreads, 2)
    scores_forward(ScoreArguments a, ForwardOutputs out) {
  const Shared<Type> shared(a.chunks, a.stages);
  bool shifted = !a.bounded;
  if (out.summed) {
    const int64_t i =
        static_cast<int64_t>(block_x()) * Tile<Type>::kRows + thread_x();
    const bool own = thread_x() < Tile<Type>::kRows && i < a.rows.matrix.count;
    const float sum = own ? out.sums[i] : 1.f;
    if (own) write_logarithm(out.lse + i, out.correction + i, 0.f, sum);
    if (!block_any(shared, !in_bounds(sum, a.most_sum))) return;
    shifted = true;
  }
  while (sum_rows_of_block<Type, kDepth, kPlain>(a, out, shared, shifted))
    shifted = true;
}

template <typename Type, Depth kDepth, bool kPlain>
__global__ void __launch_bounds__(kThreads, 2)
    triangle_forward(ScoreArguments a, ForwardOutputs out) {
  using Bounded = BoundedOf<Type>;
  using T = Tile<Bounded>;
  const Shared<Bounded> shared(a.chunks, a.stages);
  const int64_t first_row = static_cast<int64_t>(block_x()) * T::kRows;
  float row_sums[T::kRowFragments][2] = {};

  using Columns = typename Shared<Bounded>::Columns;
  const auto add_tile = [&](const typename T::Scores& x, const Columns& vectors,
                            int64_t first_column) {
    float column_sums[2 * T::kColumnFragments] = {};
    add_powers<Bounded, true, kPlain>(x, a, shared, vectors, row_sums,
                                      column_sums);
    sum_over_rows<2 * T::kColumnFragments>(column_sums);
    constexpr int kLeft = T::kColumnFragments / 4;
#pragma unroll
    for (int i = 0; i < kLeft; ++i) {
      const int index = kLeft * (lane_index() >> 2) + i;
      const int64_t j = first_column + 8 * (index >> 1) +
                        2 * (lane_index() & 3) + (index & 1);
      if (j < a.columns.matrix.count) atomic_add(out.sums + j, column_sums[i]);
    }
  };

  int begin, end;
  share_of_tiles<Bounded>(a, first_row / T::kColumns, begin, end);
  if constexpr (kDepth == Depth::kWhole && !T::kWide) {
    // The rows stay in registers. No branch lies between products and
    // exponentials, which run beside the products of other columns: a pair that
    // does not count begins at -inf.
    LeftRows<Bounded> rows;
    for_each_tile_of_one_chunk<Bounded, true, kPlain>(
        a, shared, first_row, begin, end, kChunk, true, 1.f,
        [&] {
          block_barrier();  // everyone's copies are there
          rows.load(shared.row_tiles);
        },
        [&](const unsigned char* columns, int tile) {
          const Columns& vectors = shared.columns[tile & 1];
          const int64_t first_column = static_cast<int64_t>(tile) * T::kColumns;
          typename T::Scores x = {};
          leave_out<Bounded, true, kPlain>(x, a, shared, vectors, first_row,
                                           first_column, -kInfinity);
          multiply_scores<Bounded>(x, rows, columns);
          add_tile(x, vectors, first_column);
        });
  } else {
    for_each_tile<Bounded, kDepth, kPlain>(
        a, shared, first_row, begin, end, a.chunks - 1, true, 1.f,
        [&](typename T::Scores& x, const unsigned char*, const Columns& vectors,
            int64_t first_column) {
          leave_out<Bounded, true, kPlain>(x, a, shared, vectors, first_row,
                                           first_column, kNoDot);
          add_tile(x, vectors, first_column);
        });
  }

  copies_wait<0>();
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float s = row_sums[f][h];
      s += shuffle_xor(s, 1);
      s += shuffle_xor(s, 2);
      const int64_t i = first_row + own_row<Bounded>(f, h);
      if ((lane_index() & 3) == 0 && i < a.rows.matrix.count)
        atomic_add(out.sums + i, s);
    }
}

}  // namespace s3h::cuda
