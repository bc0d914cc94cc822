// The input of the tiled path's tiles: packed panels, vectors, labels.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "label_ids.h"
#include "similarity_engine.h"

namespace s3h::cpu {
namespace {

// Scores up to which 2^score, times any number of keys, is a normal number. The
// backward's 2^(score - lse) can be smaller, which counts as 0.
constexpr double kFastRange = 80.0;
constexpr double kMinWorkPerThread = 1 << 20;
constexpr double kNoKey = -std::numeric_limits<double>::infinity();

double largest(const float* from, int64_t count) {
  float found = 0;
  for (int64_t i = 0; i < count; ++i) keep_larger(found, from[i]);
  return found;
}

}  // namespace

template <typename Element>
Engine<Element>::Engine(const SimilarityProblem<float, Element>& p,
                        const Threads& threads, bool deterministic,
                        const TileKernels& kernels)
    : p_(p),
      threads_(threads),
      deterministic_(deterministic),
      k_(kernels),
      parts_(k_.tile_unit && std::is_same_v<Element, float> ? 3 : 1),
      steps_(k_.tile_unit ? ceil_div(p.depth, 2 * kTileUnit) * kTileUnit
             : k_.pairs   ? ceil_div(p.depth, 2)
                          : p.depth),
      width_(ceil_div(p.depth, k_.lanes) * k_.lanes) {
  row_.matrix = p.queries;
  row_.count = p.n;
  row_.panels = ceil_div(p.n, k_.panel);
  column_.matrix = p.keys;
  column_.count = p.m;
  column_.panels = ceil_div(p.m, k_.panel);
  const double work = static_cast<double>(p.n) * static_cast<double>(p.m) *
                      static_cast<double>(std::max<int64_t>(1, p.depth));
  tasks_ = static_cast<int64_t>(std::clamp(work / kMinWorkPerThread, 1.0,
                                           static_cast<double>(threads.count)));
  // A tile unit is fast enough to be limited by memory reads for a tile's
  // columns: more rows per tile are better, until they fill the second-level
  // cache.
  const bool tall = k_.tile_unit && triangular();
  const int64_t area = kBlock / k_.panel * (kBlock / k_.panel);
  const int64_t most = std::max<int64_t>(1, (tall ? 2 : 1) * kBlock / k_.panel);
  const int64_t larger = std::max(row_.panels, column_.panels);
  // Small enough to divide the work evenly. Tiles divided by cost depend on the
  // number of threads, which deterministic sums must not.
  const int64_t wanted = triangular()    ? 2 * row_.panels / (7 * tasks_)
                         : deterministic ? larger / 12
                                         : most;
  block_ = std::clamp<int64_t>(wanted, tall ? 2 : 1, most);
  across_ = tall ? std::min(kBlock / k_.panel, area / block_) : block_;
}

template <typename Element>
float Engine<Element>::operand_scale() const {
  return scaled_operands()
             ? static_cast<float>(std::sqrt(kLog2E / p_.temperature))
             : 1.0f;
}

template <typename Element>
void Engine<Element>::reserve(bool backward) {
  reserve_side(row_, backward);
  if (!p_.symmetric) reserve_side(column_, backward);
  longest_.resize(static_cast<size_t>(row_.panels + column_.panels));
}

template <typename Element>
void Engine<Element>::reserve_side(Side& side, bool backward) {
  const int64_t padded = side.panels * k_.panel;
  const bool serves_columns = p_.symmetric || &side == &column_;
  if ((!backward || kept_ == nullptr) && (!k_.tile_unit || serves_columns))
    side.packed = memory_.reserve<float>(parts_ * padded * steps_);
  if (k_.tile_unit)
    side.row_major = memory_.reserve<float>(parts_ * padded * steps_);
  side.bias = memory_.reserve<float>(padded);
  side.same = memory_.reserve<float>(padded);
  side.label = memory_.reserve<int32_t>(2 * padded);
  if (!backward) return;
  side.scale = memory_.reserve<float>(padded);
  side.lse = memory_.reserve<float>(padded);
  side.lse_rest = memory_.reserve<float>(padded);
  side.grad = memory_.reserve<float>(padded);
  if (apart_) {
    side.own_lse = memory_.reserve<float>(padded);
    side.own_lse_rest = memory_.reserve<float>(padded);
  }
  // Rows for `apply`: padded to whole vectors, or as pairs of rows.
  if (pairs() || width_ != p_.depth)
    side.rows = memory_.reserve<float>(parts_ * pair_rows(side) * width_);
  if (k_.tile_unit && &side == &row_)
    side.turned =
        memory_.reserve<float>(parts_ * width_ * turned_ld(pair_rows(side)));
}

// Prepares everything for the tiles; grad in the backward only.
template <typename Element>
bool Engine<Element>::prepare(const float* grad, const TiledSums& sums) {
  if (k_.tile_unit) {
    take_rows(row_, longest_.data());
    if (!p_.symmetric) take_rows(column_, longest_.data() + row_.panels);
    if (!splits()) return false;
    if (grad != nullptr) {
      make_pairs(row_);
      if (!p_.symmetric) make_pairs(column_);
    }
  }
  if (grad != nullptr && kept_ != nullptr) {
    KeptForm form;
    std::memcpy(&form, kept_, sizeof form);
    exact_ = form.exact != 0;
    middle_ = form.middle;
  } else {
    pack_all();
    find_range();
    if (exact_ && !pairs()) pack_all();
    const KeptForm form{middle_, exact_};
    if (kept_ != nullptr) std::memcpy(kept_, &form, sizeof form);
  }
  if (!k_.tile_unit) {
    copy_rows(row_);
    if (!p_.symmetric) copy_rows(column_);
  }
  fill_bias(row_, true);
  if (!p_.symmetric) fill_bias(column_, false);
  if (labelled()) {
    fill_same();
    fill_labels();
  }
  if (grad == nullptr) return true;
  fill_grad(grad, sums);
  if (apart_) fill_own(sums);
  return true;
}

template <typename Element>
void Engine<Element>::pack_all() {
  if (k_.tile_unit) return make_panels(columns());
  pack(row_, longest_.data());
  if (!p_.symmetric) pack(column_, longest_.data() + row_.panels);
}

template <typename Element>
void Engine<Element>::pack(const Side& side, float* longest) {
  const float scale = operand_scale();
  run(side.panels, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      const int64_t first = panel * k_.panel;
      longest[panel] = pack_panel<Element>(
          {side.matrix + first * p_.depth, side.count - first, p_.depth},
          k_.panel, steps_, scale,
          memory_.at<float>(side.packed) + first * steps_);
    }
  });
}

template <typename Element>
void Engine<Element>::copy_rows(const Side& side) {
  if (side.rows == 0) return;
  const int64_t group = pairs() ? 2 : 1;
  run(ceil_div(side.count, group), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      copy_row<Element>({side.matrix + r * group * p_.depth,
                         side.count - r * group, p_.depth},
                        width_, memory_.at<float>(side.rows) + r * width_);
  });
  float* last = memory_.at<float>(side.rows);
  std::fill(last + ceil_div(side.count, group) * width_,
            last + pair_rows(side) * width_, 0.0f);
}

// Chooses the fast or the exact form from bounds on the scores.
template <typename Element>
void Engine<Element>::find_range() {
  const double rows = largest(longest_.data(), row_.panels);
  const double others =
      p_.symmetric ? rows
                   : largest(longest_.data() + row_.panels, column_.panels);
  double range = std::sqrt(rows) * std::sqrt(others);
  if (!scaled_operands()) range *= kLog2E / p_.temperature;
  if (p_.key_bias != nullptr) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (int64_t j = 0; j < p_.m; ++j) {
      const double bias = p_.key_bias[j];
      if (bias == kNoKey) continue;
      low = std::min(low, bias);
      keep_larger(high, bias);
    }
    if (low <= high) middle_ = (low + high) / 2 * kLog2E;
    if (!(high < low)) range += (high - low) / 2 * kLog2E;
  }
  bool excludes = apart_;
  if (labelled() && !apart_) {
    double most = 0;
    const int64_t count = p_.same_label_bias != nullptr ? p_.n : 1;
    for (int64_t i = 0; i < count; ++i) {
      const double bias = p_.same_label_bias != nullptr ? p_.same_label_bias[i]
                                                        : p_.same_label_value;
      if (bias == kNoKey) {
        excludes = true;
        continue;
      }
      keep_larger(most, std::abs(bias));
    }
    range += most * kLog2E;
  }
  // A pair excluded by its label can exceed its row's sum by the range of both;
  // the backward multiplies it by zero, so it must be finite.
  exact_ = !(range <= (excludes ? kFastRange / 2 : kFastRange));
}

template <typename Element>
void Engine<Element>::fill_bias(const Side& side, bool is_row) {
  const int64_t padded = side.panels * k_.panel;
  float* bias = memory_.at<float>(side.bias);
  // A row of the rectangular case has no bias of its own, and middle_ is for
  // keys.
  if (p_.key_bias == nullptr || (is_row && !p_.symmetric)) {
    std::fill(bias, bias + side.count, exact_ ? 0.0f : 1.0f);
  } else {
    for (int64_t i = 0; i < side.count; ++i) {
      const double value = static_cast<double>(p_.key_bias[i]) * kLog2E;
      bias[i] = static_cast<float>(exact_ ? value : std::exp2(value - middle_));
    }
  }
  std::fill(bias + side.count, bias + padded, exact_ ? -kInfinity : 0.0f);
}

template <typename Element>
void Engine<Element>::fill_same() {
  const auto packed = [&](double value) {
    return static_cast<float>(exact_ ? value * kLog2E
                                     : std::exp2(value * kLog2E));
  };
  float* same = memory_.at<float>(row_.same);
  std::fill(same, same + row_.panels * k_.panel, packed(p_.same_label_value));
  if (p_.same_label_bias == nullptr) return;
  for (int64_t i = 0; i < p_.n; ++i) same[i] = packed(p_.same_label_bias[i]);
}

template <typename Element>
void Engine<Element>::fill_grad(const float* grad, const TiledSums& sums) {
  const double* lse_log2 = sums.lse_log2;
  float top = 0;
  for (int64_t i = 0; i < p_.n; ++i) top = std::max(top, std::abs(grad[i]));
  if (top > 0 && std::isfinite(top)) grad_unit_ = std::exp2(std::ilogb(top));
  float* scale = memory_.at<float>(row_.scale);
  float* lse = memory_.at<float>(row_.lse);
  float* lse_rest = memory_.at<float>(row_.lse_rest);
  float* kept = memory_.at<float>(row_.grad);
  run(row_.panels * k_.panel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const bool empty = i >= p_.n || lse_log2[i] == -kInfinity;
      const double own = empty ? 0.0 : grad[i] / grad_unit_;
      if (!exact_) {
        scale[i] =
            empty ? 0.0f
                  : static_cast<float>(own * std::exp2(middle_ - lse_log2[i]));
        continue;
      }
      kept[i] = static_cast<float>(own);
      lse[i] = empty ? kInfinity : static_cast<float>(lse_log2[i]);
      lse_rest[i] = std::isfinite(lse[i])
                        ? static_cast<float>(lse_log2[i] - lse[i])
                        : 0.0f;
    }
  });
}

// The gradient of lse - own: keys with the row's label have this instead of the
// others' share.
template <typename Element>
void Engine<Element>::fill_own(const TiledSums& sums) {
  float* same = memory_.at<float>(row_.same);
  float* own = memory_.at<float>(row_.own_lse);
  float* own_rest = memory_.at<float>(row_.own_lse_rest);
  for (int64_t i = 0; i < row_.panels * k_.panel; ++i) {
    const double lse = i < p_.n ? sums.lse_log2[i] : -kInfinity;
    const double apart = i < p_.n ? sums.own_log2[i] : -kInfinity;
    const bool empty = lse == -kInfinity || apart == -kInfinity;
    same[i] = empty ? 0.0f : static_cast<float>(-std::exp2(lse - apart));
    own[i] = empty ? kInfinity : static_cast<float>(apart);
    own_rest[i] =
        std::isfinite(own[i]) ? static_cast<float>(apart - own[i]) : 0.0f;
  }
}

template <typename Element>
void Engine<Element>::fill_labels() {
  const int64_t* key_labels = p_.symmetric ? p_.query_labels : p_.key_labels;
  int32_t* rows = memory_.at<int32_t>(row_.label);
  int32_t* keys = memory_.at<int32_t>(column_labels());
  const LabelIds ids(p_.query_labels, p_.n, key_labels, p_.m);
  for (int64_t i = 0; i < p_.n; ++i) rows[i] = ids.id(p_.query_labels[i], -1);
  for (int64_t j = 0; j < p_.m; ++j) keys[j] = ids.id(key_labels[j], -2);
  std::fill(rows + p_.n, rows + row_.panels * k_.panel, -1);
  std::fill(keys + p_.m, keys + columns().panels * k_.panel, -2);
}

// A tile's sides; `self` is filled if a row leaves a key out, otherwise unset.
template <typename Element>
Tile Engine<Element>::tile_of(const Block& block, int32_t* self) const {
  Tile tile{};
  tile.row = tile_side(row_, block.rows);
  tile.column = tile_side(columns(), block.columns);
  if (labelled())
    tile.column.label =
        memory_.at<int32_t>(column_labels()) + block.columns.first * k_.panel;
  if (leave_out(block, self)) tile.row.self = self;
  tile.steps = steps_;
  tile.parts = parts_;
  const double scale = scaled_operands() ? 1.0 : kLog2E / p_.temperature;
  tile.score_scale = static_cast<float>(scale);
  tile.score_scale_rest = static_cast<float>(scale - tile.score_scale);
  return tile;
}

// Points to the block's scores. A column panel has a square for each row panel
// of the rectangle, or for those down to the diagonal in the triangle.
template <typename Element>
void Engine<Element>::set_kept(Tile& tile, const Block& block,
                               bool read) const {
  if (kept_ == nullptr) return;
  const int64_t square = k_.panel * k_.panel;
  const int64_t j = block.columns.first;
  const int64_t before = p_.symmetric ? j * (j + 1) / 2 : j * row_.panels;
  float* at = kept_ + kKeptHead + (before + block.rows.first) * square;
  if (read)
    tile.kept = at;
  else
    tile.keep = at;
  tile.kept_step = (p_.symmetric ? j + 1 : row_.panels) * square;
  tile.kept_growth = p_.symmetric ? square : 0;
}

template <typename Element>
TileSide Engine<Element>::tile_side(const Side& side, Range panels) const {
  const int64_t first = panels.first * k_.panel;
  TileSide out{};
  out.panels = memory_.at<float>(side.packed) + first * steps_;
  out.row_major = memory_.at<float>(side.row_major) + first * steps_;
  out.part = side.panels * k_.panel * steps_;
  out.count = rows_in(side, panels);
  out.bias = memory_.at<float>(side.bias) + first;
  out.same = memory_.at<float>(side.same) + first;
  out.label = memory_.at<int32_t>(side.label) + first;
  if (side.scale != 0) {
    out.scale = memory_.at<float>(side.scale) + first;
    out.lse = memory_.at<float>(side.lse) + first;
    out.lse_rest = memory_.at<float>(side.lse_rest) + first;
    out.grad = memory_.at<float>(side.grad) + first;
  }
  if (side.own_lse != 0) {
    out.own_lse = memory_.at<float>(side.own_lse) + first;
    out.own_lse_rest = memory_.at<float>(side.own_lse_rest) + first;
  }
  return out;
}

// Fills `self` for a tile; returns whether any of its rows leaves a key out.
template <typename Element>
bool Engine<Element>::leave_out(const Block& block, int32_t* self) const {
  if (!p_.symmetric && p_.self_index == nullptr) return false;
  const int64_t first_row = block.rows.first * k_.panel;
  const int64_t first_column = block.columns.first * k_.panel;
  const int64_t padded = (block.rows.last - block.rows.first) * k_.panel;
  const int64_t width = (block.columns.last - block.columns.first) * k_.panel;
  bool any = false;
  for (int64_t r = 0; r < padded; ++r) {
    const int64_t i = first_row + r;
    const int64_t own = i >= p_.n ? -1 : p_.symmetric ? i : p_.self_index[i];
    const int64_t relative = own < 0 ? -1 : own - first_column;
    const bool inside = relative >= 0 && relative < width;
    self[r] = inside ? static_cast<int32_t>(relative) : -1;
    any |= inside;
  }
  return any;
}

template class Engine<float>;
template class Engine<Bfloat16>;

}  // namespace s3h::cpu
