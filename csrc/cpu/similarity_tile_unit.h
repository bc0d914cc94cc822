// The backward's products by a tile unit, for similarity_tiles.cpp. A tile's
// gradient is their left operand, rounded to bfloat16: as it is for the rows'
// side, transposed for the columns'.
#pragma once

#include "shuffle.h"
#include "similarity_micro_tiles.h"
#include "tile_unit.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

static_assert(kTileUnit == kTileWords && kTileUnit == kLanes);

// Keeps the gradient of a micro-tile, and zeros up to 32 columns.
template <int Vecs>
S3H_INLINE void keep_gradient(const Tile& t, int64_t row, int64_t column,
                              const Vec (&g)[kRows][Vecs]) {
  S3H_UNROLL for (int r = 0; r < kRows; ++r) {
    float* at = t.gradient + (row + r) * t.gradient_ld + column / 2;
    store(at, to_pairs(g[r][0], Vecs > 1 ? g[r][Vecs / 2] : Vec{}));
    if constexpr (Vecs > 1)
      store(at + kLanes, to_pairs(Vecs > 2 ? g[r][Vecs - 1] : Vec{}, Vec{}));
  }
}

// Two rows of 16 numbers: pairs of what stands below one another.
S3H_INLINE Vec pairs_of_rows(const float* upper, const float* lower) {
  typedef uint16_t Halves __attribute__((vector_size(kLanes * 4)));
  Halves both;
  std::memcpy(&both, upper, sizeof both / 2);
  std::memcpy(reinterpret_cast<char*>(&both) + sizeof both / 2, lower,
              sizeof both / 2);
  return (
      Vec)shuffle<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24,
                  9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(both,
                                                                         both);
}

// Exchanges the elements off the diagonal of every 2 x 2 square of squares of
// kSide; for 1, 2, 4 and 8 the rows are transposed.
template <int kSide, int... Lane>
S3H_INLINE void exchange(Vec (&rows)[kLanes],
                         std::integer_sequence<int, Lane...>) {
  S3H_UNROLL for (int i = 0; i < kLanes; ++i) {
    if ((i & kSide) != 0) continue;
    const Vec x = rows[i], y = rows[i + kSide];
    rows[i] = shuffle<(Lane & kSide ? kLanes + Lane - kSide : Lane)...>(x, y);
    rows[i + kSide] =
        shuffle<(Lane & kSide ? kLanes + Lane : Lane + kSide)...>(x, y);
  }
}

// Makes the gradient's transpose, with zeros up to 32 rows.
inline void transpose_gradient(const Tile& t) {
  const int64_t rows = (t.row.count + kRows - 1) / kRows * kRows;
  for (int64_t row = 0; row < rows; row += 2 * kLanes)
    for (int64_t column = 0; column < t.column.count; column += kLanes) {
      const float* from = t.gradient + row * t.gradient_ld + column / 2;
      Vec square[kLanes];
      S3H_UNROLL for (int i = 0; i < kLanes; ++i) {
        const float* upper = from + 2 * i * t.gradient_ld;
        square[i] = row + 2 * i < rows
                        ? pairs_of_rows(upper, upper + t.gradient_ld)
                        : Vec{};
      }
      constexpr auto kAll = std::make_integer_sequence<int, kLanes>{};
      exchange<1>(square, kAll);
      exchange<2>(square, kAll);
      exchange<4>(square, kAll);
      exchange<8>(square, kAll);
      float* to = t.gradient_pairs + column * t.gradient_pairs_ld + row / 2;
      S3H_UNROLL for (int i = 0; i < kLanes; ++i)
          store(to + i * t.gradient_pairs_ld, square[i]);
    }
}

// One column group, Width registers wide.
template <int Width>
void apply_group(const Apply& a, int64_t column) {
  Tiles tiles;
  for (int64_t row = 0; row < a.count; row += kTileRows) {
    const float* g = a.g + row * a.row_stride;
    float* out = a.out + row * a.out_ld + column;
    for_tiles<Width>([&]<int C>() __attribute__((always_inline)) {
      if (a.accumulate)
        tiles.load<C>(out + C * kLanes, a.out_ld);
      else
        tiles.zero<C>();
    });
    for (int64_t t = 0; t < a.steps; t += kTileUnit) {
      const float* from = a.rows + t * a.rows_ld + column;
      tiles.load<4>(g + t, a.row_stride);
      for_tiles<Width>([&]<int C>() __attribute__((always_inline)) {
        tiles.load<5 + C % 3>(from + C * kLanes, a.rows_ld);
        tiles.multiply_add<C, 4, 5 + C % 3>();
      });
    }
    for_tiles<Width>([&]<int C>() __attribute__((always_inline)) {
      tiles.store<C>(out + C * kLanes, a.out_ld);
    });
  }
}

void apply(const Apply& a) {
  for (int64_t column = 0; column < a.width; column += 4 * kLanes) {
    switch ((a.width - column) / kLanes) {
      case 1:
        apply_group<1>(a, column);
        break;
      case 2:
        apply_group<2>(a, column);
        break;
      case 3:
        apply_group<3>(a, column);
        break;
      default:
        apply_group<4>(a, column);
    }
  }
}

}  // namespace
}  // namespace s3h::cpu::S3H_LEVEL
