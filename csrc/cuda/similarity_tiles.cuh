// What the similarity kernels on tensor cores share. A block owns kRows rows
// (128 of 16 bit elements, 64 of float32) and walks over tiles of kColumns
// columns, 64 or 32; the next tile is on its way while one is worked on. With
// more than one chunk of depth the rows come in chunks too.
#pragma once

#include "similarity_arguments.h"
#include "similarity_log.cuh"
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
  float correction[kCount];
  float grad[kCount];
  float unused[7 * kCount];  // a power of two: addresses are cheap
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
    copy_async<4>(&to.correction[i], side.correction + at, there);
    copy_async<4>(&to.grad[i], side.grad + at, there);
  }
}

// What a thread makes of its own copies when they are there.
template <int kCount>
__device__ inline void finish_vectors(Vectors<kCount>& vectors,
                                      const Side& side) {
  const int i = thread_x();
  if (i < kCount && side.grad) vectors.grad[i] *= vectors.correction[i];
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
// each tile, the depth's chunk `last` being what lies there. Chunks are added
// up in the same order for every `last`: scores have the same bits wherever
// they are formed. kOneChunk: known to be one, in two stages, which saves
// registers.
template <typename Type, bool kOneChunk, typename Body>
__device__ inline void for_each_tile(const ScoreArguments& a,
                                     const Shared<Type>& shared,
                                     int64_t first_row, int64_t tile_begin,
                                     int64_t tile_end, int last,
                                     const Body& body) {
  using T = Tile<Type>;
  const int chunks = kOneChunk ? 1 : a.chunks;
  const int stages = kOneChunk ? 2 : a.stages;
  // Any other but the last one comes a second time.
  const int loads = kOneChunk || last == chunks - 1 ? chunks : chunks + 1;
  int64_t next_tile = tile_begin;
  int next = 0;  // chunks of next_tile that were asked for
  const auto chunk_of = [&](int k) { return k < chunks ? k : last; };
  const auto load_next = [&](int stage) {
    const int64_t first = next_tile * T::kColumns;
    const int chunk = chunk_of(next);
    load_chunk<Type, T::kColumns>(
        shared.column_tiles + stage * Shared<Type>::kColumnChunk,
        a.columns.matrix, first, chunk);
    if (chunks > 1 && next < chunks)
      load_chunk<Type, T::kRows>(
          shared.row_tiles + stage * Shared<Type>::kRowChunk, a.rows.matrix,
          first_row, chunk);
    if (next == 0)
      load_vectors(shared.columns[next_tile & 1], a.columns, first);
    if (++next == loads) {
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
  if (tile_begin < tile_end && stages == 2)
    copies_wait<1>();
  else
    copies_wait<0>();
  finish_vectors(*shared.rows, a.rows);

  int stage = 0;
  for (int64_t tile = tile_begin; tile < tile_end; ++tile) {
    typename T::Scores scores = {};
    const unsigned char* columns = nullptr;
    for (int k = 0; k < loads; ++k) {
      if (stages == 1) {
        if (tile > tile_begin || k > 0)
          block_barrier();  // all are done with the last chunk
        load_next(0);
      }
      copies_wait<0>();
      if (k == 0) finish_vectors(shared.columns[tile & 1], a.columns);
      block_barrier();  // everyone's copies are there, the other stage is free
      columns = shared.column_tiles + stage * Shared<Type>::kColumnChunk;
      const unsigned char* rows =
          shared.row_tiles +
          (chunks == 1 ? 0 : stage) * Shared<Type>::kRowChunk;
      if (stages == 2) {
        stage ^= 1;
        if (next_tile < tile_end) load_next(stage);
      }
      if (k < chunks)
        multiply_scores<Type>(scores, rows, columns,
                              chunk_elements(a.rows.matrix.depth, k));
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

// A dot product over the temperature, never fused with what follows.
template <typename Type>
__device__ inline float score_of(const ScoreArguments& a, float dot) {
  if constexpr (Tile<Type>::kSplit)
    return fused(dot, a.inverse_temperature,
                 product_of(dot, a.inverse_temperature_rest));
  else
    return product_of(dot, a.inverse_temperature);
}

// e^x. y is rounded by up to 2^-24 |y|, which float32 is given back.
template <typename Type>
__device__ inline float exp_of(float x) {
  const float y = product_of(x, kLog2e), power = exp2_fast(y);
  if constexpr (!Tile<Type>::kSplit) return power;
  const float rest = fused(x, kLog2eRest, fused(x, kLog2e, -y));
  return magnitude(y) < 126.f ? fused(power * rest, kLn2, power) : power;
}

// Whether any thread of the block says so; for all of them.
template <typename Type>
__device__ inline bool block_any(const Shared<Type>& shared, bool value) {
  const bool any = warp_any(value);
  if (lane_index() == 0) shared.weights[0] = any ? 1.f : 0.f;
  block_barrier();
  const float* first = shared.weights - warp_index() * Tile<Type>::kColumns;
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += first[w * Tile<Type>::kColumns];
  return sum > 0.f;
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
            scores[f][n][2 * h + e] =
                score_of<Type>(a, scores[f][n][2 * h + e]);
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
          x = score_of<Type>(a, x);
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

}  // namespace s3h::cuda
