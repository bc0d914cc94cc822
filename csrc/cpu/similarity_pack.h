// Copies of the rows in the layouts of the inner loops.
#pragma once

#include <cmath>
#include <cstdint>

namespace s3h::cpu {

// Rows of `depth` elements; `count` of them exist, starting at `rows`.
template <typename Element>
struct Rows {
  const Element* rows;
  int64_t count;
  int64_t depth;
};

// Sets `largest` to the larger of the two; a NaN stays, so that the range is
// not trusted.
template <typename Number>
void keep_larger(Number& largest, Number value) {
  if (!(value <= largest) && !std::isnan(largest)) largest = value;
}

// Packs up to `panel` rows into to[steps][panel], times `scale` (1 for pairs of
// bfloat16), with zeros as padding. Returns the largest squared length of a
// packed row, or NaN if a row contains one.
template <typename Element>
float pack_panel(const Rows<Element>& from, int64_t panel, int64_t steps,
                 float scale, float* to);

// Copies one row (float), or two neighbours as pairs (bfloat16), to `width`
// 32-bit elements, with zeros as padding.
template <typename Element>
void copy_row(const Rows<Element>& from, int64_t width, float* to);

}  // namespace s3h::cpu
