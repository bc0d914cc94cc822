// The inner loops of the tiled path, one table of them per instruction set.
//
// A side (queries or keys) is packed into panels of `panel` rows, each panel
// [steps][panel] 32-bit elements: an element is a float or, with `pairs`, a
// pair of bfloat16 neighbours in depth. A tile is a range of row panels against
// a range of column panels. A micro-tile, `rows` x `panel`, keeps its dot
// products in registers over the whole depth and computes the exponential
// there; scores are stored only in small problems, for the backward. All scores
// are in units of log 2.
//
// A tile unit only multiplies bfloat16. A float is the sum of three of them,
// its parts, and a product of two floats the sum of six products of parts: the
// three that are left out are below the precision of a float.
#pragma once

#include <cstdint>

namespace s3h::cpu {

// A tile's rows or columns; pointers are to the tile's first element, all
// arrays padded to whole panels.
struct TileSide {
  const float* panels;
  const float* row_major;  // rows, `tile_unit` only: [count, steps]
  int64_t part;            // distance between parts of these two
  int64_t count;           // real elements; the rest is padding
  const float* bias;       // fast: 2^bias, 0 in the padding; exact: bias, -inf
  const float* same;       // fast: 2^same_label_bias; exact: same_label_bias
  const int32_t* label;
  const int32_t* self;  // rows only: column to leave out, counted from the
                        // tile's first column; anything else: none
  // Backward, fast: grad 2^-lse.
  const float* scale;
  // Backward, exact: lse in two parts, as its precision must match that of a
  // difference from a score.
  const float* lse;
  const float* lse_rest;
  const float* grad;
  // Rows only, `apart`: over the keys with the row's label.
  const float* own_lse;
  const float* own_lse_rest;
};

struct Tile {
  TileSide row;
  TileSide column;
  int64_t steps;  // 32-bit elements along the depth
  int64_t parts;  // parts of a number: 1, with a tile unit 3
  // Converts a dot product to units of log 2, in two parts; 1 if the packed
  // numbers include it.
  float score_scale, score_scale_rest;
  // Fast: 2^score, exact: scores, before biases; [rows of the whole problem]
  // [panel] for each column panel, from the tile's first row on. The next
  // column panel is kept_step further, the one after it kept_growth more. The
  // forward writes to `keep` and the backward reads `kept`; nullptr: none.
  float* keep;
  const float* kept;
  int64_t kept_step, kept_growth;
  // Forward. The caller sums up the lanes: [row count, lanes].
  float* row_sum;
  float* row_max;  // exact only
  float* own_sum;  // apart only
  float* own_max;
  float* column_sum;  // [column count], symmetric only
  float* column_max;
  // Backward: gradient of the scores [rows, ld] and, with `pairs`, pairs of its
  // rows: [rows / 2, ld]. For a tile unit either may be nullptr, and both are
  // zero-padded to whole registers. Leading dimensions count 32-bit elements.
  float* gradient;
  int64_t gradient_ld;
  int64_t gradient_part;
  float* gradient_pairs;
  int64_t gradient_pairs_ld;
  int64_t gradient_pairs_part;
};

struct TileKind {
  bool exact;  // running maximum; otherwise no shift is needed
  bool labels;
  bool apart;      // separate sums for the row's own label
  bool exclude;    // row.self is set
  bool symmetric;  // forward: column sums too; backward: both roles' gradient
};

// out[r, :] (+)= sum_t g[r * row_stride + t * step_stride] * rows[t, :] for
// r < count rounded up to whole register groups, all in 32-bit elements.
struct Apply {
  const float* g;
  int64_t row_stride;
  int64_t step_stride;
  int64_t count;
  int64_t steps;
  const float* rows;
  int64_t rows_ld;
  float* out;
  int64_t out_ld;
  int64_t width;  // a multiple of lanes
  bool accumulate;
  // For a tile unit: parts of a number, and the distance between them.
  int64_t parts;
  int64_t g_part;
  int64_t rows_part;
};

// 32-bit elements in a row of a tile unit's registers.
constexpr int64_t kTileUnit = 16;

struct TileKernels {
  int64_t lanes;
  int64_t panel;
  bool pairs;
  // Reads the depth, and in `apply` the steps, in units of kTileUnit, and the
  // rows of scores row-major. Each thread must call begin() first and end()
  // last; other kernels have nothing to call.
  bool tile_unit;
  void (*begin)();
  void (*end)();
  void (*forward)(const Tile&, TileKind);
  void (*backward)(const Tile&, TileKind);
  void (*apply)(const Apply&);
  // With a tile unit: conversions of its operands.
  // Copies a row to [steps] pairs of neighbours in each of its parts; returns
  // its squared length.
  float (*take_floats)(const float* row, int64_t depth, int64_t steps,
                       float* to, int64_t part);
  float (*take_pairs)(const void* row, int64_t depth, int64_t steps, float* to);
  // Combines two such rows to [width] vertical pairs.
  void (*pair_rows)(const float* upper, const float* lower, int64_t width,
                    float* to);
  // The transpose of kTileUnit x kTileUnit elements.
  void (*turn)(const float* from, int64_t from_ld, float* to, int64_t to_ld);
};

namespace baseline {
extern const TileKernels kTiles;
}
#if defined(S3H_X86_LEVELS)
namespace avx2 {
extern const TileKernels kTiles;
}
namespace avx512 {
extern const TileKernels kTiles;
}
namespace avx512_bf16 {
extern const TileKernels kTiles;
}
namespace amx {
extern const TileKernels kTiles;
}
namespace amx_emulated {
extern const TileKernels kTiles;
}
#endif

// The best table for this CPU; `pairs` needs bfloat16_products(). nullptr if
// there is no tile unit.
const TileKernels& tile_kernels(bool pairs);
const TileKernels* unit_kernels();

}  // namespace s3h::cpu
