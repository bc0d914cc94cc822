// The backward of the similarity kernels.
//
// scores_backward: O_r = sum_c G_rc v_c / temperature for its rows, with
//   G_rc = [rows carry a gradient] g_r e^(x_rc - lse_r) +
//          [columns carry one] g_c e^(x_cr - lse_c),
//   scores recomputed. Queries, keys and the symmetric case are the same kernel
//   with the sides exchanged; a block owns its outputs, so nothing is added
//   across blocks but, where columns are split, partial outputs in fixed order.
//   There is no other mode: fast is deterministic. A depth above 128 is cut
//   into output chunks, each of which recomputes the scores; the chunk that a
//   block writes comes last in each tile, so that it is still there.
#pragma once

#include "similarity_tiles.cuh"

namespace s3h::cuda {

// g e^(x - lse); nothing for a row without keys. x is not above lse but by
// rounding, or where the row leaves the key out.
__device__ inline float share_of(float x, float lse, float grad) {
  return lse == -kInfinity
             ? 0.f
             : exp2_fast(((x > lse ? lse : x) - lse) * kLog2e) * grad;
}

// g e^-lse, of |lse| in bounds.
template <typename Type>
__device__ inline float weight_of(float lse, float grad) {
  return exp_of<Type>(-lse) * grad;
}

// Dot products to G, for any options.
template <typename Type>
__device__ inline void to_weights(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors, int64_t first_row,
    int64_t first_column) {
  using T = Tile<Type>;
  const bool labels = a.rows.labels && a.columns.labels;
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      forget_loads();
      const int r = own_row<Type>(f, h);
      const int64_t i = first_row + r;
      const Entry row = entry_of(*shared.rows, a.rows, a.same_value, r);
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = 8 * n + 2 * (lane_index() & 3) + e;
          const int64_t j = first_column + c;
          const Entry column =
              entry_of(column_vectors, a.columns, a.same_value, c);
          // To the last bit what the forward saw: lse is this number where one
          // key outweighs all others.
          const float x = score_of<Type>(a, scores[f][n][2 * h + e]);
          const bool same =
              labels && row.label >= 0 && row.label == column.label;
          float weight = 0.f;
          if (a.rows.grad && !(same && row.same == -kInfinity))
            weight += share_of(x + column.bias + (same ? row.same : 0.f),
                               row.lse, row.grad);
          if (a.columns.grad && !(same && column.same == -kInfinity))
            weight += share_of(x + row.bias + (same ? column.same : 0.f),
                               column.lse, column.grad);
          const bool excluded = j >= a.columns.matrix.count || j == row.self ||
                                i == column.self || (a.symmetric && j == i);
          scores[f][n][2 * h + e] = excluded ? 0.f : weight;
        }
    }
}

// The same where no pair is special and every |lse| is bounded: no x is above
// its lse, e^x and e^-lse are numbers of their own, and one exponential serves
// both terms,
//   G_rc = e^x (g_r e^-lse_r + g_c e^-lse_c).
template <typename Type>
__device__ inline void to_weights_bounded(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors,
    const float (&row_weights)[Tile<Type>::kRowFragments][2]) {
  using T = Tile<Type>;
  if (a.columns.grad) {
    for (int c = lane_index(); c < T::kColumns; c += 32)
      shared.weights[c] =
          weight_of<Type>(column_vectors.lse[c], column_vectors.grad[c]);
    warp_barrier();
  }
#pragma unroll
  for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int c = 8 * n + 2 * (lane_index() & 3) + e;
      const float weight = a.columns.grad ? shared.weights[c] : 0.f;
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& x = scores[f][n][2 * h + e];
          x = exp_of<Type>(score_of<Type>(a, x)) * (row_weights[f][h] + weight);
        }
    }
  warp_barrier();  // the next tile's weights come to the same place
}

// Weights of 16 bits with float16's short range: each row has a power of two
// that takes its largest weight so far near 2^8, and the outputs with it.
template <typename Type>
struct RowScales {
  static constexpr int kTarget = 8;
  static constexpr int kSmallest = -100;
  int exponents[Tile<Type>::kRowFragments][2];

  __device__ void reset() {
    for (auto& fragment : exponents)
      for (int& exponent : fragment) exponent = kSmallest;
  }

  __device__ void apply(typename Tile<Type>::Scores& weights,
                        typename Tile<Type>::Outputs& outputs) {
    using T = Tile<Type>;
#pragma unroll
    for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float largest = 0.f;
#pragma unroll
        for (int n = 0; n < T::kColumnFragments; ++n)
          largest =
              max_of(largest, max_of(magnitude(weights[f][n][2 * h]),
                                     magnitude(weights[f][n][2 * h + 1])));
        largest = max_of(largest, shuffle_xor(largest, 1));
        largest = max_of(largest, shuffle_xor(largest, 2));
        const int before = exponents[f][h];
        const int needed = exponent_of(largest);
        const bool grows = needed > before + 6;  // 2^15 is the limit
        if (warp_any(grows)) {
          exponents[f][h] = grows ? needed : before;
          const int shift = before - exponents[f][h];
          const float factor = power_of_two(shift < -126 ? -126 : shift);
#pragma unroll
          for (int n = 0; n < T::kOutputFragments; ++n) {
            outputs[f][n][2 * h] *= factor;
            outputs[f][n][2 * h + 1] *= factor;
          }
        }
        const float scale = power_of_two(kTarget - exponents[f][h]);
#pragma unroll
        for (int n = 0; n < T::kColumnFragments; ++n) {
          weights[f][n][2 * h] *= scale;
          weights[f][n][2 * h + 1] *= scale;
        }
      }
  }

  // What outputs are to be multiplied with at the end.
  __device__ float undo(int f, int h) const {
    return power_of_two(exponents[f][h] - kTarget);
  }
};

// Whether a thread's part of the vectors [first, last) has an lse that is out
// of bounds.
__device__ inline void find_beyond(const Side& side, int64_t first,
                                   int64_t last, bool& beyond) {
  if (!side.grad) return;
  if (last > side.matrix.count) last = side.matrix.count;
#pragma unroll 4
  for (int64_t i = first + thread_x(); i < last; i += kThreads)
    beyond = beyond || !(magnitude(side.lse[i]) <= kMostLog);
}

template <typename Type, bool kOneChunk>
__global__ void __launch_bounds__(kThreads, 2)
    scores_backward(ScoreArguments a, BackwardOutputs out) {
  using T = Tile<Type>;
  const Shared<Type> shared(kOneChunk ? 1 : a.chunks, kOneChunk ? 2 : a.stages);
  const int64_t first_row = static_cast<int64_t>(block_x()) * T::kRows;
  const int chunk = block_z();
  const int elements = chunk_elements(a.rows.matrix.depth, chunk);
  typename T::Outputs outputs = {};
  int64_t begin, end;
  share_of_tiles<Type>(a, 0, begin, end);
  bool beyond = !a.bounded;
  if (a.bounded) {
    find_beyond(a.rows, first_row, first_row + T::kRows, beyond);
    find_beyond(a.columns, begin * T::kColumns, end * T::kColumns, beyond);
  }
  const bool bounded = a.bounded && !block_any(shared, beyond);
  float row_weights[T::kRowFragments][2] = {};
  if (bounded && a.rows.grad) {
#pragma unroll
    for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i = first_row + own_row<Type>(f, h);
        if (i < a.rows.matrix.count)
          row_weights[f][h] = weight_of<Type>(
              a.rows.lse[i], a.rows.grad[i] * a.rows.correction[i]);
      }
  }
  [[maybe_unused]] RowScales<Type> scales;
  if constexpr (Type::kNarrow) scales.reset();

  for_each_tile<Type, kOneChunk>(
      a, shared, first_row, begin, end, chunk,
      [&](typename T::Scores& weights, const unsigned char* columns,
          const typename Shared<Type>::Columns& vectors, int64_t first_column) {
        if (bounded && is_plain<Type>(a, first_row, first_column))
          to_weights_bounded<Type>(weights, a, shared, vectors, row_weights);
        else
          to_weights<Type>(weights, a, shared, vectors, first_row,
                           first_column);
        if constexpr (Type::kNarrow) scales.apply(weights, outputs);
        multiply_outputs<Type>(outputs, weights, columns, elements);
      });

  copies_wait<0>();
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int64_t i = first_row + own_row<Type>(f, h);
      if (i >= a.rows.matrix.count) continue;
      float factor = a.inverse_temperature;
      if constexpr (Type::kNarrow) factor *= scales.undo(f, h);
      const int64_t at =
          i * a.rows.matrix.depth + static_cast<int64_t>(chunk) * kChunk;
      auto* to = static_cast<typename T::Stored*>(out.gradient) + at;
      const int64_t part =
          block_y() * a.rows.matrix.count * a.rows.matrix.depth + at;
#pragma unroll
      for (int n = 0; n < T::kOutputFragments; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int d = 8 * n + 2 * (lane_index() & 3) + e;
          if (d >= elements) continue;
          const float value = outputs[f][n][2 * h + e] * factor;
          if (grid_y() == 1)
            to[d] = from_float<Type>(value);
          else
            out.parts[part + d] = value;
        }
    }
}

}  // namespace s3h::cuda
