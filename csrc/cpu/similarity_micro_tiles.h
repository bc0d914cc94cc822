// The loop over a tile's micro-tiles, for similarity_tiles.cpp.
//
// Micro-tile: kRows x kVecs vectors of accumulators (AVX-512: 8 x 3 of 16
// lanes, 24 of the 32 registers; AVX2 and baseline: 4 x 3, 12 of 16). Per step
// lanes, 24 of the 32 registers; AVX2 and baseline: 4 x 3, 12 of 16). Per step
// of the depth it loads kVecs vectors of the column panel and broadcasts kRows
// elements of the row panel. The row panel is traversed inside the column
// panel, which stays in the first-level cache.
//
// With a tile unit, 16 rows of the row panel are multiplied at once into a
// buffer from which micro-tiles are loaded. The unit works on the next rows
// while exponentials of these are computed.
#pragma once

#include "similarity.h"
#include "similarity_tiles.h"
#include "vec.h"

#if defined(S3H_TILE_UNIT)
#include "tile_unit.h"
#endif

namespace s3h::cpu::S3H_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 4;
#endif
constexpr int kVecs = 3;
constexpr int kPanel = kVecs * kLanes;
static_assert(kWidestPanel % kPanel == 0, "kept_scores() counts on it");

// Depth of sequential sums: longer ones lose precision.
constexpr int64_t kChain = 128;

#if defined(S3H_TILE_UNIT)

// Dot products of kTileRows rows, row-major, with a column panel, one part of
// the numbers after the other.
template <int Vecs, int Parts>
void dot_products(const float* rows, int64_t rows_part, const float* columns,
                  int64_t columns_part, int64_t steps, float* to) {
  Tiles tiles;
  for_tiles<Vecs>([&]<int C>()
                      __attribute__((always_inline)) { tiles.zero<C>(); });
  const auto load_rows = [&](int part) __attribute__((always_inline)) {
    tiles.load<3>(rows + part * rows_part, steps);
  };
  const auto load_columns = [&](int part) __attribute__((always_inline)) {
    for_tiles<Vecs>([&]<int C>() __attribute__((always_inline)) {
      tiles.load<4 + C>(columns + part * columns_part + C * kLanes, kPanel);
    });
  };
  const auto multiply = [&]() __attribute__((always_inline)) {
    for_tiles<Vecs>([&]<int C>() __attribute__((always_inline)) {
      tiles.multiply_add<C, 3, 4 + C>();
    });
  };
  for (int64_t k = 0; k < steps; k += kTileUnit) {
    load_rows(0);
    if constexpr (Parts == 3) {
      load_columns(2);
      multiply();
      load_columns(1);
      multiply();
      load_rows(1);
      multiply();
      load_columns(0);
      multiply();
      load_rows(2);
      multiply();
      load_rows(0);
    } else {
      load_columns(0);
    }
    multiply();
    rows += kTileUnit;
    columns += kTileUnit * kPanel;
  }
  for_tiles<Vecs>([&]<int C>() __attribute__((always_inline)) {
    tiles.store<C>(to + C * kLanes, kPanel);
  });
}

#else

template <int Vecs>
S3H_INLINE void dot_chain(const float* rows, const float* columns,
                          int64_t steps, Vec (&acc)[kRows][Vecs]) {
  S3H_UNROLL for (int r = 0; r < kRows; ++r)
      S3H_UNROLL for (int c = 0; c < Vecs; ++c) acc[r][c] = Vec{};
  for (int64_t k = 0; k < steps; ++k) {
    Vec b[Vecs];
    S3H_UNROLL for (int c = 0; c < Vecs; ++c) b[c] =
        load(columns + k * kPanel + c * kLanes);
    S3H_UNROLL for (int r = 0; r < kRows; ++r) {
      const Vec a = broadcast(rows[k * kPanel + r]);
      S3H_UNROLL for (int c = 0; c < Vecs; ++c) acc[r][c] =
          multiply_add(a, b[c], acc[r][c]);
    }
  }
}

// Dot products of kRows rows, from `row` of their panel, with a column panel.
template <int Vecs>
S3H_INLINE void dot_products(const float* rows, const float* columns,
                             int64_t steps, Vec (&acc)[kRows][Vecs]) {
  dot_chain(rows, columns, steps < kChain ? steps : kChain, acc);
  for (int64_t k = kChain; k < steps; k += kChain) {
    Vec part[kRows][Vecs];
    dot_chain(rows + k * kPanel, columns + k * kPanel,
              steps - k < kChain ? steps - k : kChain, part);
    S3H_UNROLL for (int r = 0; r < kRows; ++r)
        S3H_UNROLL for (int c = 0; c < Vecs; ++c) acc[r][c] += part[r][c];
  }
}

#endif

#if defined(__AVX512BF16__) || defined(S3H_TILE_UNIT)
constexpr bool kPairs = true;
#else
constexpr bool kPairs = false;
#endif

// The micro-tiles of one column panel, Vecs vectors of it.
template <bool Exact, int Vecs, typename Body>
S3H_INLINE void for_rows(const Tile& t, int64_t column, int64_t kept,
                         const Body& body) {
  const int64_t panel_size = t.steps * kPanel;
  const float* columns = t.column.panels + column / kPanel * panel_size;
#if defined(S3H_TILE_UNIT)
  alignas(64) float buffers[2][kTileRows * kPanel];
  const auto buffer = [&](int64_t row) {
    return buffers[row / kTileRows % 2] + row % kTileRows * kPanel;
  };
  const auto multiply = [&](int64_t row) __attribute__((always_inline)) {
    if (t.kept != nullptr || row >= t.row.count) return;
    const float* rows = t.row.row_major + row * t.steps;
    if (t.parts == 1)
      dot_products<Vecs, 1>(rows, 0, columns, 0, t.steps, buffer(row));
    else
      dot_products<Vecs, 3>(rows, t.row.part, columns, t.column.part, t.steps,
                            buffer(row));
  };
  multiply(0);
#endif
  for (int64_t row = 0; row < t.row.count; row += kRows) {
    const int64_t at = kept + row * kPanel;
#if defined(S3H_TILE_UNIT)
    if (row % kTileRows == 0) multiply(row + kTileRows);
#endif
    Vec acc[kRows][Vecs];
    if (t.kept != nullptr) {
      S3H_UNROLL for (int r = 0; r < kRows; ++r)
          S3H_UNROLL for (int c = 0; c < Vecs; ++c) acc[r][c] =
              load(t.kept + at + r * kPanel + c * kLanes);
    } else {
#if defined(S3H_TILE_UNIT)
      S3H_UNROLL for (int r = 0; r < kRows; ++r)
          S3H_UNROLL for (int c = 0; c < Vecs; ++c) acc[r][c] =
              load(buffer(row) + r * kPanel + c * kLanes);
#else
      const float* rows =
          t.row.panels + row / kPanel * panel_size + row % kPanel;
      dot_products(rows, columns, t.steps, acc);
#endif
      S3H_UNROLL for (int r = 0; r < kRows; ++r)
          S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
        const Vec dot = acc[r][c];
        acc[r][c] = Exact ? rounded(dot * t.score_scale +
                                    rounded(dot * t.score_scale_rest))
                          : exp2_bounded(kPairs ? dot * t.score_scale : dot);
        if (t.keep != nullptr)
          store(t.keep + at + r * kPanel + c * kLanes, acc[r][c]);
      }
    }
    body(row, column, acc);
  }
}

// Calls body(row, column, values) for every micro-tile that has a real row and
// column vector. Exact: values are scores, otherwise 2^score.
template <bool Exact, typename Body>
S3H_INLINE void for_micro_tiles(const Tile& t, const Body& body) {
  int64_t kept = 0, step = t.kept_step;
  for (int64_t column = 0; column < t.column.count; column += kPanel) {
    const int64_t left = t.column.count - column;
    if (left > 2 * kLanes)
      for_rows<Exact, 3>(t, column, kept, body);
    else if (left > kLanes)
      for_rows<Exact, 2>(t, column, kept, body);
    else
      for_rows<Exact, 1>(t, column, kept, body);
    kept += step;
    step += t.kept_growth;
  }
}

}  // namespace
}  // namespace s3h::cpu::S3H_LEVEL
