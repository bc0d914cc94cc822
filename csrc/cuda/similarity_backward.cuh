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

// Dot products to G, for any numbers.
template <typename Type, bool kPlain>
__device__ inline void to_weights(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors, int64_t first_row,
    int64_t first_column) {
  using T = Tile<Type>;
  const int count = clamped<T::kColumns>(a.columns.matrix.count - first_column);
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      // Registers are full of sums: nothing is kept from one row to the next.
      forget_loads();
      int lane_column = 2 * (lane_index() & 3);
      forget_value(lane_column);
      const int r = own_row<Type>(f, h);
      const int64_t i = first_row + r;
      const Entry row = entry_of<kPlain>(*shared.rows, r);
      const int own =
          clamped<T::kColumns>((a.symmetric ? i : row.self) - first_column);
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = 8 * n + lane_column + e;
          const Entry column = entry_of<kPlain>(column_vectors, c);
          // To the last bit what the forward saw: lse is this number where one
          // key outweighs all others.
          const float x = score_of<Type>(a, scores[f][n][2 * h + e]);
          const bool same = !kPlain && row.label == column.label;
          float weight = 0.f;
          if (!(same && row.same == -kInfinity))
            weight += share_of(x + column.bias + (same ? row.same : 0.f),
                               row.lse, row.grad);
          if (!(same && column.same == -kInfinity))
            weight += share_of(x + row.bias + (same ? column.same : 0.f),
                               column.lse, column.grad);
          const bool excluded =
              c >= count || c == own || (!kPlain && i == column.self);
          scores[f][n][2 * h + e] = excluded ? 0.f : weight;
        }
    }
}

// The same where all numbers are bounded: no x is above its lse, and one
// exponential serves both terms,
//   G_rc = e^x (g_r e^-lse_r + g_c e^-lse_c),
// with neither bias nor labels.
template <typename Type>
__device__ inline void to_weights_plain(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors) {
  using T = Tile<Type>;
  float row_weights[T::kRowFragments][2];
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      row_weights[f][h] = shared.rows->weight[own_row<Type>(f, h)];
#pragma unroll
  for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float weight =
          column_vectors.weight[8 * n + 2 * (lane_index() & 3) + e];
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float& x = scores[f][n][2 * h + e];
          x = power_of_dot<Type>(a, x) * (row_weights[f][h] + weight);
        }
    }
}

// With them.
template <typename Type>
__device__ inline void to_weights_bounded(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors) {
  using T = Tile<Type>;
  Role rows[T::kRowFragments][2];
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      rows[f][h] = role_of(*shared.rows, own_row<Type>(f, h));
#pragma unroll
  for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const Role column =
          role_of(column_vectors, 8 * n + 2 * (lane_index() & 3) + e);
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const Role& row = rows[f][h];
          const bool same = row.label == column.label;
          float& x = scores[f][n][2 * h + e];
          x = power_of_dot<Type>(a, x) *
              (row.asks(same, column) + column.asks(same, row));
        }
    }
}

// Weights of 16 bits with float16's short range: each row has a power of two
// that takes its largest weight so far near 2^8, and the outputs with it.
template <typename Type>
struct RowScales {
  static constexpr int kTarget = 8;
  static constexpr int kSmallest = -100;
  // 16-bit rows leave no registers for the exponents: theirs are in shared
  // memory, written by one of a row's four threads before a barrier.
  int own[Tile<Type>::kRowFragments][2];
  int* rows;

  __device__ int exponent(int f, int h) const {
    if constexpr (Tile<Type>::kWide) return own[f][h];
    return rows[own_row<Type>(f, h)];
  }
  __device__ void set_exponent(int f, int h, int value) {
    if constexpr (Tile<Type>::kWide) {
      own[f][h] = value;
    } else {
      int lane = lane_index();
      forget_value(lane);  // a register less
      if ((lane & 3) == 0) rows[own_row<Type>(f, h)] = value;
    }
  }
  __device__ void wait() const {
    if constexpr (!Tile<Type>::kWide) warp_barrier();
  }

  __device__ void reset() {
#pragma unroll
    for (int f = 0; f < Tile<Type>::kRowFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) set_exponent(f, h, kSmallest);
  }

  __device__ void apply(typename Tile<Type>::Scores& weights,
                        typename Tile<Type>::Outputs& outputs) {
    using T = Tile<Type>;
    wait();
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
        const int before = exponent(f, h), needed = exponent_of(largest);
        const bool grows = needed > before + 6;  // 2^15 is the limit
        const int now = grows ? needed : before;
        if (warp_any(grows)) {
          set_exponent(f, h, now);
          const int shift = before - now;
          const float factor = power_of_two(shift < -126 ? -126 : shift);
#pragma unroll
          for (int n = 0; n < T::kOutputFragments; ++n) {
            outputs[f][n][2 * h] *= factor;
            outputs[f][n][2 * h + 1] *= factor;
          }
        }
        const float scale = power_of_two(kTarget - now);
#pragma unroll
        for (int n = 0; n < T::kColumnFragments; ++n) {
          weights[f][n][2 * h] *= scale;
          weights[f][n][2 * h + 1] *= scale;
        }
      }
  }

  // What outputs are to be multiplied with at the end.
  __device__ float undo(int f, int h) const {
    return power_of_two(exponent(f, h) - kTarget);
  }
};

// Whether a thread's part of the vectors [first, last) has a number that is out
// of bounds.
__device__ inline bool find_beyond(const ScoreArguments& a, const Side& side,
                                   int64_t first, int64_t last) {
  if (last > side.matrix.count) last = side.matrix.count;
  bool beyond = false;
  const auto look = [&](const auto* vector, const auto& bounded) {
    if (!vector) return;
#pragma unroll 4
    for (int64_t i = first + thread_x(); i < last; i += kThreads)
      beyond = beyond || !bounded(vector[i]);
  };
  if (side.grad)
    look(side.lse, [&](float lse) { return magnitude(lse) <= a.most_log; });
  look(side.bias, bias_bounded);
  look(side.same, bias_bounded);
  look(side.labels, label_bounded);
  return beyond;
}

// Whether the block finds no number that is.
template <typename Type>
__device__ inline bool is_bounded(const ScoreArguments& a,
                                  const Shared<Type>& shared, int64_t first_row,
                                  int begin, int end) {
  using T = Tile<Type>;
  if (!a.bounded) return false;
  const bool beyond =
      find_beyond(a, a.rows, first_row, first_row + T::kRows) ||
      find_beyond(a, a.columns, static_cast<int64_t>(begin) * T::kColumns,
                  static_cast<int64_t>(end) * T::kColumns);
  return !block_any(shared, beyond);
}

// Takes the scales from the outputs of pairs, zeros where rows were not what
// pairs are for: too short, or so long that a number is not finite. Returns
// whether there were none.
template <typename Type>
__device__ inline bool finish_pairs(const Shared<Type>& shared,
                                    const RowScales<Type>& scales,
                                    typename Tile<Type>::Outputs& outputs) {
  using T = Tile<Type>;
  bool beyond = had_short_rows(shared);
#pragma unroll
  for (int n = 0; n < T::kOutputFragments; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float& x = outputs[0][n][i];
      beyond = beyond || !(magnitude(x) < kInfinity);
      x *= scales.undo(0, i / 2) * (1.f / kPairScale);
    }
  if (!block_any(shared, beyond)) return true;
#pragma unroll
  for (auto& fragment : outputs[0])
#pragma unroll
    for (float& x : fragment) x = 0.f;
  return false;
}

// kPlain: a.plain. The general case has a loop of its own, for the registers.
template <typename Type, Depth kDepth, bool kPlain>
__global__ void __launch_bounds__(kThreads, 2)
    scores_backward(ScoreArguments a, BackwardOutputs out) {
  using T = Tile<Type>;
  constexpr bool kAny = kDepth == Depth::kAny, kWhole = kDepth == Depth::kWhole;
  const Shared<Type> shared(kAny ? a.chunks : 1, kAny ? a.stages : 2);
  const int64_t first_row =
      static_cast<int64_t>(block_x() + a.first_block) * T::kRows;
  const int chunk = kAny ? block_z() : 0;
  const int elements =
      kWhole ? kChunk : chunk_elements(a.rows.matrix.depth, chunk);
  typename T::Outputs outputs = {};
  int begin, end;
  share_of_tiles<Type>(a, 0, begin, end);
  using Bounded = BoundedOf<Type>;
  [[maybe_unused]] RowScales<Bounded> scales;
  scales.rows = shared.rows->exponent;
  if constexpr (Bounded::kNarrow) scales.reset();
  const auto multiply = [&]<typename Element>(typename T::Scores& weights,
                                              const unsigned char* columns) {
    if constexpr (Element::kNarrow) scales.apply(weights, outputs);
    multiply_outputs<Element>(outputs, weights, columns, elements);
  };
  using Columns = typename Shared<Type>::Columns;
  // 16-bit rows of another depth leave no registers for the factors of biases.
  constexpr bool kFactors = kPlain || kWhole || T::kWide;
  bool done = kFactors && is_bounded(a, shared, first_row, begin, end);
  if (done) {
    const Shared<Bounded> own(kAny ? a.chunks : 1, kAny ? a.stages : 2);
    clear_short_rows(own);
    for_each_tile<Bounded, kDepth, kPlain>(
        a, own, first_row, begin, end, chunk, true, 0.f,
        [&](typename T::Scores& weights, const unsigned char* columns,
            const Columns& vectors, int64_t first_column) {
          leave_out<Bounded, false, kPlain>(weights, a, own, vectors, first_row,
                                            first_column, kNoDot);
          if constexpr (kPlain)
            to_weights_plain<Bounded>(weights, a, own, vectors);
          else
            to_weights_bounded<Bounded>(weights, a, own, vectors);
          multiply.template operator()<Bounded>(weights, columns);
        });
    if constexpr (Tile<Bounded>::kPairs)
      done = finish_pairs<Bounded>(own, scales, outputs);
  }
  if (!done) {
    // In three parts, branches keep the loads from taking all registers.
    constexpr bool kBranches = kAny || T::kSplit;
    for_each_tile<Type, kBranches ? Depth::kAny : Depth::kOneChunk, kPlain>(
        a, shared, first_row, begin, end, chunk, false, 0.f,
        [&](typename T::Scores& weights, const unsigned char* columns,
            const Columns& vectors, int64_t first_column) {
          to_weights<Type, kPlain>(weights, a, shared, vectors, first_row,
                                   first_column);
          multiply.template operator()<Type>(weights, columns);
        });
  }

  copies_wait<0>();
  if constexpr (Type::kNarrow) scales.wait();
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
      // Of the launch's rows alone.
      const int64_t before = static_cast<int64_t>(a.first_block) * T::kRows;
      const int64_t part =
          (block_y() * (a.rows.matrix.count - before) - before) *
              a.rows.matrix.depth +
          at;
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
