// The tiled path's forward: exponential sums of every row, then logarithms.
#include <algorithm>
#include <cmath>

#include "similarity_engine.h"

namespace s3h::cpu {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

// Merges `added`, a sum relative to the maximum `top`, into a running pair.
void merge(float& maximum, float& sum, float top, float added) {
  const float highest = maximum < top ? top : maximum;
  sum = sum * std::exp2(maximum - highest) + added * std::exp2(top - highest);
  maximum = highest;
}

}  // namespace

template <typename Element>
bool Engine<Element>::forward(const TiledSums& sums) {
  apart_ = sums.own_log2 != nullptr;
  kept_ = sums.kept;
  reserve(false);
  const int64_t padded = row_.panels * k_.panel;
  const int64_t block_rows = block_ * k_.panel;
  const int64_t lanes_size = block_rows * k_.lanes;
  const SumsPlace rows = reserve_sums(padded);
  const SumsPlace lanes = reserve_sums(lanes_size);
  const SumsPlace own_rows = reserve_sums(apart_ ? padded : 0);
  const SumsPlace own_lanes = reserve_sums(apart_ ? lanes_size : 0);
  const SumsPlace column_sums = reserve_sums(across_ * k_.panel);
  const size_t selves = memory_.reserve<int32_t>(tasks_ * block_rows);
  memory_.allocate();
  if (!prepare(nullptr, sums)) return false;

  const Pieces pieces =
      triangular() ? triangle(row_.panels, block_, across_, tasks_, 1.0)
                   : rectangle(row_.panels, columns().panels, block_, tasks_,
                               deterministic_ ? block_ : 1, false);
  run_pieces([&](int64_t task) {
    forward_piece(
        pieces[static_cast<size_t>(task)], triangular(),
        {sums_of(rows, task), sums_of(own_rows, task), sums_of(lanes, task),
         sums_of(own_lanes, task), sums_of(column_sums, task),
         memory_.at<int32_t>(selves) + task * block_rows});
  });
  finish(rows, sums.lse_log2);
  if (apart_) finish(own_rows, sums.own_log2);
  return true;
}

template <typename Element>
typename Engine<Element>::SumsPlace Engine<Element>::reserve_sums(
    int64_t size) {
  return {memory_.reserve<float>(tasks_ * size),
          memory_.reserve<float>(tasks_ * size), size};
}

template <typename Element>
typename Engine<Element>::Sums Engine<Element>::sums_of(const SumsPlace& place,
                                                        int64_t task) const {
  return {memory_.at<float>(place.sum) + task * place.size,
          memory_.at<float>(place.maximum) + task * place.size};
}

template <typename Element>
void Engine<Element>::clear(const Sums& sums, int64_t size) const {
  std::fill(sums.sum, sums.sum + size, 0.0f);
  if (exact_) std::fill(sums.maximum, sums.maximum + size, kLowest);
}

template <typename Element>
void Engine<Element>::add_to(const Sums& to, int64_t at, float sum,
                             float maximum) const {
  if (exact_)
    merge(to.maximum[at], to.sum[at], maximum, sum);
  else
    to.sum[at] += sum;
}

// The logarithms of the tasks' sums, added in the order of the tasks.
template <typename Element>
void Engine<Element>::finish(const SumsPlace& place, double* log2) const {
  run(p_.n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Sums total = sums_of(place, 0);
      for (int64_t task = 1; task < tasks_; ++task) {
        const Sums part = sums_of(place, task);
        add_to(total, i, part.sum[i], part.maximum[i]);
      }
      const float maximum = exact_ ? total.maximum[i] : 0.0f;
      const double offset = exact_ ? maximum : middle_;
      log2[i] = maximum == kInfinity
                    ? kInfinity
                    : offset + std::log2(static_cast<double>(total.sum[i]));
    }
  });
}

// A block's rows are summed in lanes first and reduced when the next block has
// other rows, its columns separately.
template <typename Element>
void Engine<Element>::forward_piece(const std::vector<Block>& blocks, bool both,
                                    const Totals& totals) const {
  const int64_t padded = row_.panels * k_.panel;
  const int64_t block_rows = block_ * k_.panel;
  const int64_t lanes_size = block_rows * k_.lanes;
  clear(totals.rows, padded);
  if (apart_) clear(totals.own_rows, padded);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const Block& block = blocks[b];
    const auto same_rows = [&](size_t other) {
      return blocks[other].rows.first == block.rows.first;
    };
    if (b == 0 || !same_rows(b - 1)) {
      clear(totals.lanes, lanes_size);
      if (apart_) clear(totals.own_lanes, lanes_size);
    }
    Tile tile = tile_of(block, totals.self);
    set_kept(tile, block, false);
    tile.row_sum = totals.lanes.sum;
    tile.row_max = totals.lanes.maximum;
    tile.own_sum = totals.own_lanes.sum;
    tile.own_max = totals.own_lanes.maximum;
    tile.column_sum = totals.columns.sum;
    tile.column_max = totals.columns.maximum;
    const bool columns = both && block.rows.first != block.columns.first;
    if (columns) clear(totals.columns, across_ * k_.panel);
    k_.forward(tile, kind(tile, columns));
    if (columns)
      for (int64_t j = 0; j < tile.column.count; ++j)
        add_to(totals.rows, block.columns.first * k_.panel + j,
               totals.columns.sum[j], totals.columns.maximum[j]);
    if (b + 1 < blocks.size() && same_rows(b + 1)) continue;
    const auto reduce = [&](const Sums& lanes, const Sums& rows) {
      for (int64_t r = 0; r < tile.row.count; ++r)
        for (int64_t lane = 0; lane < k_.lanes; ++lane) {
          const int64_t at = r * k_.lanes + lane;
          add_to(rows, block.rows.first * k_.panel + r, lanes.sum[at],
                 lanes.maximum[at]);
        }
    };
    reduce(totals.lanes, totals.rows);
    if (apart_) reduce(totals.own_lanes, totals.own_rows);
  }
}

template bool Engine<float>::forward(const TiledSums&);
template bool Engine<Bfloat16>::forward(const TiledSums&);

}  // namespace s3h::cpu
