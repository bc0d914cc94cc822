// The similarity kernels on tensor cores. A block owns kRows rows (128 of 16
// bit elements, 64 of float32) and walks over tiles of kColumns columns, 64 or
// 32; the next tile is on its way while one is worked on. With more than one
// chunk of depth the rows come in chunks too.
//
// scores_forward: log-sum-exp of whole rows. Each thread keeps maximum and sum
//   of its own columns, the four threads of a row meet once at the end. With
//   few rows the columns are split among blocks, whose (maximum, sum) pairs a
//   second kernel merges in fixed order: the same bits on every run.
// triangle_forward: the symmetric case with |x| bounded: tiles on and above the
//   diagonal, e^x without a shift, row sums in registers, column sums by
//   shuffles within a warp; both end in atomic additions to one float per row,
//   in no fixed order. The deterministic mode takes scores_forward.
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

#include "similarity_arguments.h"
#include "tiles.cuh"

namespace s3h::cuda {

constexpr float kInfinity = __builtin_huge_valf();

// The vectors of a tile's rows or columns.
template <int kCount>
struct Vectors {
  int64_t labels[kCount];
  int64_t self[kCount];
  float bias[kCount];
  float same[kCount];
  float lse[kCount];
  float grad[kCount];
};

// One row or column of it, with the neutral value where there is no vector.
struct Entry {
  int64_t label, self;
  float bias, same, lse, grad;
};

template <int kCount>
__device__ inline Entry entry_of(const Vectors<kCount>& vectors,
                                 const Side& side, float same_value, int i) {
  return {side.labels ? vectors.labels[i] : -1,
          side.self ? vectors.self[i] : -1,
          side.bias ? vectors.bias[i] : 0.f,
          side.same ? vectors.same[i] : same_value,
          side.grad ? vectors.lse[i] : 0.f,
          side.grad ? vectors.grad[i] : 0.f};
}

template <int kCount>
__device__ inline void load_vectors(Vectors<kCount>& to, const Side& side,
                                    int64_t first) {
  static_assert(kCount <= kThreads);
  const int i = thread_x();
  if (i >= kCount) return;
  const int64_t from = first + i;
  const bool there = from < side.matrix.count;
  const int64_t at = there ? from : 0;
  if (side.labels) copy_async<8>(&to.labels[i], side.labels + at, there);
  if (side.self) copy_async<8>(&to.self[i], side.self + at, there);
  if (side.bias) copy_async<4>(&to.bias[i], side.bias + at, there);
  if (side.same) copy_async<4>(&to.same[i], side.same + at, there);
  if (side.grad) {
    copy_async<4>(&to.lse[i], side.lse + at, there);
    copy_async<4>(&to.grad[i], side.grad + at, there);
  }
}

// How a block's shared memory is divided.
template <typename Type>
struct Shared {
  using T = Tile<Type>;
  using Rows = Vectors<T::kRows>;
  using Columns = Vectors<T::kColumns>;
  static constexpr int kRowChunk = T::kRows * T::kPitch;
  static constexpr int kColumnChunk = T::kColumns * T::kPitch;

  // Chunks of rows that are there at a time: all if that is one.
  __device__ static int row_slots(int chunks, int stages) {
    return chunks == 1 ? 1 : stages;
  }
  static size_t bytes(int chunks, int stages) {
    const int slots = chunks == 1 ? 1 : stages;
    return sizeof(Rows) + 2 * sizeof(Columns) +
           kWarps * T::kColumns * sizeof(float) +
           static_cast<size_t>(slots) * kRowChunk +
           static_cast<size_t>(stages) * kColumnChunk;
  }

  __device__ Shared(int chunks, int stages) {
    unsigned char* at = shared_memory();
    row_tiles = at;
    at += row_slots(chunks, stages) * kRowChunk;
    column_tiles = at;
    at += stages * kColumnChunk;
    rows = reinterpret_cast<Rows*>(at);
    at += sizeof(Rows);
    columns = reinterpret_cast<Columns*>(at);
    at += 2 * sizeof(Columns);
    weights = reinterpret_cast<float*>(at) + warp_index() * T::kColumns;
  }

  unsigned char* row_tiles;
  unsigned char* column_tiles;
  Rows* rows;
  Columns* columns;  // of this tile and the next
  float* weights;    // [kColumns], this warp's own
};

// Calls body(scores, columns in shared memory, their vectors, first column) for
// each tile, the depth's chunk `last` being what lies there.
// kOneChunk: known to be one, in two stages, which saves registers.
template <typename Type, bool kOneChunk, typename Body>
__device__ inline void for_each_tile(const ScoreArguments& a,
                                     const Shared<Type>& shared,
                                     int64_t first_row, int64_t tile_begin,
                                     int64_t tile_end, int last,
                                     const Body& body) {
  using T = Tile<Type>;
  const int chunks = kOneChunk ? 1 : a.chunks;
  const int stages = kOneChunk ? 2 : a.stages;
  int64_t next_tile = tile_begin;
  int next = 0;  // chunks of next_tile that were asked for
  const auto chunk_of = [&](int k) {
    const int chunk = last + 1 + k;
    return chunk < chunks ? chunk : chunk - chunks;
  };
  const auto load_next = [&](int stage) {
    const int64_t first = next_tile * T::kColumns;
    const int chunk = chunk_of(next);
    load_chunk<Type, T::kColumns>(
        shared.column_tiles + stage * Shared<Type>::kColumnChunk,
        a.columns.matrix, first, chunk);
    if (chunks > 1)
      load_chunk<Type, T::kRows>(
          shared.row_tiles + stage * Shared<Type>::kRowChunk, a.rows.matrix,
          first_row, chunk);
    if (next == 0)
      load_vectors(shared.columns[next_tile & 1], a.columns, first);
    if (++next == chunks) {
      next = 0;
      ++next_tile;
    }
    copies_commit();
  };

  load_vectors(*shared.rows, a.rows, first_row);
  if (chunks == 1)
    load_chunk<Type, T::kRows>(shared.row_tiles, a.rows.matrix, first_row, 0);
  copies_commit();
  if (tile_begin < tile_end && stages == 2) load_next(0);

  int stage = 0;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    typename T::Scores scores = {};
    const unsigned char* columns = nullptr;
    for (int k = 0; k < chunks; ++k) {
      if (stages == 1) {
        if (tile > tile_begin || k > 0)
          block_barrier();  // all are done with the last chunk
        load_next(0);
      }
      copies_wait<0>();
      block_barrier();  // everyone's copies are there, the other stage is free
      columns = shared.column_tiles + stage * Shared<Type>::kColumnChunk;
      const unsigned char* rows =
          shared.row_tiles +
          (chunks == 1 ? 0 : stage) * Shared<Type>::kRowChunk;
      if (stages == 2) {
        stage ^= 1;
        if (next_tile < tile_end) load_next(stage);
      }
      multiply_scores<Type>(scores, rows, columns,
                            chunk_elements(a.rows.matrix.depth, chunk_of(k)));
    }
    body(scores, columns, shared.columns[tile & 1], tile * T::kColumns);
  }
}

// The block's share of the column tiles from `from` on: [begin, end).
template <typename Type>
__device__ inline void share_of_tiles(const ScoreArguments& a, int64_t from,
                                      int64_t& begin, int64_t& end) {
  constexpr int kColumns = Tile<Type>::kColumns;
  const int64_t count =
      (a.columns.matrix.count + kColumns - 1) / kColumns - from;
  begin = from + count * block_y() / grid_y();
  end = from + count * (block_y() + 1) / grid_y();
}

// Where accumulator (f, h) of this thread lies: row of the block's rows.
template <typename Type>
__device__ inline int own_row(int f, int h) {
  return warp_index() * Tile<Type>::kWarpRows + 16 * f + 8 * h +
         (lane_index() >> 2);
}

// Whether a tile holds no pair that is excluded or has a bias.
template <typename Type>
__device__ inline bool is_plain(const ScoreArguments& a, int64_t first_row,
                                int64_t first_column) {
  using T = Tile<Type>;
  return a.plain && first_column + T::kColumns <= a.columns.matrix.count &&
         !(a.symmetric && first_column < first_row + T::kRows &&
           first_row < first_column + T::kColumns);
}

// Turns dot products into x_ij of the rows' view, -inf where excluded.
template <typename Type, bool kTriangle>
__device__ inline void to_exponents(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors, int64_t first_row,
    int64_t first_column) {
  using T = Tile<Type>;
  const bool plain = is_plain<Type>(a, first_row, first_column);
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (plain) {
#pragma unroll
        for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
          for (int e = 0; e < 2; ++e)
            scores[f][n][2 * h + e] *= a.inverse_temperature;
        continue;
      }
      const int r = own_row<Type>(f, h);
      const int64_t i = first_row + r;
      const Entry row = entry_of(*shared.rows, a.rows, a.same_value, r);
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = 8 * n + 2 * (lane_index() & 3) + e;
          const int64_t j = first_column + c;
          float& x = scores[f][n][2 * h + e];
          x *= a.inverse_temperature;
          if (a.columns.bias) x += column_vectors.bias[c];
          if (a.columns.labels && row.label >= 0 &&
              row.label == column_vectors.labels[c])
            x = row.same == -kInfinity ? -kInfinity : x + row.same;
          if (j >= a.columns.matrix.count || j == row.self ||
              (a.symmetric && (kTriangle ? j <= i : j == i)))
            x = -kInfinity;
        }
    }
}

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

template <typename Type>
__global__ void __launch_bounds__(kThreads, 2)
    scores_forward(ScoreArguments a, ForwardOutputs out) {
  using T = Tile<Type>;
  const Shared<Type> shared(a.chunks, a.stages);
  const int64_t first_row = static_cast<int64_t>(block_x()) * T::kRows;
  float top[T::kRowFragments][2], sum[T::kRowFragments][2];
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[f][h] = a.bounded ? 0.f : -kInfinity;
      sum[f][h] = 0.f;
    }

  int64_t begin, end;
  share_of_tiles<Type>(a, 0, begin, end);
  for_each_tile<Type, false>(
      a, shared, first_row, begin, end, a.chunks - 1,
      [&](typename T::Scores& x, const unsigned char*,
          const typename Shared<Type>::Columns& vectors, int64_t first_column) {
        to_exponents<Type, false>(x, a, shared, vectors, first_row,
                                  first_column);
#pragma unroll
        for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float shift = 0.f;
            if (!a.bounded) {
              float now = top[f][h];
#pragma unroll
              for (int n = 0; n < T::kColumnFragments; ++n)
                now = max_of(now, max_of(x[f][n][2 * h], x[f][n][2 * h + 1]));
              shift = finite_or_zero(now);
              sum[f][h] *= rescale(top[f][h], now);
              top[f][h] = now;
            }
            float part = 0.f;
#pragma unroll
            for (int n = 0; n < T::kColumnFragments; ++n)
              part += exp2_fast((x[f][n][2 * h] - shift) * kLog2e) +
                      exp2_fast((x[f][n][2 * h + 1] - shift) * kLog2e);
            sum[f][h] += part;
          }
      });

  copies_wait<0>();
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
      if ((lane_index() & 3) != 0 || i >= a.rows.matrix.count) continue;
      if (grid_y() == 1) {
        out.lse[i] = s == 0.f ? -kInfinity : m + log_of(s);
      } else {
        const int64_t at = block_y() * a.rows.matrix.count + i;
        out.tops[at] = m;
        out.sums[at] = s;
      }
    }
}

template <typename Type>
__global__ void __launch_bounds__(kThreads, 2)
    triangle_forward(ScoreArguments a, ForwardOutputs out) {
  using T = Tile<Type>;
  const Shared<Type> shared(a.chunks, a.stages);
  const int64_t first_row = static_cast<int64_t>(block_x()) * T::kRows;
  float row_sums[T::kRowFragments][2] = {};

  int64_t begin, end;
  share_of_tiles<Type>(a, first_row / T::kColumns, begin, end);
  for_each_tile<Type, false>(
      a, shared, first_row, begin, end, a.chunks - 1,
      [&](typename T::Scores& x, const unsigned char*,
          const typename Shared<Type>::Columns& vectors, int64_t first_column) {
        to_exponents<Type, true>(x, a, shared, vectors, first_row,
                                 first_column);
        float column_sums[2 * T::kColumnFragments] = {};
#pragma unroll
        for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            float part = 0.f;
#pragma unroll
            for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
              for (int e = 0; e < 2; ++e) {
                const float value = exp2_fast(x[f][n][2 * h + e] * kLog2e);
                part += value;
                column_sums[2 * n + e] += value;
              }
            row_sums[f][h] += part;
          }
        sum_over_rows<2 * T::kColumnFragments>(column_sums);
        constexpr int kLeft = T::kColumnFragments / 4;
#pragma unroll
        for (int i = 0; i < kLeft; ++i) {
          const int index = kLeft * (lane_index() >> 2) + i;
          const int64_t j = first_column + 8 * (index >> 1) +
                            2 * (lane_index() & 3) + (index & 1);
          if (j < a.columns.matrix.count)
            atomic_add(out.sums + j, column_sums[i]);
        }
      });

  copies_wait<0>();
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float s = row_sums[f][h];
      s += shuffle_xor(s, 1);
      s += shuffle_xor(s, 2);
      const int64_t i = first_row + own_row<Type>(f, h);
      if ((lane_index() & 3) == 0 && i < a.rows.matrix.count)
        atomic_add(out.sums + i, s);
    }
}

// g e^(x - lse); nothing for a row without keys.
__device__ inline float weight_of(float x, float lse, float grad) {
  return lse == -kInfinity ? 0.f : exp2_fast((x - lse) * kLog2e) * grad;
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
          const float x = scores[f][n][2 * h + e] * a.inverse_temperature;
          const bool same =
              labels && row.label >= 0 && row.label == column.label;
          float weight = 0.f;
          if (a.rows.grad && !(same && row.same == -kInfinity))
            weight += weight_of(x + column.bias + (same ? row.same : 0.f),
                                row.lse, row.grad);
          if (a.columns.grad && !(same && column.same == -kInfinity))
            weight += weight_of(x + row.bias + (same ? column.same : 0.f),
                                column.lse, column.grad);
          const bool excluded = j >= a.columns.matrix.count || j == row.self ||
                                i == column.self || (a.symmetric && j == i);
          scores[f][n][2 * h + e] = excluded ? 0.f : weight;
        }
    }
}

// The same where no pair is special and |x| is bounded: e^x and e^-lse are then
// numbers of their own and one exponential serves both terms,
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
          weight_of(0.f, column_vectors.lse[c], column_vectors.grad[c]);
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
          x = exp2_fast(x * a.inverse_temperature * kLog2e) *
              (row_weights[f][h] + weight);
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

template <typename Type, bool kOneChunk>
__global__ void __launch_bounds__(kThreads, 2)
    scores_backward(ScoreArguments a, BackwardOutputs out) {
  using T = Tile<Type>;
  const Shared<Type> shared(kOneChunk ? 1 : a.chunks, kOneChunk ? 2 : a.stages);
  const int64_t first_row = static_cast<int64_t>(block_x()) * T::kRows;
  const int chunk = block_z();
  const int elements = chunk_elements(a.rows.matrix.depth, chunk);
  typename T::Outputs outputs = {};
  float row_weights[T::kRowFragments][2] = {};
  if (a.bounded && a.rows.grad) {
#pragma unroll
    for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int64_t i = first_row + own_row<Type>(f, h);
        if (i < a.rows.matrix.count)
          row_weights[f][h] = weight_of(0.f, a.rows.lse[i], a.rows.grad[i]);
      }
  }
  [[maybe_unused]] RowScales<Type> scales;
  if constexpr (Type::kNarrow) scales.reset();

  int64_t begin, end;
  share_of_tiles<Type>(a, 0, begin, end);
  for_each_tile<Type, kOneChunk>(
      a, shared, first_row, begin, end, chunk,
      [&](typename T::Scores& weights, const unsigned char* columns,
          const typename Shared<Type>::Columns& vectors, int64_t first_column) {
        if (a.bounded && is_plain<Type>(a, first_row, first_column))
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
