// The tiled path's backward: the gradient of a tile's scores is computed once
// and multiplied with the columns' rows, and its transpose with the rows'.
#include <algorithm>
#include <cmath>

#include "bfloat16.h"
#include "similarity_engine.h"

namespace s3h::cpu {
namespace {

// One pass over tiles, and the gradients that it computes.
struct Sweep {
  bool by_columns, rows, columns;
};

}  // namespace

template <typename Element>
bool Engine<Element>::backward(const float* grad, const TiledSums& sums,
                               Element* grad_queries, Element* grad_keys,
                               const RowFunction<float>& add) {
  apart_ = sums.own_log2 != nullptr;
  kept_ = sums.kept;
  reserve(true);
  const int64_t block_rows = block_ * k_.panel;
  const int64_t tile_size = parts_ * block_rows * tile_ld();
  const int64_t pairs_size =
      pairs() ? parts_ * pair_tile_rows() * pairs_ld() : 0;
  const size_t tiles = memory_.reserve<float>(tasks_ * tile_size);
  const size_t pair_tiles = memory_.reserve<float>(tasks_ * pairs_size);
  const size_t selves = memory_.reserve<int32_t>(tasks_ * block_rows);

  // One sweep computes both sides' gradients, but a deterministic one only
  // that of the side that it is divided by.
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
  // The side that is divided among the tasks needs one buffer, the other one
  // per task.
  const auto copies = [&](bool is_column) {
    if (deterministic_) return int64_t{1};
    if (p_.symmetric) return tasks_;
    return larger_keys == is_column ? int64_t{1} : tasks_;
  };
  // A tile unit's products for the columns are transposed.
  const bool own_columns = k_.tile_unit && triangular();
  Gradient row_gradient =
      reserve_gradient(row_, want_queries ? copies(false) : 0, false);
  Gradient column_gradient = reserve_gradient(
      columns(), want_keys || (own_columns && want_queries) ? copies(true) : 0,
      k_.tile_unit);
  memory_.allocate();
  if (!prepare(grad, sums)) return false;

  for (const Sweep& sweep : sweeps) {
    const Pieces pieces =
        triangular() ? triangle(row_.panels, block_, across_, tasks_, 0.7)
                     : rectangle(row_.panels, columns().panels, block_, tasks_,
                                 deterministic_ ? block_ : 1, sweep.by_columns);
    run_pieces([&](int64_t task) {
      backward_piece(pieces[static_cast<size_t>(task)], task,
                     {memory_.at<float>(tiles) + task * tile_size,
                      memory_.at<float>(pair_tiles) + task * pairs_size,
                      memory_.at<int32_t>(selves) + task * block_rows},
                     sweep.rows ? &row_gradient : nullptr,
                     own_columns || sweep.columns ? &column_gradient
                     : triangular()               ? &row_gradient
                                                  : nullptr);
    });
  }
  if (want_queries && own_columns)
    sum_up(row_, {&row_gradient, &column_gradient}, grad_queries, add);
  else if (want_queries)
    sum_up(row_, {&row_gradient}, grad_queries, add);
  if (want_keys) sum_up(column_, {&column_gradient}, grad_keys, {});
  return true;
}

// In the triangle `columns` is `rows`, because a tile's columns are rows of the
// same gradient, and a diagonal tile only adds to its rows.
template <typename Element>
void Engine<Element>::backward_piece(const std::vector<Block>& blocks,
                                     int64_t task, const Scratch& scratch,
                                     Gradient* rows, Gradient* columns) const {
  const int64_t group = pairs() ? 2 : 1;
  for (const Block& block : blocks) {
    Tile tile = tile_of(block, scratch.self);
    set_kept(tile, block, true);
    tile.gradient_ld = tile_ld();
    tile.gradient_part = block_ * k_.panel * tile_ld();
    const bool diagonal = block.rows.first == block.columns.first;
    const bool to_columns = columns != nullptr && !(triangular() && diagonal);
    tile.gradient = rows || !k_.tile_unit ? scratch.tile : nullptr;
    tile.gradient_pairs = to_columns || !k_.tile_unit ? scratch.pairs : nullptr;
    tile.gradient_pairs_ld = pairs_ld();
    tile.gradient_pairs_part = pair_tile_rows() * pairs_ld();
    k_.backward(tile, kind(tile, p_.symmetric));

    // Sets the product's `out`; zeroes empty panels beside those it adds to.
    const auto serve = [&](Gradient& to, Range panels, Apply product) {
      const int64_t copy = to.copies == 1 ? 0 : task;
      char* touched = to.touched.data() + copy * to.panels;
      const auto at = [&](int64_t panel) {
        return memory_.at<float>(to.buffer) + copy * to.size +
               panel * k_.panel * (to.transposed ? 1 : width_);
      };
      product.out = at(panels.first);
      product.out_ld = to.transposed ? turned_ld(to.panels * k_.panel) : width_;
      // A piece of the triangle can begin inside a block: then tiles of single
      // panels precede the tiles of the whole block.
      product.accumulate =
          std::find(touched + panels.first, touched + panels.last, char{1}) !=
          touched + panels.last;
      for (int64_t i = panels.first; i < panels.last; ++i) {
        if (product.accumulate && !touched[i]) {
          const int64_t rows = to.transposed ? width_ : 1;
          const int64_t size = to.transposed ? k_.panel : k_.panel * width_;
          for (int64_t r = 0; r < rows; ++r)
            std::fill_n(at(i) + r * product.out_ld, size, 0.0f);
        }
        touched[i] = 1;
      }
      k_.apply(product);
    };
    Apply product{};
    product.parts = parts_;
    product.step_stride = 1;
    if (rows != nullptr) {
      product.g = scratch.tile;
      product.g_part = tile.gradient_part;
      product.row_stride = tile_ld();
      product.count = tile.row.count;
      product.steps = ceil_div(tile.column.count, group);
      product.rows = rows_of(this->columns(), block.columns.first);
      product.rows_part = pair_rows(this->columns()) * width_;
      product.rows_ld = product.width = width_;
      serve(*rows, block.rows, product);
    }
    if (!to_columns) continue;
    product.steps = ceil_div(tile.row.count, group);
    if (k_.tile_unit) {
      const int64_t ld = turned_ld(pair_rows(row_));
      product.g =
          memory_.at<float>(row_.turned) + block.rows.first * k_.panel / group;
      product.g_part = width_ * ld;
      product.row_stride = ld;
      product.count = width_;
      product.rows = scratch.pairs;
      product.rows_part = tile.gradient_pairs_part;
      product.rows_ld = pairs_ld();
      product.width = ceil_div(tile.column.count, k_.lanes) * k_.lanes;
    } else {
      product.g = pairs() ? scratch.pairs : scratch.tile;
      product.row_stride = 1;
      product.step_stride = pairs() ? pairs_ld() : tile_ld();
      product.count = tile.column.count;
      product.rows = rows_of(row_, block.rows.first);
      product.rows_ld = product.width = width_;
    }
    serve(*columns, block.columns, product);
  }
}

template <typename Element>
typename Engine<Element>::Gradient Engine<Element>::reserve_gradient(
    const Side& side, int64_t copies, bool transposed) {
  const int64_t padded = side.panels * k_.panel;
  const int64_t size = (transposed ? turned_ld(padded) : padded) * width_;
  return {transposed,
          copies,
          size,
          side.panels,
          memory_.reserve<float>(copies * size),
          std::vector<char>(static_cast<size_t>(copies * side.panels))};
}

// Sums the copies in order, a panel's rows or a third of them at a time.
template <typename Element>
void Engine<Element>::sum_up(const Side& side,
                             const std::vector<const Gradient*>& gradients,
                             Element* out,
                             const RowFunction<float>& add) const {
  const float scale = static_cast<float>(grad_unit_ / p_.temperature);
  const int64_t size = k_.tile_unit ? kTileUnit : k_.panel;
  run(ceil_div(side.count, size), [&](int64_t begin, int64_t end) {
    std::vector<float> total(static_cast<size_t>(size * width_));
    for (int64_t group = begin; group < end; ++group) {
      const int64_t first = group * size;
      const int64_t last = std::min(first + size, side.count);
      bool any = false;
      for (const Gradient* from : gradients)
        for (int64_t c = 0; c < from->copies; ++c) {
          if (!from->touched[static_cast<size_t>(c * side.panels +
                                                 first / k_.panel)])
            continue;
          add_rows(*from, c, first, last, any, total.data());
          any = true;
        }
      if (!any) std::fill(total.begin(), total.end(), 0.0f);
      for (int64_t i = first; i < last; ++i) {
        float* row = total.data() + (i - first) * width_;
        for (int64_t d = 0; d < p_.depth; ++d) row[d] *= scale;
        if (add) add(i, row);
        Element* to = out + i * p_.depth;
        for (int64_t d = 0; d < p_.depth; ++d) from_float(row[d], to[d]);
      }
    }
  });
}

// Adds a copy's rows to `total`, or sets them if it is still empty.
template <typename Element>
void Engine<Element>::add_rows(const Gradient& from, int64_t copy,
                               int64_t first, int64_t last, bool before,
                               float* total) const {
  const float* part = memory_.at<float>(from.buffer) + copy * from.size;
  if (!from.transposed) {
    part += first * width_;
    const int64_t size = (last - first) * width_;
    for (int64_t i = 0; i < size; ++i)
      total[i] = before ? total[i] + part[i] : part[i];
    return;
  }
  const int64_t ld = turned_ld(from.panels * k_.panel);
  for (int64_t d = 0; d < width_; d += kTileUnit) {
    float square[kTileUnit * kTileUnit];
    k_.turn(part + d * ld + first, ld, square, kTileUnit);
    for (int64_t i = 0; i < last - first; ++i)
      for (int64_t e = 0; e < kTileUnit; ++e) {
        float& to = total[i * width_ + d + e];
        to =
            before ? to + square[i * kTileUnit + e] : square[i * kTileUnit + e];
      }
  }
}

template <typename Element>
const float* Engine<Element>::rows_of(const Side& side, int64_t panel) const {
  const int64_t row = panel * k_.panel;
  if constexpr (std::is_same_v<Element, float>)
    if (side.rows == 0) return side.matrix + row * p_.depth;
  return memory_.at<float>(side.rows) + row / (pairs() ? 2 : 1) * width_;
}

#define S3H_INSTANTIATE(Element)                                          \
  template bool Engine<Element>::backward(const float*, const TiledSums&, \
                                          Element*, Element*,             \
                                          const RowFunction<float>&);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
