// The tiled path's backward: a tile's gradient of the scores is formed once and
// multiplied with the columns' rows, and its transpose with the rows'.
#include <algorithm>
#include <cmath>

#include "bfloat16.h"
#include "similarity_engine.h"

namespace s3h::cpu {
namespace {

// One walk over tiles and whom it serves.
struct Sweep {
  bool by_columns, rows, columns;
};

}  // namespace

template <typename Element>
void Engine<Element>::backward(const float* grad, const TiledSums& sums,
                               Element* grad_queries, Element* grad_keys,
                               const RowFunction<float>& add) {
  apart_ = sums.own_log2 != nullptr;
  kept_ = sums.kept;
  reserve(true);
  const int64_t block_rows = block_ * k_.panel;
  const int64_t tile_size = block_rows * tile_ld();
  const int64_t pairs_size =
      pairs() ? block_rows / (k_.tile_unit ? 1 : 2) * pairs_ld() : 0;
  const size_t tiles = memory_.reserve<float>(tasks_ * tile_size);
  const size_t pair_tiles = memory_.reserve<float>(tasks_ * pairs_size);
  const size_t selves = memory_.reserve<int32_t>(tasks_ * block_rows);

  // One sweep serves both sides, except that a deterministic one serves the
  // side that it is cut by.
  std::vector<Sweep> sweeps;
  const bool want_keys = grad_keys != nullptr && !p_.symmetric;
  const bool want_queries = grad_queries != nullptr;
  const bool larger_keys = columns().panels > row_.panels;
  if (deterministic_) {
    if (want_queries) sweeps.push_back({false, true, false});
    if (want_keys) sweeps.push_back({true, false, true});
  } else if (want_queries || want_keys) {
    sweeps.push_back({larger_keys, want_queries, want_keys});
  }
  // A side that is cut among the tasks needs one buffer, the other one each.
  const auto copies = [&](bool is_column) {
    if (deterministic_) return int64_t{1};
    if (p_.symmetric) return tasks_;
    return larger_keys == is_column ? int64_t{1} : tasks_;
  };
  Gradient row_gradient =
      reserve_gradient(row_, want_queries ? copies(false) : 0);
  Gradient column_gradient =
      reserve_gradient(column_, want_keys ? copies(true) : 0);
  memory_.allocate();
  prepare(grad, sums);

  for (const Sweep& sweep : sweeps) {
    const Pieces pieces =
        triangular() ? triangle(row_.panels, block_, tasks_, 0.7)
                     : rectangle(row_.panels, columns().panels, block_, tasks_,
                                 deterministic_ ? block_ : 1, sweep.by_columns);
    run_pieces([&](int64_t task) {
      backward_piece(pieces[static_cast<size_t>(task)], task,
                     {memory_.at<float>(tiles) + task * tile_size,
                      memory_.at<float>(pair_tiles) + task * pairs_size,
                      memory_.at<int32_t>(selves) + task * block_rows},
                     sweep.rows ? &row_gradient : nullptr,
                     triangular()    ? &row_gradient
                     : sweep.columns ? &column_gradient
                                     : nullptr);
    });
  }
  if (want_queries) sum_up(row_, row_gradient, grad_queries, add);
  if (want_keys) sum_up(column_, column_gradient, grad_keys, {});
}

// In the triangle `columns` is `rows`, for a tile's columns are rows of the
// same gradient, and a diagonal tile is served by its rows alone.
template <typename Element>
void Engine<Element>::backward_piece(const std::vector<Block>& blocks,
                                     int64_t task, const Scratch& scratch,
                                     Gradient* rows, Gradient* columns) const {
  const int64_t group = pairs() ? 2 : 1;
  for (const Block& block : blocks) {
    Tile tile = tile_of(block, scratch.self);
    set_kept(tile, block, true);
    tile.gradient = scratch.tile;
    tile.gradient_ld = tile_ld();
    const bool diagonal = block.rows.first == block.columns.first;
    const bool to_columns = columns != nullptr && !(triangular() && diagonal);
    // A tile unit transposes apart from the rest, and nothing that is not read.
    tile.gradient_pairs = to_columns || !k_.tile_unit ? scratch.pairs : nullptr;
    tile.gradient_pairs_ld = pairs_ld();
    k_.backward(tile, kind(tile, p_.symmetric));

    const auto serve = [&](Gradient& to, Range panels, int64_t count,
                           const float* g, int64_t row_stride,
                           int64_t step_stride, int64_t steps,
                           const float* others) {
      const int64_t copy = to.copies == 1 ? 0 : task;
      char* touched = to.touched.data() + copy * to.panels;
      const int64_t panel_size = k_.panel * width_;
      float* out = memory_.at<float>(to.buffer) + copy * to.size +
                   panels.first * panel_size;
      // A piece of the triangle can begin inside a block: tiles of single
      // panels then come before the tiles of the whole block.
      const bool accumulate =
          std::find(touched + panels.first, touched + panels.last, char{1}) !=
          touched + panels.last;
      for (int64_t i = panels.first; i < panels.last; ++i) {
        if (accumulate && !touched[i])
          std::fill_n(out + (i - panels.first) * panel_size, panel_size, 0.0f);
        touched[i] = 1;
      }
      k_.apply({g, row_stride, step_stride, count, ceil_div(steps, group),
                others, width_, out, width_, width_, accumulate});
    };
    if (rows != nullptr)
      serve(*rows, block.rows, tile.row.count, scratch.tile, tile_ld(), 1,
            tile.column.count, rows_of(this->columns(), block.columns.first));
    if (to_columns)
      serve(*columns, block.columns, tile.column.count,
            pairs() ? scratch.pairs : scratch.tile,
            k_.tile_unit ? pairs_ld() : 1,
            k_.tile_unit ? 1
            : pairs()    ? pairs_ld()
                         : tile_ld(),
            tile.row.count, rows_of(row_, block.rows.first));
  }
}

template <typename Element>
typename Engine<Element>::Gradient Engine<Element>::reserve_gradient(
    const Side& side, int64_t copies) {
  const int64_t size = side.panels * k_.panel * width_;
  return {copies, size, side.panels, memory_.reserve<float>(copies * size),
          std::vector<char>(static_cast<size_t>(copies * side.panels))};
}

// Sums the copies in order, into the first that holds anything.
template <typename Element>
void Engine<Element>::sum_up(const Side& side, const Gradient& gradient,
                             Element* out,
                             const RowFunction<float>& add) const {
  const float scale = static_cast<float>(grad_unit_ / p_.temperature);
  run(side.count, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float* total = nullptr;
      for (int64_t c = 0; c < gradient.copies; ++c) {
        if (!gradient
                 .touched[static_cast<size_t>(c * side.panels + i / k_.panel)])
          continue;
        float* part =
            memory_.at<float>(gradient.buffer) + c * gradient.size + i * width_;
        if (total == nullptr) {
          total = part;
          continue;
        }
        for (int64_t d = 0; d < p_.depth; ++d) total[d] += part[d];
      }
      if (total == nullptr) {
        total = memory_.at<float>(gradient.buffer) + i * width_;
        std::fill(total, total + p_.depth, 0.0f);
      }
      for (int64_t d = 0; d < p_.depth; ++d) total[d] *= scale;
      if (add) add(i, total);
      Element* to = out + i * p_.depth;
      for (int64_t d = 0; d < p_.depth; ++d) from_float(total[d], to[d]);
    }
  });
}

template <typename Element>
const float* Engine<Element>::rows_of(const Side& side, int64_t panel) const {
  const int64_t row = panel * k_.panel;
  if constexpr (std::is_same_v<Element, float>)
    if (side.rows == 0) return side.matrix + row * p_.depth;
  return memory_.at<float>(side.rows) + row / (pairs() ? 2 : 1) * width_;
}

#define S3H_INSTANTIATE(Element)                                          \
  template void Engine<Element>::backward(const float*, const TiledSums&, \
                                          Element*, Element*,             \
                                          const RowFunction<float>&);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
