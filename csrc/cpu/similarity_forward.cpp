// The tiled path's forward: exponential sums of every row, then their logs.
#include <algorithm>
#include <cmath>

#include "similarity_engine.h"

namespace s3h::cpu {
namespace {

constexpr float kLowest = std::numeric_limits<float>::lowest();

// Merges `added` values of exponents under `top` into a running pair.
void merge(float& maximum, float& sum, float top, float added) {
  const float highest = maximum < top ? top : maximum;
  sum = sum * std::exp2(maximum - highest) + added * std::exp2(top - highest);
  maximum = highest;
}

}  // namespace

template <typename Element>
void Engine<Element>::forward(double* lse_log2) {
  reserve(false);
  const int64_t padded = row_.panels * k_.panel;
  const int64_t block_rows = block_ * k_.panel;
  const int64_t lanes_size = block_rows * k_.lanes;
  const size_t sums = memory_.reserve<float>(tasks_ * padded);
  const size_t maxima = memory_.reserve<float>(tasks_ * padded);
  const size_t lane_sums = memory_.reserve<float>(tasks_ * lanes_size);
  const size_t lane_maxima = memory_.reserve<float>(tasks_ * lanes_size);
  const size_t column_sums = memory_.reserve<float>(tasks_ * block_rows);
  const size_t column_maxima = memory_.reserve<float>(tasks_ * block_rows);
  const size_t selves = memory_.reserve<int32_t>(tasks_ * block_rows);
  memory_.allocate();
  prepare(nullptr, nullptr);

  const Pieces pieces =
      triangular() ? triangle(row_.panels, block_, tasks_, 1.0)
                   : rectangle(row_.panels, columns().panels, block_, tasks_,
                               deterministic_ ? block_ : 1, false);
  run(tasks_, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task)
      forward_piece(pieces[static_cast<size_t>(task)], triangular(),
                    memory_.at<float>(sums) + task * padded,
                    memory_.at<float>(maxima) + task * padded,
                    memory_.at<float>(lane_sums) + task * lanes_size,
                    memory_.at<float>(lane_maxima) + task * lanes_size,
                    memory_.at<float>(column_sums) + task * block_rows,
                    memory_.at<float>(column_maxima) + task * block_rows,
                    memory_.at<int32_t>(selves) + task * block_rows);
  });

  run(p_.n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      float sum = memory_.at<float>(sums)[i];
      float maximum = exact_ ? memory_.at<float>(maxima)[i] : 0.0f;
      for (int64_t task = 1; task < tasks_; ++task) {
        const float added = memory_.at<float>(sums)[task * padded + i];
        if (exact_)
          merge(maximum, sum, memory_.at<float>(maxima)[task * padded + i],
                added);
        else
          sum += added;
      }
      const double offset = exact_ ? maximum : middle_;
      lse_log2[i] = maximum == kInfinity
                        ? kInfinity
                        : offset + std::log2(static_cast<double>(sum));
    }
  });
}

// `sum` and `maximum` are per row of the whole; a block's rows are summed in
// lanes first and reduced when the next block has other rows, its columns by
// themselves.
template <typename Element>
void Engine<Element>::forward_piece(const std::vector<Block>& blocks, bool both,
                                    float* sum, float* maximum, float* lane_sum,
                                    float* lane_maximum, float* column_sum,
                                    float* column_maximum,
                                    int32_t* self) const {
  const int64_t padded = row_.panels * k_.panel;
  const int64_t block_rows = block_ * k_.panel;
  const int64_t lanes_size = block_rows * k_.lanes;
  const auto add = [&](int64_t at, float added, float top) {
    if (exact_)
      merge(maximum[at], sum[at], top, added);
    else
      sum[at] += added;
  };
  std::fill(sum, sum + padded, 0.0f);
  if (exact_) std::fill(maximum, maximum + padded, kLowest);
  for (size_t b = 0; b < blocks.size(); ++b) {
    const Block& block = blocks[b];
    const auto same_rows = [&](size_t other) {
      return blocks[other].rows.first == block.rows.first;
    };
    if (b == 0 || !same_rows(b - 1)) {
      std::fill(lane_sum, lane_sum + lanes_size, 0.0f);
      if (exact_) std::fill(lane_maximum, lane_maximum + lanes_size, kLowest);
    }
    Tile tile = tile_of(block, self);
    tile.row_sum = lane_sum;
    tile.row_max = lane_maximum;
    tile.column_sum = column_sum;
    tile.column_max = column_maximum;
    const bool columns = both && block.rows.first != block.columns.first;
    if (columns) {
      std::fill(column_sum, column_sum + block_rows, 0.0f);
      std::fill(column_maximum, column_maximum + block_rows, kLowest);
    }
    k_.forward(tile, {exact_, labelled(), tile.row.self != nullptr, columns});
    if (columns)
      for (int64_t j = 0; j < tile.column.count; ++j)
        add(block.columns.first * k_.panel + j, column_sum[j],
            column_maximum[j]);
    if (b + 1 < blocks.size() && same_rows(b + 1)) continue;
    for (int64_t r = 0; r < tile.row.count; ++r)
      for (int64_t lane = 0; lane < k_.lanes; ++lane)
        add(block.rows.first * k_.panel + r, lane_sum[r * k_.lanes + lane],
            lane_maximum[r * k_.lanes + lane]);
  }
}

template void Engine<float>::forward(double*);
template void Engine<Bfloat16>::forward(double*);

}  // namespace s3h::cpu
