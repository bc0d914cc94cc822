// How csrc/cpu/prototypes.cpp traverses a batch: features are widened, samples
// sorted by class, and classes divided among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#include "bfloat16.h"
#include "float16.h"
#include "prototypes.h"

namespace s3h::cpu {

// A feature as T; `scratch` [depth] holds it if it must be widened.
template <typename T, typename Element>
const T* feature_row(const Element* row, int64_t depth, T* scratch) {
  if constexpr (std::is_same_v<T, Element>) {
    return row;
  } else {
    for (int64_t d = 0; d < depth; ++d) scratch[d] = to_float(row[d]);
    return scratch;
  }
}

// Samples sorted by class, and the results for them.
template <typename T>
struct Sorted {
  std::vector<int64_t> start;  // [classes + 1]
  // [members]; only the thread that fills a part of them touches it
  std::unique_ptr<int64_t[]> sample;
  std::unique_ptr<int64_t[]> row;  // -1: distance not finite
  std::unique_ptr<T[]> distance;
  std::unique_ptr<T[]> scale;
};

template <typename T, typename Element>
Sorted<T> sort_by_class(const AccumulateProblem<T, Element>& p) {
  Sorted<T> s;
  s.start.assign(static_cast<size_t>(p.classes + 1), 0);
  for (int64_t i = 0; i < p.n; ++i)
    if (p.labels[i] >= 0) ++s.start[static_cast<size_t>(p.labels[i]) + 1];
  for (size_t c = 0; c < static_cast<size_t>(p.classes); ++c)
    s.start[c + 1] += s.start[c];
  const size_t members = static_cast<size_t>(s.start.back());
  s.sample.reset(new int64_t[members]);
  s.row.reset(new int64_t[members]);
  s.distance.reset(new T[members]);
  s.scale.reset(new T[members]);
  std::vector<int64_t> next(s.start.begin(), s.start.end() - 1);
  for (int64_t i = 0; i < p.n; ++i)
    if (p.labels[i] >= 0)
      s.sample[static_cast<size_t>(next[static_cast<size_t>(p.labels[i])]++)] =
          i;
  return s;
}

// Work items of about equal cost, a few for each thread. Neighbouring classes
// are processed together. A class that is too large for that is divided by
// members first, and by columns afterwards.
struct Shares {
  struct Piece {
    bool large;
    int64_t first, last;  // classes, or members of one large class
    int64_t label;        // of the large class
  };
  struct Columns {
    int64_t large;  // index in `large`
    int64_t left, right;
  };
  std::vector<Piece> pieces;
  std::vector<Columns> columns;
  std::vector<int64_t> large;  // labels
};

// Columns are divided at whole cache lines of floats.
constexpr int64_t kColumns = 16;

template <typename T, typename Element>
Shares share_out(const AccumulateProblem<T, Element>& p, const Sorted<T>& s,
                 int64_t threads) {
  const auto start = [&](int64_t c) { return s.start[static_cast<size_t>(c)]; };
  const auto work = [&](int64_t c) { return start(c) + p.offsets[c]; };
  const int64_t share = std::max<int64_t>(
      1, work(p.classes) / (4 * std::max<int64_t>(1, threads)));
  Shares shares;
  int64_t first = 0;
  for (int64_t c = 0; c < p.classes; ++c) {
    const int64_t members = start(c + 1) - start(c);
    const bool large = threads > 1 && members >= 2 * share;
    if (!large && work(c + 1) - work(first) < share) continue;
    if (!large) {
      shares.pieces.push_back({false, first, c + 1, 0});
    } else {
      if (first < c) shares.pieces.push_back({false, first, c, 0});
      for (int64_t at = start(c); at < start(c + 1); at += share)
        shares.pieces.push_back(
            {true, at, std::min(at + share, start(c + 1)), c});
      const int64_t parts = members / share;
      const int64_t width = (p.depth / parts / kColumns + 1) * kColumns;
      for (int64_t left = 0; left < p.depth; left += width)
        shares.columns.push_back({static_cast<int64_t>(shares.large.size()),
                                  left, std::min(left + width, p.depth)});
      shares.large.push_back(c);
    }
    first = c + 1;
  }
  if (first < p.classes) shares.pieces.push_back({false, first, p.classes, 0});
  return shares;
}

}  // namespace s3h::cpu
