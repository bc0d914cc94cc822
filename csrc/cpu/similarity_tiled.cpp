// The tiled path: who does which tile, and everything around the inner loops.
//
// Both sides are packed once into panels (similarity_tiles.h). The work is a
// list of tiles of up to kBlock x kBlock, cut into one piece per thread of
// equal cost, by a rule that knows nothing but sizes and the number of threads:
// same bits on every run. A piece adds up in buffers of its own, and the pieces
// are summed in order.
//
//   symmetric, forward    tiles on and above the diagonal; each gives row sums
//                         and column sums
//   symmetric, backward   the same tiles; each forms both roles' gradient G and
//                         serves dz_I += G z_J and dz_J += G' z_I
//   rectangular backward  the larger side is cut among the threads, who own
//                         its gradient; the smaller side's is private
//   deterministic         all tiles, rows of blocks cut among the threads, row
//                         side only: no sum depends on the cut
//
// Scores are kept in units of log 2; log2(e)/temperature is folded into the
// packed operands, half of it (its root) on each side.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "dispatch.h"
#include "similarity.h"
#include "similarity_tiles.h"

namespace s3h::cpu {
namespace {

constexpr int64_t kBlock = 192;
constexpr double kLog2E = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;
// 2^±kFastRange, times the number of keys and times a gradient, stays normal.
constexpr double kFastRange = 80.0;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMinWorkPerThread = 1 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

float to_float(Bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void from_float(float value, float& to) { to = value; }

// Rounds to nearest, ties to even.
void from_float(float value, Bfloat16& to) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded =
      std::isnan(value) ? 0x7fc00000u : bits + 0x7fff + ((bits >> 16) & 1);
  to = static_cast<Bfloat16>(rounded >> 16);
}

template <typename Element>
const TileKernels& kernels() {
#if defined(S3H_X86_LEVELS)
  if constexpr (std::is_same_v<Element, Bfloat16>) return kTilesAvx512Bf16;
  switch (dispatch_level()) {
    case Level::kAvx512Bf16:
    case Level::kAvx512:
      return kTilesAvx512;
    case Level::kAvx2:
      return kTilesAvx2;
    case Level::kBaseline:
      break;
  }
#endif
  return kTilesBaseline;
}

// Cache-line aligned memory for one call, kept by the calling thread for the
// next one unless it is large. Reserve everything, then take it.
class Workspace {
 public:
  template <typename T>
  size_t reserve(int64_t count) {
    const size_t at = size_;
    size_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    return at;
  }

  void allocate() {
    if (size_ > kept().capacity) kept().grow(size_);
  }

  template <typename T>
  T* at(size_t offset) const {
    return reinterpret_cast<T*>(kept().base + offset);
  }

  ~Workspace() {
    if (kept().capacity > kKeep) kept().release();
  }

 private:
  static constexpr size_t kKeep = size_t{32} << 20;

  struct Kept {
    char* base = nullptr;
    size_t capacity = 0;

    void grow(size_t size) {
      release();
      base = static_cast<char*>(std::aligned_alloc(64, size));
      if (base == nullptr) throw std::bad_alloc();
      capacity = size;
    }
    void release() {
      std::free(base);
      base = nullptr;
      capacity = 0;
    }
    ~Kept() { release(); }
  };

  // The workers of a call use the calling thread's memory through at(), which
  // must therefore not look at their own: the owner is remembered.
  static Kept& of_this_thread() {
    static thread_local Kept mine;
    return mine;
  }
  Kept& kept() const { return *owner_; }

  Kept* owner_ = &of_this_thread();
  size_t size_ = 0;
};

// Same ids for equal labels, 32 bits wide. Wide labels are renumbered.
class LabelIds {
 public:
  LabelIds(const int64_t* a, int64_t a_count, const int64_t* b,
           int64_t b_count) {
    constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
    const auto wide = [](int64_t label) { return label > kMax; };
    if (std::none_of(a, a + a_count, wide) ||
        std::none_of(b, b + b_count, wide))
      return;
    known_.assign(a, a + a_count);
    std::sort(known_.begin(), known_.end());
    known_.erase(std::unique(known_.begin(), known_.end()), known_.end());
  }

  // `none` stands for a label that equals nothing on the other side.
  int32_t id(int64_t label, int32_t none) const {
    if (label < 0) return none;
    if (known_.empty())
      return label > std::numeric_limits<int32_t>::max()
                 ? none
                 : static_cast<int32_t>(label);
    const auto found = std::lower_bound(known_.begin(), known_.end(), label);
    return found != known_.end() && *found == label
               ? static_cast<int32_t>(found - known_.begin())
               : none;
  }

 private:
  std::vector<int64_t> known_;
};

// Ranges of panels; a tile of the list.
struct Range {
  int64_t first;
  int64_t last;
};
struct Block {
  Range rows;
  Range columns;
};

template <typename Element>
class Engine {
 public:
  Engine(const SimilarityProblem<float, Element>& p, const Threads& threads,
         bool deterministic)
      : p_(p),
        threads_(threads),
        deterministic_(deterministic),
        k_(kernels<Element>()),
        steps_(k_.pairs ? ceil_div(p.depth, 2) : p.depth),
        width_(ceil_div(p.depth, k_.lanes) * k_.lanes),
        row_panels_(ceil_div(p.n, k_.panel)),
        column_panels_(p.symmetric ? row_panels_ : ceil_div(p.m, k_.panel)) {
    const double work = static_cast<double>(p.n) * static_cast<double>(p.m) *
                        static_cast<double>(std::max<int64_t>(1, p.depth));
    const double wanted = work / static_cast<double>(kMinWorkPerThread);
    tasks_ = static_cast<int64_t>(
        std::clamp(wanted, 1.0, static_cast<double>(threads.count)));
    const int64_t most = std::max<int64_t>(1, kBlock / k_.panel);
    const int64_t larger = std::max(row_panels_, column_panels_);
    block_ = std::clamp<int64_t>(larger / 12, 1, most);
  }

  void forward(float* lse);
  void backward(const float* grad, const float* lse, Element* grad_queries,
                Element* grad_keys);

 private:
  struct Side {
    const Element* matrix;
    int64_t count;
    int64_t panels;
    size_t packed, bias, scale, grad, same, label, rows;
    bool copied_rows;
  };

  void reserve_side(Side& side, bool backward);
  void pack(const Side& side);
  void copy_rows(const Side& side);
  void find_range();
  void fill_vectors(const Side& side, bool is_row, const float* grad,
                    const float* lse);
  TileSide tile_side(const Side& side, Range panels) const;
  std::vector<std::vector<Block>> triangle(double diagonal_cost) const;
  std::vector<std::vector<Block>> rows_cut(bool by_columns) const;
  void rectangle(Range rows, Range columns, bool columns_outer,
                 std::vector<Block>& out) const;
  bool leave_out(const Block& block, int32_t* self) const;
  int64_t rows_in(const Side& side, Range panels) const {
    return std::min(panels.last * k_.panel, side.count) -
           panels.first * k_.panel;
  }
  const Side& columns() const { return p_.symmetric ? row_ : column_; }
  float operand_scale() const {
    return k_.pairs ? 1.0f
                    : static_cast<float>(std::sqrt(kLog2E / p_.temperature));
  }
  float score_scale() const {
    return k_.pairs ? static_cast<float>(kLog2E / p_.temperature) : 1.0f;
  }

  // Small problems stay on the calling thread.
  void run(int64_t begin, int64_t end, const RangeFunction& body) const {
    if (tasks_ == 1)
      body(begin, end);
    else
      threads_.parallel_for(begin, end, body);
  }

  const SimilarityProblem<float, Element>& p_;
  const Threads& threads_;
  bool deterministic_;
  const TileKernels& k_;
  int64_t steps_, width_, row_panels_, column_panels_, tasks_, block_;
  Workspace memory_;
  Side row_{}, column_{};
  std::vector<float> longest_;  // per panel, squared; rows then columns
  bool exact_ = false;
  double middle_ = 0;     // fast: biases are counted from here, in log 2
  double grad_unit_ = 1;  // a power of two that brings gradients to about 1
};

template <typename Element>
void Engine<Element>::reserve_side(Side& side, bool backward) {
  const int64_t padded = side.panels * k_.panel;
  side.packed = memory_.reserve<float>(padded * steps_);
  side.bias = memory_.reserve<float>(padded);
  side.same = memory_.reserve<float>(padded);
  // Two sets of labels: no label, and padding, differ between the sides.
  side.label = memory_.reserve<int32_t>(2 * padded);
  side.copied_rows = backward && (k_.pairs || width_ != p_.depth);
  if (backward) {
    side.scale = memory_.reserve<float>(padded);
    side.grad = memory_.reserve<float>(padded);
  }
  if (side.copied_rows)
    side.rows = memory_.reserve<float>(
        (k_.pairs ? ceil_div(side.count, 2) : side.count) * width_);
}

template <typename Element>
void Engine<Element>::pack(const Side& side) {
  const float scale = operand_scale();
  float* longest = longest_.data() + (&side == &row_ ? 0 : row_panels_);
  run(0, side.panels, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      float* to = memory_.at<float>(side.packed) + panel * k_.panel * steps_;
      const int64_t first = panel * k_.panel;
      const int64_t count = std::min(k_.panel, side.count - first);
      float top = 0;
      for (int64_t r = 0; r < k_.panel; ++r) {
        if (r >= count) {
          for (int64_t s = 0; s < steps_; ++s) to[s * k_.panel + r] = 0.0f;
          continue;
        }
        const Element* from = side.matrix + (first + r) * p_.depth;
        float squares[4] = {};
        if constexpr (std::is_same_v<Element, float>) {
          int64_t s = 0;
          for (; s + 4 <= steps_; s += 4)
            for (int64_t i = 0; i < 4; ++i) {
              const float value = from[s + i] * scale;
              squares[i] += value * value;
              to[(s + i) * k_.panel + r] = value;
            }
          for (; s < steps_; ++s) {
            const float value = from[s] * scale;
            squares[0] += value * value;
            to[s * k_.panel + r] = value;
          }
        } else {
          for (int64_t s = 0; s < steps_; ++s) {
            const Element pair[2] = {from[2 * s], 2 * s + 1 < p_.depth
                                                      ? from[2 * s + 1]
                                                      : Element{}};
            const float low = to_float(pair[0]), high = to_float(pair[1]);
            squares[s % 4] += low * low + high * high;
            std::memcpy(to + s * k_.panel + r, pair, sizeof(float));
          }
        }
        const float square =
            (squares[0] + squares[1]) + (squares[2] + squares[3]);
        // A NaN must win, so that the range below is not trusted.
        if (!(square <= top)) top = square;
      }
      longest[panel] = top;
    }
  });
}

// Rows for `apply`: padded to whole vectors, or as pairs of rows.
template <typename Element>
void Engine<Element>::copy_rows(const Side& side) {
  if (!side.copied_rows) return;
  const int64_t group = k_.pairs ? 2 : 1;
  run(0, ceil_div(side.count, group), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      float* to = memory_.at<float>(side.rows) + r * width_;
      const Element* from = side.matrix + r * group * p_.depth;
      if constexpr (std::is_same_v<Element, float>) {
        std::copy(from, from + p_.depth, to);
      } else {
        const bool second = 2 * r + 1 < side.count;
        for (int64_t d = 0; d < p_.depth; ++d) {
          const Element pair[2] = {from[d],
                                   second ? from[p_.depth + d] : Element{}};
          std::memcpy(to + d, pair, sizeof(float));
        }
      }
      std::fill(to + p_.depth, to + width_, 0.0f);
    }
  });
}

// Decides between the fast and the exact form from what bounds the scores.
template <typename Element>
void Engine<Element>::find_range() {
  const auto top = [](const float* from, int64_t count) {
    float found = 0;
    for (int64_t i = 0; i < count; ++i)
      if (!(from[i] <= found)) found = from[i];
    return static_cast<double>(found);
  };
  const double rows = top(longest_.data(), row_panels_);
  const double others =
      p_.symmetric ? rows : top(longest_.data() + row_panels_, column_panels_);
  double range = std::sqrt(rows) * std::sqrt(others) * score_scale();
  if (p_.key_bias != nullptr) {
    double low = std::numeric_limits<double>::infinity(), high = -low;
    for (int64_t j = 0; j < p_.m; ++j) {
      const double bias = p_.key_bias[j];
      if (bias == -std::numeric_limits<double>::infinity()) continue;
      low = std::min(low, bias);
      if (!(bias <= high)) high = bias;
    }
    if (low <= high) middle_ = (low + high) / 2 * kLog2E;
    if (!(high < low)) range += (high - low) / 2 * kLog2E;
  }
  if (p_.query_labels != nullptr) {
    double largest = 0;
    const int64_t count = p_.same_label_bias != nullptr ? p_.n : 1;
    for (int64_t i = 0; i < count; ++i) {
      const double bias = p_.same_label_bias != nullptr ? p_.same_label_bias[i]
                                                        : p_.same_label_value;
      if (bias == -std::numeric_limits<double>::infinity()) continue;
      if (!(std::abs(bias) <= largest)) largest = std::abs(bias);
    }
    range += largest * kLog2E;
  }
  exact_ = !(range <= kFastRange);
}

template <typename Element>
void Engine<Element>::fill_vectors(const Side& side, bool is_row,
                                   const float* grad, const float* lse) {
  const int64_t padded = side.panels * k_.panel;
  const bool has_bias = p_.key_bias != nullptr && (!is_row || p_.symmetric);
  float* bias = memory_.at<float>(side.bias);
  for (int64_t i = 0; i < padded; ++i) {
    double value = has_bias && i < side.count
                       ? static_cast<double>(p_.key_bias[i]) * kLog2E
                       : 0.0;
    if (i >= side.count) value = -std::numeric_limits<double>::infinity();
    // A row of the rectangular case has no bias of its own: middle_ is for
    // keys.
    const double from = has_bias ? middle_ : 0.0;
    bias[i] = static_cast<float>(exact_ ? value : std::exp2(value - from));
  }
  if (p_.query_labels != nullptr && is_row) {
    float* same = memory_.at<float>(side.same);
    for (int64_t i = 0; i < padded; ++i) {
      const double value = i >= side.count ? 0.0
                           : p_.same_label_bias != nullptr
                               ? static_cast<double>(p_.same_label_bias[i])
                               : p_.same_label_value;
      same[i] = static_cast<float>(exact_ ? value * kLog2E
                                          : std::exp2(value * kLog2E));
    }
  }
  if (grad == nullptr || !is_row) return;
  float* scale = memory_.at<float>(side.scale);
  float* kept = memory_.at<float>(side.grad);
  for (int64_t i = 0; i < padded; ++i) {
    const bool empty = i >= side.count || lse[i] == -kInfinity;
    const double own = empty ? 0.0 : grad[i] / grad_unit_;
    kept[i] = static_cast<float>(own);
    if (exact_)
      scale[i] = empty ? kInfinity : static_cast<float>(lse[i] * kLog2E);
    else
      scale[i] =
          empty
              ? 0.0f
              : static_cast<float>(own * std::exp2(middle_ - lse[i] * kLog2E));
  }
}

template <typename Element>
TileSide Engine<Element>::tile_side(const Side& side, Range panels) const {
  const int64_t first = panels.first * k_.panel;
  TileSide out{};
  out.panels = memory_.at<float>(side.packed) + first * steps_;
  out.count = rows_in(side, panels);
  out.bias = memory_.at<float>(side.bias) + first;
  out.same = memory_.at<float>(side.same) + first;
  out.label = memory_.at<int32_t>(side.label) + first;
  if (side.scale != 0) {
    out.scale = memory_.at<float>(side.scale) + first;
    out.grad = memory_.at<float>(side.grad) + first;
  }
  return out;
}

// Tiles on and above the diagonal, cut into pieces of equal cost.
template <typename Element>
std::vector<std::vector<Block>> Engine<Element>::triangle(
    double diagonal_cost) const {
  std::vector<Block> all;
  std::vector<double> until;
  double total = 0;
  for (int64_t i = 0; i < row_panels_; i += block_)
    for (int64_t j = i; j < row_panels_; j += block_) {
      const Range rows{i, std::min(i + block_, row_panels_)};
      const Range columns{j, std::min(j + block_, row_panels_)};
      all.push_back({rows, columns});
      total += static_cast<double>((rows.last - rows.first) *
                                   (columns.last - columns.first)) *
               (i == j ? diagonal_cost : 1.0);
      until.push_back(total);
    }
  std::vector<std::vector<Block>> pieces(static_cast<size_t>(tasks_));
  for (size_t b = 0; b < all.size(); ++b) {
    const double middle = b == 0 ? until[0] / 2 : (until[b - 1] + until[b]) / 2;
    const auto piece =
        static_cast<size_t>(middle / total * static_cast<double>(tasks_));
    pieces[std::min(piece, pieces.size() - 1)].push_back(all[b]);
  }
  return pieces;
}

template <typename Element>
void Engine<Element>::rectangle(Range rows, Range columns, bool columns_outer,
                                std::vector<Block>& out) const {
  const Range outer = columns_outer ? columns : rows;
  const Range inner = columns_outer ? rows : columns;
  for (int64_t i = outer.first; i < outer.last; i += block_)
    for (int64_t j = inner.first; j < inner.last; j += block_) {
      const Range a{i, std::min(i + block_, outer.last)};
      const Range b{j, std::min(j + block_, inner.last)};
      out.push_back(columns_outer ? Block{b, a} : Block{a, b});
    }
}

// All tiles; one side is cut among the tasks, at blocks that do not depend on
// their number.
template <typename Element>
std::vector<std::vector<Block>> Engine<Element>::rows_cut(
    bool by_columns) const {
  const int64_t panels = by_columns ? column_panels_ : row_panels_;
  const int64_t unit = deterministic_ ? block_ : 1;
  const int64_t units = ceil_div(panels, unit);
  std::vector<std::vector<Block>> pieces(static_cast<size_t>(tasks_));
  for (int64_t t = 0; t < tasks_; ++t) {
    const Range mine{units * t / tasks_ * unit,
                     std::min(units * (t + 1) / tasks_ * unit, panels)};
    if (by_columns)
      rectangle({0, row_panels_}, mine, true, pieces[static_cast<size_t>(t)]);
    else
      rectangle(mine, {0, column_panels_}, false,
                pieces[static_cast<size_t>(t)]);
  }
  return pieces;
}

// Fills `self` for a tile; returns whether any of its rows leaves a key out.
template <typename Element>
bool Engine<Element>::leave_out(const Block& block, int32_t* self) const {
  const int64_t first_row = block.rows.first * k_.panel;
  const int64_t first_column = block.columns.first * k_.panel;
  const int64_t padded = (block.rows.last - block.rows.first) * k_.panel;
  const int64_t width = (block.columns.last - block.columns.first) * k_.panel;
  if (!p_.symmetric && p_.self_index == nullptr) return false;
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

// Merges `added` values of exponents under `top` into a running pair.
void merge(float& maximum, float& sum, float top, float added) {
  const float highest = maximum < top ? top : maximum;
  sum = sum * std::exp2(maximum - highest) + added * std::exp2(top - highest);
  maximum = highest;
}

template <typename Element>
void fill_labels(const SimilarityProblem<float, Element>& p, int32_t* rows,
                 int64_t row_padded, int32_t* columns, int64_t column_padded) {
  const int64_t* key_labels = p.symmetric ? p.query_labels : p.key_labels;
  const LabelIds ids(p.query_labels, p.n, key_labels, p.m);
  for (int64_t i = 0; i < row_padded; ++i)
    rows[i] = i < p.n ? ids.id(p.query_labels[i], -1) : -1;
  for (int64_t j = 0; j < column_padded; ++j)
    columns[j] = j < p.m ? ids.id(key_labels[j], -2) : -2;
}

template <typename Element>
void Engine<Element>::forward(float* lse) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  row_ = {p_.queries, p_.n, row_panels_, 0, 0, 0, 0, 0, 0, 0, false};
  column_ = {p_.keys, p_.m, column_panels_, 0, 0, 0, 0, 0, 0, 0, false};
  memory_.reserve<float>(16);  // so that no offset in use is 0
  reserve_side(row_, false);
  if (!p_.symmetric) reserve_side(column_, false);
  const int64_t padded = row_panels_ * k_.panel;
  const int64_t block_rows = block_ * k_.panel;
  const size_t sums = memory_.reserve<float>(tasks_ * padded);
  const size_t maxima = memory_.reserve<float>(tasks_ * padded);
  const int64_t lanes_size = block_rows * k_.lanes;
  const size_t lane_sums = memory_.reserve<float>(tasks_ * lanes_size);
  const size_t lane_maxima = memory_.reserve<float>(tasks_ * lanes_size);
  const size_t selves = memory_.reserve<int32_t>(tasks_ * block_rows);
  memory_.allocate();
  longest_.resize(static_cast<size_t>(row_panels_ + column_panels_));

  pack(row_);
  if (!p_.symmetric) pack(column_);
  find_range();
  fill_vectors(row_, true, nullptr, nullptr);
  if (!p_.symmetric) fill_vectors(column_, false, nullptr, nullptr);
  const size_t column_labels =
      p_.symmetric ? row_.label + static_cast<size_t>(padded) * sizeof(int32_t)
                   : column_.label;
  if (p_.query_labels != nullptr)
    fill_labels(p_, memory_.at<int32_t>(row_.label), padded,
                memory_.at<int32_t>(column_labels), column_panels_ * k_.panel);

  const bool both = p_.symmetric && !deterministic_;
  const auto pieces = both ? triangle(1.0) : rows_cut(false);
  run(0, tasks_, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      float* sum = memory_.at<float>(sums) + task * padded;
      float* maximum = memory_.at<float>(maxima) + task * padded;
      float* lane_sum = memory_.at<float>(lane_sums) + task * lanes_size;
      float* lane_maximum = memory_.at<float>(lane_maxima) + task * lanes_size;
      int32_t* self = memory_.at<int32_t>(selves) + task * block_rows;
      std::fill(sum, sum + padded, 0.0f);
      if (exact_) std::fill(maximum, maximum + padded, kLowest);

      const auto& blocks = pieces[static_cast<size_t>(task)];
      for (size_t b = 0; b < blocks.size(); ++b) {
        const Block& block = blocks[b];
        const bool starts =
            b == 0 || blocks[b - 1].rows.first != block.rows.first;
        const bool ends = b + 1 == blocks.size() ||
                          blocks[b + 1].rows.first != block.rows.first;
        if (starts) {
          std::fill(lane_sum, lane_sum + lanes_size, 0.0f);
          if (exact_)
            std::fill(lane_maximum, lane_maximum + lanes_size, kLowest);
        }
        Tile tile{};
        tile.row = tile_side(row_, block.rows);
        tile.column = tile_side(columns(), block.columns);
        tile.column.label =
            memory_.at<int32_t>(column_labels) + block.columns.first * k_.panel;
        tile.row.self = self;
        tile.steps = steps_;
        tile.score_scale = score_scale();
        tile.row_sum = lane_sum;
        tile.row_max = lane_maximum;
        tile.column_sum = sum + block.columns.first * k_.panel;
        tile.column_max = maximum + block.columns.first * k_.panel;
        const bool diagonal = block.rows.first == block.columns.first;
        const TileKind kind{exact_, p_.query_labels != nullptr,
                            leave_out(block, self), both && !diagonal};
        k_.forward(tile, kind);
        if (!ends) continue;
        const int64_t first = block.rows.first * k_.panel;
        for (int64_t r = 0; r < tile.row.count; ++r)
          for (int64_t lane = 0; lane < k_.lanes; ++lane) {
            const float added = lane_sum[r * k_.lanes + lane];
            if (exact_)
              merge(maximum[first + r], sum[first + r],
                    lane_maximum[r * k_.lanes + lane], added);
            else
              sum[first + r] += added;
          }
      }
    }
  });

  run(0, p_.n, [&](int64_t begin, int64_t end) {
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
      lse[i] = static_cast<float>(
          (offset + std::log2(static_cast<double>(sum))) * kLn2);
      if (maximum == kInfinity) lse[i] = kInfinity;
    }
  });
}

template <typename Element>
void Engine<Element>::backward(const float* grad, const float* lse,
                               Element* grad_queries, Element* grad_keys) {
  row_ = {p_.queries, p_.n, row_panels_, 0, 0, 0, 0, 0, 0, 0, false};
  column_ = {p_.keys, p_.m, column_panels_, 0, 0, 0, 0, 0, 0, 0, false};
  memory_.reserve<float>(16);
  reserve_side(row_, true);
  if (!p_.symmetric) reserve_side(column_, true);
  const int64_t padded = row_panels_ * k_.panel;
  const int64_t block_rows = block_ * k_.panel;
  // Leading dimensions off the powers of two that share a cache set.
  const int64_t ld = (k_.pairs ? block_rows / 2 : block_rows) + k_.lanes;
  const int64_t pairs_ld = block_rows + k_.lanes;
  const int64_t tile_size = block_rows * ld;
  const int64_t pairs_size = k_.pairs ? block_rows / 2 * pairs_ld : 0;
  const size_t tiles = memory_.reserve<float>(tasks_ * tile_size);
  const size_t pair_tiles = memory_.reserve<float>(tasks_ * pairs_size);
  const size_t selves = memory_.reserve<int32_t>(tasks_ * block_rows);

  // One sweep serves both sides, except that a deterministic one serves the
  // side that it is cut by.
  struct Sweep {
    bool by_columns, want_rows, want_columns;
  };
  std::vector<Sweep> sweeps;
  const bool want_keys = grad_keys != nullptr && !p_.symmetric;
  const bool want_queries = grad_queries != nullptr;
  const bool larger_keys = column_panels_ > row_panels_;
  if (deterministic_) {
    if (want_queries) sweeps.push_back({false, true, false});
    if (want_keys) sweeps.push_back({true, false, true});
  } else if (want_queries || want_keys) {
    sweeps.push_back({larger_keys, want_queries, want_keys});
  }
  const bool triangular = p_.symmetric && !deterministic_;
  // A side that is cut among the tasks needs one buffer, the other one each.
  const auto copies = [&](bool is_column) {
    if (deterministic_) return int64_t{1};
    if (p_.symmetric) return tasks_;
    return larger_keys == is_column ? int64_t{1} : tasks_;
  };
  const int64_t row_size = padded * width_;
  const int64_t column_size = column_panels_ * k_.panel * width_;
  const size_t row_grads =
      memory_.reserve<float>(want_queries ? copies(false) * row_size : 0);
  const size_t column_grads =
      memory_.reserve<float>(want_keys ? copies(true) * column_size : 0);
  memory_.allocate();
  longest_.resize(static_cast<size_t>(row_panels_ + column_panels_));

  float top = 0;
  for (int64_t i = 0; i < p_.n; ++i) top = std::max(top, std::abs(grad[i]));
  if (top > 0 && std::isfinite(top)) grad_unit_ = std::exp2(std::ilogb(top));

  pack(row_);
  copy_rows(row_);
  if (!p_.symmetric) {
    pack(column_);
    copy_rows(column_);
  }
  find_range();
  fill_vectors(row_, true, grad, lse);
  if (!p_.symmetric) fill_vectors(column_, false, grad, lse);
  const size_t column_labels =
      p_.symmetric ? row_.label + static_cast<size_t>(padded) * sizeof(int32_t)
                   : column_.label;
  if (p_.query_labels != nullptr)
    fill_labels(p_, memory_.at<int32_t>(row_.label), padded,
                memory_.at<int32_t>(column_labels), column_panels_ * k_.panel);

  std::vector<char> row_touched(
      static_cast<size_t>(copies(false) * row_panels_));
  std::vector<char> column_touched(
      static_cast<size_t>(copies(true) * column_panels_));
  const auto rows_of = [&](const Side& side, int64_t panel) -> const float* {
    if constexpr (std::is_same_v<Element, float>)
      if (!side.copied_rows) return side.matrix + panel * k_.panel * p_.depth;
    return memory_.at<float>(side.rows) +
           panel * k_.panel / (k_.pairs ? 2 : 1) * width_;
  };

  for (const Sweep& sweep : sweeps) {
    const auto pieces = triangular ? triangle(0.7) : rows_cut(sweep.by_columns);
    run(0, tasks_, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        float* g = memory_.at<float>(tiles) + task * tile_size;
        float* pairs = memory_.at<float>(pair_tiles) + task * pairs_size;
        int32_t* self = memory_.at<int32_t>(selves) + task * block_rows;
        const int64_t row_copy = copies(false) == 1 ? 0 : task;
        const int64_t column_copy = copies(true) == 1 ? 0 : task;
        float* row_grad = memory_.at<float>(row_grads) + row_copy * row_size;
        // In the triangle a tile's columns are rows of the same gradient.
        float* column_grad = triangular ? row_grad
                                        : memory_.at<float>(column_grads) +
                                              column_copy * column_size;
        char* touched_rows = row_touched.data() + row_copy * row_panels_;
        char* touched_columns =
            triangular ? touched_rows
                       : column_touched.data() + column_copy * column_panels_;

        for (const Block& block : pieces[static_cast<size_t>(task)]) {
          Tile tile{};
          tile.row = tile_side(row_, block.rows);
          tile.column = tile_side(columns(), block.columns);
          tile.column.label = memory_.at<int32_t>(column_labels) +
                              block.columns.first * k_.panel;
          tile.row.self = self;
          tile.steps = steps_;
          tile.score_scale = score_scale();
          tile.gradient = g;
          tile.gradient_ld = ld;
          tile.gradient_pairs = pairs;
          tile.gradient_pairs_ld = pairs_ld;
          const TileKind kind{exact_, p_.query_labels != nullptr,
                              leave_out(block, self), p_.symmetric};
          k_.backward(tile, kind);

          const int64_t group = k_.pairs ? 2 : 1;
          const bool diagonal = block.rows.first == block.columns.first;
          if (sweep.want_rows) {
            char* touched = touched_rows + block.rows.first;
            k_.apply({g, ld, 1, tile.row.count,
                      ceil_div(tile.column.count, group),
                      rows_of(columns(), block.columns.first), width_,
                      row_grad + block.rows.first * k_.panel * width_, width_,
                      width_, *touched != 0});
            std::fill(touched, touched_rows + block.rows.last, char{1});
          }
          if (triangular ? !diagonal : sweep.want_columns) {
            char* touched = touched_columns + block.columns.first;
            k_.apply({k_.pairs ? pairs : g, 1, k_.pairs ? pairs_ld : ld,
                      tile.column.count, ceil_div(tile.row.count, group),
                      rows_of(row_, block.rows.first), width_,
                      column_grad + block.columns.first * k_.panel * width_,
                      width_, width_, *touched != 0});
            std::fill(touched, touched_columns + block.columns.last, char{1});
          }
        }
      }
    });
  }

  const float scale = static_cast<float>(grad_unit_ / p_.temperature);
  const auto sum_up = [&](const Side& side, bool is_column, size_t buffer,
                          int64_t size, const std::vector<char>& touched,
                          Element* out) {
    const float* from = memory_.at<float>(buffer);
    run(0, side.count, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Element* to = out + i * p_.depth;
        const float* parts[2] = {nullptr, nullptr};
        int64_t found = 0;
        std::vector<float> total;
        for (int64_t c = 0; c < copies(is_column); ++c) {
          if (!touched[static_cast<size_t>(c * side.panels + i / k_.panel)])
            continue;
          const float* part = from + c * size + i * width_;
          if (found < 2) {
            parts[found] = part;
          } else {
            if (total.empty()) {
              total.assign(parts[0], parts[0] + p_.depth);
              for (int64_t d = 0; d < p_.depth; ++d)
                total[static_cast<size_t>(d)] += parts[1][d];
            }
            for (int64_t d = 0; d < p_.depth; ++d)
              total[static_cast<size_t>(d)] += part[d];
          }
          ++found;
        }
        for (int64_t d = 0; d < p_.depth; ++d) {
          const float value = found == 0   ? 0.0f
                              : found == 1 ? parts[0][d]
                              : found == 2 ? parts[0][d] + parts[1][d]
                                           : total[static_cast<size_t>(d)];
          from_float(value * scale, to[d]);
        }
      }
    });
  };
  if (want_queries)
    sum_up(row_, false, row_grads, row_size, row_touched, grad_queries);
  if (want_keys)
    sum_up(column_, true, column_grads, column_size, column_touched, grad_keys);
}

}  // namespace

template <typename Element>
void logsumexp_tiled(const SimilarityProblem<float, Element>& problem,
                     const Threads& threads, bool deterministic, float* lse) {
  if (problem.n == 0) return;
  if (problem.m == 0) {
    std::fill(lse, lse + problem.n, -kInfinity);
    return;
  }
  Engine<Element>(problem, threads, deterministic).forward(lse);
}

template <typename Element>
void logsumexp_tiled_backward(const SimilarityProblem<float, Element>& problem,
                              const Threads& threads, bool deterministic,
                              const float* grad, const float* lse,
                              Element* grad_queries, Element* grad_keys) {
  if (problem.n == 0 || problem.m == 0) {
    if (grad_queries != nullptr)
      std::fill(grad_queries, grad_queries + problem.n * problem.depth,
                Element{});
    if (grad_keys != nullptr)
      std::fill(grad_keys, grad_keys + problem.m * problem.depth, Element{});
    return;
  }
  Engine<Element>(problem, threads, deterministic)
      .backward(grad, lse, grad_queries, grad_keys);
}

bool bfloat16_products() { return dispatch_level() == Level::kAvx512Bf16; }

#define S3H_INSTANTIATE(Element)                                               \
  template void logsumexp_tiled<Element>(                                      \
      const SimilarityProblem<float, Element>&, const Threads&, bool, float*); \
  template void logsumexp_tiled_backward<Element>(                             \
      const SimilarityProblem<float, Element>&, const Threads&, bool,          \
      const float*, const float*, Element*, Element*);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
