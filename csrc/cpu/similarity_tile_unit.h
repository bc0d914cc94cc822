// The backward's products on a tile unit, for similarity_tiles.cpp. A tile's
// gradient is rounded to bfloat16, or split into three. It is the left operand
// of the rows' product and, as pairs of its rows, the right operand of the
// columns' product. That one gives the transpose of the columns' gradient, so
// the tile's gradient need not be transposed.
#pragma once

#include "similarity_micro_tiles.h"
#include "similarity_tile_operands.h"
#include "tile_unit.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

static_assert(kTileUnit == kTileWords && kRows % 2 == 0);

// Two rows of a micro-tile, zero-padded to 32 columns. Rounded: to bfloat16.
template <bool Rounded, int Vecs>
S3H_INLINE void keep_rows(float* gradient, int64_t ld, float* pairs,
                          const Vec (&g)[2][Vecs]) {
  const auto beside = [](Vec x, Vec y) __attribute__((always_inline)) {
    return Rounded ? neighbours(x, y) : to_pairs(x, y);
  };
  if (gradient != nullptr) S3H_UNROLL for (int r = 0; r < 2; ++r) {
      float* at = gradient + r * ld;
      store(at, beside(g[r][0], Vecs > 1 ? g[r][Vecs / 2] : Vec{}));
      if constexpr (Vecs > 1)
        store(at + kLanes, beside(Vecs > 2 ? g[r][Vecs - 1] : Vec{}, Vec{}));
    }
  if (pairs != nullptr) S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
      const Vec upper = g[0][c], lower = g[1][c];
      if constexpr (Rounded) {
        store(pairs + c * kLanes, stacked(upper, lower));
      } else {
        const Halves both = (Halves)to_pairs(upper, lower);
        store(pairs + c * kLanes,
              (Vec)shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7,
                           23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14,
                           30, 15, 31>(both, both));
      }
    }
}

// Stores the gradient of a micro-tile.
template <int Vecs>
S3H_INLINE void keep_gradient(const Tile& t, int64_t row, int64_t column,
                              const Vec (&g)[kRows][Vecs]) {
  const auto at = [](float* base, int64_t offset) {
    return base == nullptr ? nullptr : base + offset;
  };
  float* gradient = at(t.gradient, row * t.gradient_ld + column / 2);
  float* pairs = at(t.gradient_pairs, row / 2 * t.gradient_pairs_ld + column);
  S3H_UNROLL for (int r = 0; r < kRows; r += 2) {
    float* to = at(gradient, r * t.gradient_ld);
    float* pairs_to = at(pairs, r / 2 * t.gradient_pairs_ld);
    Vec left[2][Vecs], part[2][Vecs];
    S3H_UNROLL for (int i = 0; i < 2; ++i)
        S3H_UNROLL for (int c = 0; c < Vecs; ++c) left[i][c] = g[r + i][c];
    if (t.parts == 1) {
      keep_rows<false>(to, t.gradient_ld, pairs_to, left);
      continue;
    }
    S3H_UNROLL for (int p = 0; p < 3; ++p) {
      S3H_UNROLL for (int i = 0; i < 2; ++i)
          S3H_UNROLL for (int c = 0; c < Vecs; ++c) {
        part[i][c] = p < 2 ? nearest(left[i][c]) : left[i][c];
        left[i][c] -= part[i][c];
      }
      keep_rows<true>(at(to, p * t.gradient_part), t.gradient_ld,
                      at(pairs_to, p * t.gradient_pairs_part), part);
    }
  }
}

// Zeros below the existing pairs, up to 32 rows.
inline void fill_pairs(const Tile& t) {
  constexpr int64_t kStep = 2 * kTileRows;
  const int64_t first = (t.row.count + kRows - 1) / kRows * kRows;
  const int64_t last = (t.row.count + kStep - 1) / kStep * kStep;
  for (int64_t p = 0; p < t.parts; ++p)
    for (int64_t row = first; row < last; row += 2) {
      float* at = t.gradient_pairs + p * t.gradient_pairs_part +
                  row / 2 * t.gradient_pairs_ld;
      for (int64_t c = 0; c < t.column.count; c += kLanes) store(at + c, Vec{});
    }
}

// Rows x Columns registers of `out`; each operand's register is loaded once for
// all of them.
template <int Rows, int Columns, int Parts>
void multiply_group(const Apply& a, int64_t row, int64_t column) {
  Tiles tiles;
  float* out = a.out + row * a.out_ld + column;
  const auto for_outs = [&](const auto& body) __attribute__((always_inline)) {
    for_tiles<Rows * Columns>([&]<int I>() __attribute__((always_inline)) {
      constexpr int kRow = I / Columns, kColumn = I % Columns;
      body.template operator()<I, kRow, kColumn>(kRow * kTileRows * a.out_ld +
                                                 kColumn * kLanes);
    });
  };
  for_outs([&]<int I, int, int>(int64_t at) __attribute__((always_inline)) {
    if (Parts == 1 && a.accumulate)
      tiles.load<I>(out + at, a.out_ld);
    else
      tiles.zero<I>();
  });
  const float* left = a.g + row * a.row_stride;
  const float* right = a.rows + column;
  const auto load_left = [&](int part) __attribute__((always_inline)) {
    for_tiles<Rows>([&]<int R>() __attribute__((always_inline)) {
      tiles.load<4 + R>(left + part * a.g_part + R * kTileRows * a.row_stride,
                        a.row_stride);
    });
  };
  const auto load_right = [&](int part) __attribute__((always_inline)) {
    for_tiles<Columns>([&]<int C>() __attribute__((always_inline)) {
      tiles.load<6 + C>(right + part * a.rows_part + C * kLanes, a.rows_ld);
    });
  };
  const auto multiply = [&]() __attribute__((always_inline)) {
    for_outs([&]<int I, int R, int C>(int64_t) __attribute__((always_inline)) {
      tiles.multiply_add<I, 4 + R, 6 + C>();
    });
  };
  for (int64_t t = 0; t < a.steps; t += kTileUnit) {
    load_left(0);
    if constexpr (Parts == 3) {
      load_right(2);
      multiply();
      load_right(1);
      multiply();
      load_left(1);
      multiply();
      load_right(0);
      multiply();
      load_left(2);
      multiply();
      load_left(0);
    } else {
      load_right(0);
    }
    multiply();
    left += kTileUnit;
    right += kTileUnit * a.rows_ld;
  }
  if (Parts == 1 || !a.accumulate) {
    for_outs([&]<int I, int, int>(int64_t at) __attribute__((always_inline)) {
      tiles.store<I>(out + at, a.out_ld);
    });
    return;
  }
  // Summed separately first: long sequential sums lose precision.
  alignas(64) float sums[Rows * kTileRows * Columns * kLanes];
  for_outs([&]<int I, int R, int C>(int64_t) __attribute__((always_inline)) {
    tiles.store<I>(sums + (R * kTileRows * Columns + C) * kLanes,
                   Columns * kLanes);
  });
  for (int r = 0; r < Rows * kTileRows; ++r)
    for (int c = 0; c < Columns; ++c) {
      float* at = out + r * a.out_ld + c * kLanes;
      store(at, load(at) + load(sums + (r * Columns + c) * kLanes));
    }
}

template <int Parts>
void multiply(const Apply& a) {
  for (int64_t column = 0; column < a.width; column += 2 * kLanes) {
    const bool two = column + kLanes < a.width;
    for (int64_t row = 0; row < a.count; row += 2 * kTileRows) {
      if (row + kTileRows >= a.count)
        two ? multiply_group<1, 2, Parts>(a, row, column)
            : multiply_group<1, 1, Parts>(a, row, column);
      else
        two ? multiply_group<2, 2, Parts>(a, row, column)
            : multiply_group<2, 1, Parts>(a, row, column);
    }
  }
}

void apply(const Apply& a) {
  if (a.parts == 1)
    multiply<1>(a);
  else
    multiply<3>(a);
}

}  // namespace
}  // namespace s3h::cpu::S3H_LEVEL
