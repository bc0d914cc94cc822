// A tile unit's operands, for similarity_tiles.cpp: rows of bfloat16 pairs, and
// layouts derived from them.
#pragma once

#include "shuffle.h"
#include "similarity_tiles.h"
#include "vec.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

static_assert(kTileUnit == kLanes);

typedef uint16_t Halves __attribute__((vector_size(kLanes * 4)));

constexpr uint32_t kUpperHalf = 0xffff0000;

// Rounds to bfloat16, ties away from zero: the remainder has 16 bits, and its
// own remainder 8. Finite numbers only.
S3H_INLINE Vec nearest(Vec x) {
  return (Vec)(((BitVec)x + 0x8000) & kUpperHalf);
}

// Pairs of bfloat16 from neighbours, those of x before those of y.
S3H_INLINE Vec neighbours(Vec x, Vec y) {
  return (
      Vec)shuffle<1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31, 33,
                  35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63>(
      (Halves)x, (Halves)y);
}

// Pairs of bfloat16 from vertical neighbours.
S3H_INLINE Vec stacked(Vec upper, Vec lower) {
  return (Vec)((BitVec)upper >> 16 | ((BitVec)lower & kUpperHalf));
}

float sum_of(Vec v) {
  float sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
}

// Splits 32 numbers; returns their squares.
S3H_INLINE Vec split(const float* from, float* to, int64_t part) {
  Vec x = load(from), y = load(from + kLanes);
  const Vec squares = x * x + y * y;
  S3H_UNROLL for (int p = 0; p < 3; ++p) {
    const Vec u = p < 2 ? nearest(x) : x, v = p < 2 ? nearest(y) : y;
    store(to + p * part, neighbours(u, v));
    x -= u;
    y -= v;
  }
  return squares;
}

float take_floats(const float* row, int64_t depth, int64_t steps, float* to,
                  int64_t part) {
  Vec squares{};
  int64_t s = 0;
  for (; 2 * (s + kLanes) <= depth; s += kLanes)
    squares += split(row + 2 * s, to + s, part);
  if (s < steps) {
    float last[2 * kLanes] = {};
    std::memcpy(last, row + 2 * s,
                static_cast<size_t>(depth - 2 * s) * sizeof(float));
    squares += split(last, to + s, part);
  }
  return sum_of(squares);
}

float take_pairs(const void* row, int64_t depth, int64_t steps, float* to) {
  const size_t size = static_cast<size_t>(depth) * 2;
  std::memcpy(to, row, size);
  std::memset(reinterpret_cast<char*>(to) + size, 0,
              static_cast<size_t>(steps) * sizeof(float) - size);
  Vec squares{};
  for (int64_t s = 0; s < steps; s += kLanes) {
    const BitVec pairs = (BitVec)load(to + s);
    const Vec low = (Vec)(pairs << 16), high = (Vec)(pairs & kUpperHalf);
    squares += low * low + high * high;
  }
  return sum_of(squares);
}

void pair_rows(const float* upper, const float* lower, int64_t width,
               float* to) {
  for (int64_t d = 0; d < width; d += 2 * kLanes) {
    const Halves x = (Halves)load(upper + d / 2),
                 y = (Halves)load(lower + d / 2);
    store(
        to + d,
        (Vec)shuffle<0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39, 8,
                     40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47>(
            x, y));
    if (d + kLanes < width)
      store(to + d + kLanes,
            (Vec)shuffle<16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54,
                         23, 55, 24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61,
                         30, 62, 31, 63>(x, y));
  }
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

void turn(const float* from, int64_t from_ld, float* to, int64_t to_ld) {
  Vec square[kLanes];
  S3H_UNROLL for (int i = 0; i < kLanes; ++i) square[i] =
      load(from + i * from_ld);
  constexpr auto kAll = std::make_integer_sequence<int, kLanes>{};
  exchange<1>(square, kAll);
  exchange<2>(square, kAll);
  exchange<4>(square, kAll);
  exchange<8>(square, kAll);
  S3H_UNROLL for (int i = 0; i < kLanes; ++i) store(to + i * to_ld, square[i]);
}

}  // namespace
}  // namespace s3h::cpu::S3H_LEVEL
