// Copies of the rows in the layouts that the inner loops read.
#pragma once

#include <cmath>
#include <cstdint>

namespace s3h::cpu {

// Rows of `depth` elements, `count` of which exist from `rows` on.
template <typename Element>
struct Rows {
  const Element* rows;
  int64_t count;
  int64_t depth;
};

// Makes `largest` the larger of the two; a NaN stays, so that nobody trusts a
// range that it hides.
template <typename Number>
void keep_larger(Number& largest, Number value) {
  if (!(value <= largest) && !std::isnan(largest)) largest = value;
}

// Packs up to `panel` rows into to[steps][panel], times `scale` (1 for pairs of
// bfloat16), zeros in the padding. Returns the largest squared length of a row,
// as packed; NaN where a row holds one.
template <typename Element>
float pack_panel(const Rows<Element>& from, int64_t panel, int64_t steps,
                 float scale, float* to);

// Copies one row (float), or two neighbours as pairs (bfloat16), to `width`
// 32-bit elements, zeros in the padding.
template <typename Element>
void copy_row(const Rows<Element>& from, int64_t width, float* to);

}  // namespace s3h::cpu
