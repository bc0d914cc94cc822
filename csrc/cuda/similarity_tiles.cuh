// What the similarity kernels on tensor cores share. A block owns kRows rows
// (128 of 16 bit elements, 64 of float32) and walks over tiles of kColumns
// columns, 64 or 32; the next tile is on its way while one is worked on. With
// more than one chunk of depth the rows come in chunks too.
#pragma once

#include "similarity_arguments.h"
#include "similarity_vectors.cuh"

namespace s3h::cuda {

// A dot product whose power is zero; finite, since its product with the rest of
// 1 / temperature has to be a number.
constexpr float kNoDot = -0x1.fffffep127f;

// What a kernel knows of the depth when it is compiled.
enum class Depth {
  kAny,
  kOneChunk,  // one chunk, in two stages: saves registers
  kWhole,     // the same, of 128 elements in aligned rows: no branch between
              // the products, so that loads run ahead of them
};

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
    return sizeof(Rows) + 2 * sizeof(Columns) + 3 * kWarps * sizeof(float) +
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
    answers = reinterpret_cast<float*>(at);
    short_rows = reinterpret_cast<int*>(at) + kWarps;
    end = reinterpret_cast<int*>(at) + 2 * kWarps;
  }

  unsigned char* row_tiles;
  unsigned char* column_tiles;
  Rows* rows;
  Columns* columns;  // of this tile and the next
  float* answers;    // [kWarps], of block_any
  int* short_rows;   // [kWarps], whether there were any
  int* end;          // of the block's tiles
};

// Of numbers that are multiplied in pairs: whether the warp had rows that are
// too short for them, as lane 0 knows.
template <typename Type>
__device__ inline void clear_short_rows(const Shared<Type>& shared) {
  if (lane_index() == 0) shared.short_rows[warp_index()] = 0;
}
template <typename Type>
__device__ inline bool had_short_rows(const Shared<Type>& shared) {
  return Tile<Type>::kPairs && lane_index() == 0 &&
         shared.short_rows[warp_index()] != 0;
}

// Makes pairs of what this thread has loaded of a chunk.
template <typename Type, int kCount>
__device__ inline void split_in_place(const Shared<Type>& shared,
                                      unsigned char* tile, int elements) {
  if constexpr (Tile<Type>::kPairs)
    if (!split_chunk<Type, kCount>(tile, elements) && lane_index() == 0)
      shared.short_rows[warp_index()] = 1;
}

// Calls body(columns in shared memory, tile) for each tile of the depth's only
// chunk, in two stages, and before that with_rows() when this thread's copies
// of the rows are there. bounded, otherwise: of finish_vectors.
template <typename Type, bool kWhole, bool kPlain, typename WithRows,
          typename Body>
__device__ inline void for_each_tile_of_one_chunk(
    const ScoreArguments& a, const Shared<Type>& shared, int64_t first_row,
    int tile_begin, int tile_end, int elements, bool bounded, float otherwise,
    const WithRows& with_rows, const Body& body) {
  using T = Tile<Type>;
  // A tile's stage follows from its number, and the last number is in shared
  // memory: two registers less.
  const auto load = [&](int tile) {
    const int64_t first = static_cast<int64_t>(tile) * T::kColumns;
    load_chunk<Type, T::kColumns, kWhole>(
        shared.column_tiles + (tile & 1) * Shared<Type>::kColumnChunk,
        a.columns.matrix, first, 0);
    load_vectors<kPlain>(shared.columns[tile & 1], a.columns, first);
    copies_commit();
  };
  load_vectors<kPlain>(*shared.rows, a.rows, first_row);
  load_chunk<Type, T::kRows, kWhole>(shared.row_tiles, a.rows.matrix, first_row,
                                     0);
  copies_commit();
  if (tile_begin < tile_end) {
    load(tile_begin);
    copies_wait<1>();
  } else {
    copies_wait<0>();
  }
  finish_vectors<Type, kPlain>(*shared.rows, a.rows, a, bounded, otherwise, -1);
  split_in_place<Type, T::kRows>(shared, shared.row_tiles, elements);
  if (tile_begin == tile_end) return;
  if (thread_x() == 0) *shared.end = tile_end;
  with_rows();
  for (int tile = tile_begin;;) {
    unsigned char* columns =
        shared.column_tiles + (tile & 1) * Shared<Type>::kColumnChunk;
    copies_wait<0>();
    finish_vectors<Type, kPlain>(shared.columns[tile & 1], a.columns, a,
                                 bounded, otherwise, -2);
    split_in_place<Type, T::kColumns>(shared, columns, elements);
    block_barrier();  // everyone's copies are there, the other stage is free
    if (tile + 1 < *shared.end) load(tile + 1);
    body(columns, tile);
    if (++tile == *shared.end) break;
  }
}

// Calls body(scores, columns in shared memory, their vectors, first column) for
// each tile, the depth's chunk `last` being what lies there. Chunks are added
// up in the same order for every `last`: scores have the same bits wherever
// they are formed. bounded, otherwise: of finish_vectors.
template <typename Type, Depth kDepth, bool kPlain, typename Body>
__device__ inline void for_each_tile(const ScoreArguments& a,
                                     const Shared<Type>& shared,
                                     int64_t first_row, int tile_begin,
                                     int tile_end, int last, bool bounded,
                                     float otherwise, const Body& body) {
  using T = Tile<Type>;
  if constexpr (kDepth != Depth::kAny) {
    constexpr bool kWhole = kDepth == Depth::kWhole;
    const int elements =
        kWhole ? kChunk : chunk_elements(a.rows.matrix.depth, 0);
    for_each_tile_of_one_chunk<Type, kWhole, kPlain>(
        a, shared, first_row, tile_begin, tile_end, elements, bounded,
        otherwise, [] {},
        [&](const unsigned char* columns, int tile) {
          typename T::Scores scores = {};
          multiply_scores<Type>(scores, shared.row_tiles, columns, elements);
          body(scores, columns, shared.columns[tile & 1],
               static_cast<int64_t>(tile) * T::kColumns);
        });
    return;
  }
  const int chunks = a.chunks;
  const int stages = a.stages;
  // Any other but the last one comes a second time.
  const int loads = last == chunks - 1 ? chunks : chunks + 1;
  int next_tile = tile_begin;
  int next = 0;  // chunks of next_tile that were asked for
  const auto chunk_of = [&](int k) { return k < chunks ? k : last; };
  const auto load_next = [&](int stage) {
    const int64_t first = static_cast<int64_t>(next_tile) * T::kColumns;
    const int chunk = chunk_of(next);
    load_chunk<Type, T::kColumns, false>(
        shared.column_tiles + stage * Shared<Type>::kColumnChunk,
        a.columns.matrix, first, chunk);
    if (chunks > 1 && next < chunks)
      load_chunk<Type, T::kRows, false>(
          shared.row_tiles + stage * Shared<Type>::kRowChunk, a.rows.matrix,
          first_row, chunk);
    if (next == 0)
      load_vectors<kPlain>(shared.columns[next_tile & 1], a.columns, first);
    if (++next == loads) {
      next = 0;
      ++next_tile;
    }
    copies_commit();
  };

  load_vectors<kPlain>(*shared.rows, a.rows, first_row);
  if (chunks == 1)
    load_chunk<Type, T::kRows, false>(shared.row_tiles, a.rows.matrix,
                                      first_row, 0);
  copies_commit();
  if (tile_begin < tile_end && stages == 2) load_next(0);
  if (tile_begin < tile_end && stages == 2)
    copies_wait<1>();
  else
    copies_wait<0>();
  finish_vectors<Type, kPlain>(*shared.rows, a.rows, a, bounded, otherwise, -1);
  if (chunks == 1)
    split_in_place<Type, T::kRows>(shared, shared.row_tiles,
                                   chunk_elements(a.rows.matrix.depth, 0));

  int stage = 0;
  for (int tile = tile_begin; tile < tile_end; ++tile) {
    typename T::Scores scores = {};
    unsigned char* columns = nullptr;
    for (int k = 0; k < loads; ++k) {
      const int elements = chunk_elements(a.rows.matrix.depth, chunk_of(k));
      if (stages == 1) {
        if (tile > tile_begin || k > 0)
          block_barrier();  // all are done with the last chunk
        load_next(0);
      }
      copies_wait<0>();
      if (k == 0)
        finish_vectors<Type, kPlain>(shared.columns[tile & 1], a.columns, a,
                                     bounded, otherwise, -2);
      columns = shared.column_tiles + stage * Shared<Type>::kColumnChunk;
      unsigned char* rows = shared.row_tiles +
                            (chunks == 1 ? 0 : stage) * Shared<Type>::kRowChunk;
      split_in_place<Type, T::kColumns>(shared, columns, elements);
      if (chunks > 1 && k < chunks)
        split_in_place<Type, T::kRows>(shared, rows, elements);
      block_barrier();  // everyone's copies are there, the other stage is free
      if (stages == 2) {
        stage ^= 1;
        if (next_tile < tile_end) load_next(stage);
      }
      if (k < chunks) multiply_scores<Type>(scores, rows, columns, elements);
    }
    body(scores, columns, shared.columns[tile & 1],
         static_cast<int64_t>(tile) * T::kColumns);
  }
}

// The block's share of the column tiles from `from` on: [begin, end).
template <typename Type>
__device__ inline void share_of_tiles(const ScoreArguments& a, int64_t from,
                                      int& begin, int& end) {
  constexpr int kColumns = Tile<Type>::kColumns;
  const int64_t count =
      (a.columns.matrix.count + kColumns - 1) / kColumns - from;
  begin = static_cast<int>(from + count * block_y() / grid_y());
  end = static_cast<int>(from + count * (block_y() + 1) / grid_y());
}

// Where accumulator (f, h) of this thread lies: row of the block's rows.
template <typename Type>
__device__ inline int own_row(int f, int h) {
  return warp_index() * Tile<Type>::kWarpRows + 16 * f + 8 * h +
         (lane_index() >> 2);
}

// x as a number from 0 to kMost - 1, or the next one on its side.
template <int kMost>
__device__ inline int clamped(int64_t x) {
  return x < 0 ? -1 : x < kMost ? static_cast<int>(x) : kMost;
}

// A dot product over the temperature, never fused with what follows.
template <typename Type>
__device__ inline float score_of(const ScoreArguments& a, float dot) {
  if constexpr (Tile<Type>::kExact)
    return fused(dot, a.inverse_temperature,
                 product_of(dot, a.inverse_temperature_rest));
  else
    return product_of(dot, a.inverse_temperature);
}

// e^(dot / temperature), of a bounded exponent: the scale of the temperature
// and that of the exponential are one, and that of pairs.
template <typename Type>
__device__ inline float power_of_dot(const ScoreArguments& a, float dot) {
  if constexpr (Tile<Type>::kPairs) {
    constexpr float kScale = 1.f / (kPairScale * kPairScale);
    const float scale = a.inverse_temperature_log2 * kScale;
    const float y = product_of(dot, scale), power = exp2_fast(y);
    const float rest = fused(dot, a.inverse_temperature_log2_rest * kScale,
                             fused(dot, scale, -y));
    return fused(power * rest, kLn2, power);
  } else {
    return exp2_fast(product_of(dot, a.inverse_temperature_log2));
  }
}

// Gives the pairs that do not count the value `none`: (i, i), what is under the
// diagonal, a row's own column, columns that do not exist. Few tiles have any.
template <typename Type, bool kTriangle, bool kPlain>
__device__ inline void leave_out(
    typename Tile<Type>::Scores& scores, const ScoreArguments& a,
    const Shared<Type>& shared,
    const Vectors<Tile<Type>::kColumns>& column_vectors, int64_t first_row,
    int64_t first_column, float none) {
  using T = Tile<Type>;
  const int count = clamped<T::kColumns>(a.columns.matrix.count - first_column);
  // From the first column to the warp's first row.
  const int64_t apart = first_row - first_column + warp_index() * T::kWarpRows;
  bool any = count < T::kColumns || (a.symmetric && apart + T::kWarpRows > 0 &&
                                     (kTriangle || apart < T::kColumns));
  if (!kPlain && (a.rows.self || a.columns.self)) {
    bool own = false;
    if (a.rows.self) {
      const int64_t self = shared.rows->self[warp_index() * T::kWarpRows +
                                             lane_index() % T::kWarpRows] -
                           first_column;
      own = self >= 0 && self < T::kColumns;
    }
    for (int c = lane_index(); a.columns.self && c < T::kColumns; c += 32) {
      const int64_t self = column_vectors.self[c] - first_column - apart;
      own = own || (self >= 0 && self < T::kWarpRows);
    }
    any = warp_any(own) || any;
  }
  if (!any) return;
  const int lane_column = 2 * (lane_index() & 3);
#pragma unroll
  for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int r = own_row<Type>(f, h);
      int own = -1;
      if (a.symmetric)
        own = clamped<T::kColumns>(first_row - first_column + r);
      else if (!kPlain && a.rows.self)
        own = clamped<T::kColumns>(shared.rows->self[r] - first_column);
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int c = 8 * n + e + lane_column;
          if (c >= count || (kTriangle ? c <= own : c == own) ||
              (!kPlain && a.columns.self &&
               column_vectors.self[c] == first_row + r))
            scores[f][n][2 * h + e] = none;
        }
    }
}

// Whether any thread of the block says so; for all of them.
template <typename Type>
__device__ inline bool block_any(const Shared<Type>& shared, bool value) {
  const bool any = warp_any(value);
  if (lane_index() == 0) shared.answers[warp_index()] = any ? 1.f : 0.f;
  block_barrier();
  float sum = 0.f;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) sum += shared.answers[w];
  return sum > 0.f;
}

}  // namespace s3h::cuda
