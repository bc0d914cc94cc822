// The tiled path: division of the tiles, and everything around the inner loops.
//
// Both sides are packed once into panels (similarity_tiles.h). The work is a
// list of tiles of up to kBlock x kBlock, divided into one piece of equal cost
// per thread (similarity_blocks.h). Each piece has its own buffers, and the
// pieces are summed in order.
//
//   symmetric, forward    tiles on and above the diagonal; each gives row sums
//                         and column sums
//   symmetric, backward   the same tiles; each computes both roles' gradient G
//                         and adds dz_I += G z_J and dz_J += G' z_I
//   rectangular backward  the larger side is divided among the threads, who own
//                         its gradient; the smaller side's is private
//   deterministic         all tiles, rows of blocks divided among the threads,
//                         row side only: no sum depends on the division
//
// A small problem's scores are kept from the forward for the backward, which
// then does not pack and multiply again.
//
// Scores are in units of log 2. In the fast form log2(e)/temperature is folded
// into the packed operands, its root on each side. In the exact form, where
// scores are large, its rounding errors would be too, so dot products are
// multiplied with it; the same goes for pairs of bfloat16.
//
// similarity_operands.cpp fills the vectors and panels, similarity_forward.cpp
// and similarity_backward.cpp run the tiles.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "bfloat16.h"
#include "run_ranges.h"
#include "similarity.h"
#include "similarity_blocks.h"
#include "similarity_pack.h"
#include "similarity_tiles.h"
#include "workspace.h"

namespace s3h::cpu {

constexpr int64_t kBlock = 192;
constexpr double kLog2E = 1.4426950408889634;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename Element>
class Engine {
 public:
  Engine(const SimilarityProblem<float, Element>& problem,
         const Threads& threads, bool deterministic,
         const TileKernels& kernels);

  // Returns false, with nothing done, if the kernels of a tile unit cannot
  // split some numbers.
  bool forward(const TiledSums& sums);
  bool backward(const float* grad, const TiledSums& sums, Element* grad_queries,
                Element* grad_keys, const RowFunction<float>& add);

 private:
  // Queries or keys, and the positions of their arrays in memory_; 0: none.
  struct Side {
    const Element* matrix;
    int64_t count;
    int64_t panels;
    size_t packed, bias, same, label, rows;
    size_t row_major, turned;  // for a tile unit
    size_t scale, lse, lse_rest, grad, own_lse, own_lse_rest;  // backward
  };

  // A side's gradient in progress: `copies` of [panels * panel, width_], or
  // transposed.
  struct Gradient {
    bool transposed;
    int64_t copies;
    int64_t size;  // size of one copy
    int64_t panels;
    size_t buffer;
    std::vector<char> touched;  // [copies, panels]: not empty
  };

  // Format of the kept scores.
  struct KeptForm {
    double middle;
    int64_t exact;
  };
  static_assert(sizeof(KeptForm) <= kKeptHead * sizeof(float));

  // Sums of exponentials, each relative to its maximum if `exact_`.
  struct Sums {
    float* sum;
    float* maximum;
  };

  // Positions of such arrays; those of each task have `size` elements.
  struct SumsPlace {
    size_t sum, maximum;
    int64_t size;
  };

  // The sums of one task during the forward.
  struct Totals {
    Sums rows, own_rows;    // of the whole problem
    Sums lanes, own_lanes;  // of a block's rows
    Sums columns;           // of a block's columns
    int32_t* self;
  };

  // Scratch memory of one task during the backward.
  struct Scratch {
    float* tile;
    float* pairs;
    int32_t* self;
  };

  void reserve(bool backward);
  void reserve_side(Side& side, bool backward);
  void pack_all();
  bool prepare(const float* grad, const TiledSums& sums);
  void pack(const Side& side, float* longest);
  void take_rows(const Side& side, float* longest);
  void make_panels(const Side& side);
  void make_pairs(const Side& side);
  bool splits() const;
  void copy_rows(const Side& side);
  void find_range();
  void fill_bias(const Side& side, bool is_row);
  void fill_same();
  void fill_grad(const float* grad, const TiledSums& sums);
  void fill_own(const TiledSums& sums);
  void fill_labels();
  Tile tile_of(const Block& block, int32_t* self) const;
  void set_kept(Tile& tile, const Block& block, bool read) const;
  TileSide tile_side(const Side& side, Range panels) const;
  bool leave_out(const Block& block, int32_t* self) const;
  SumsPlace reserve_sums(int64_t size);
  Sums sums_of(const SumsPlace& place, int64_t task) const;
  void add_to(const Sums& to, int64_t at, float sum, float maximum) const;
  void clear(const Sums& sums, int64_t size) const;
  void forward_piece(const std::vector<Block>& blocks, bool both,
                     const Totals& totals) const;
  void finish(const SumsPlace& place, double* log2) const;
  void backward_piece(const std::vector<Block>& blocks, int64_t task,
                      const Scratch& scratch, Gradient* rows,
                      Gradient* columns) const;
  Gradient reserve_gradient(const Side& side, int64_t copies, bool transposed);
  void sum_up(const Side& side, const std::vector<const Gradient*>& gradients,
              Element* out, const RowFunction<float>& add) const;
  void add_rows(const Gradient& from, int64_t copy, int64_t first, int64_t last,
                bool before, float* total) const;
  const float* rows_of(const Side& side, int64_t panel) const;

  int64_t rows_in(const Side& side, Range panels) const {
    return std::min(panels.last * k_.panel, side.count) -
           panels.first * k_.panel;
  }
  bool pairs() const { return k_.pairs; }
  // Rows in the copy for `apply`. A tile unit reads whole registers, which may
  // start in the middle of the last panel.
  int64_t pair_rows(const Side& side) const {
    if (k_.tile_unit)
      return ceil_div(side.panels * k_.panel / 2, kTileUnit) * kTileUnit +
             kTileUnit;
    return pairs() ? ceil_div(side.count, 2) : side.count;
  }
  // Leading dimension of a transpose: an odd number of cache lines, so that
  // rows do not share a cache set.
  static int64_t turned_ld(int64_t rows) {
    return (ceil_div(rows, kTileUnit) | 1) * kTileUnit;
  }
  // Leading dimension of a tile's gradient; powers of two would share a cache
  // set.
  int64_t tile_ld() const {
    return across_ * k_.panel / (k_.pairs ? 2 : 1) + k_.lanes;
  }
  int64_t pairs_ld() const { return across_ * k_.panel + k_.lanes; }
  int64_t pair_tile_rows() const {
    const int64_t rows = block_ * k_.panel / 2;
    return k_.tile_unit ? ceil_div(rows, kTileUnit) * kTileUnit : rows;
  }
  bool labelled() const { return p_.query_labels != nullptr; }
  bool triangular() const { return p_.symmetric && !deterministic_; }
  const Side& columns() const { return p_.symmetric ? row_ : column_; }
  // The symmetric case keeps two sets of labels, because missing labels and
  // padding differ between the sides.
  size_t column_labels() const {
    if (!p_.symmetric) return column_.label;
    return row_.label +
           static_cast<size_t>(row_.panels * k_.panel) * sizeof(int32_t);
  }
  bool scaled_operands() const { return !exact_ && !pairs(); }
  float operand_scale() const;

  TileKind kind(const Tile& tile, bool symmetric) const {
    return {exact_, labelled(), apart_, tile.row.self != nullptr, symmetric};
  }

  // Runs a task's tiles on a thread, between `begin` and `end`.
  void run_pieces(const std::function<void(int64_t task)>& piece) const {
    run(tasks_, [&](int64_t first, int64_t last) {
      k_.begin();
      for (int64_t task = first; task < last; ++task) piece(task);
      k_.end();
    });
  }

  // Small problems stay on the calling thread.
  void run(int64_t count, const RangeFunction& body) const {
    run_ranges(threads_, count, tasks_ == 1, body);
  }

  const SimilarityProblem<float, Element>& p_;
  const Threads& threads_;
  bool deterministic_;
  const TileKernels& k_;
  int64_t parts_;  // parts of a number, for a tile unit
  int64_t steps_, width_, tasks_;
  int64_t block_, across_;  // panels of a tile, rows and columns
  Workspace memory_;
  Side row_{}, column_{};
  std::vector<float> longest_;  // per panel, squared; rows then columns
  bool exact_ = false;
  double middle_ = 0;   // fast: origin of biases, in log 2
  bool apart_ = false;  // separate sums for the row's own label
  float* kept_ = nullptr;
  double grad_unit_ = 1;  // power of two, scales gradients to about 1
};

}  // namespace s3h::cpu
