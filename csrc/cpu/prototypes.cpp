// Samples are put in the order of their classes by counting, and a thread takes
// whole classes: nearest prototypes, then sums, while prototypes, sums and
// features are in its caches. The largest classes of a long tail are shared by
// the threads. Every sum runs over a class's samples in the order of the batch,
// so no result depends on the number of threads.
#include "prototypes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "prototype_rows.h"

namespace s3h::cpu {
namespace {

// Columns are cut at whole cache lines of floats.
constexpr int64_t kColumns = 16;

// Below this many elements waking threads costs more than the work.
constexpr int64_t kSerial = 1 << 15;

void run(const Threads& threads, int64_t count, int64_t elements,
         const RangeFunction& body) {
  if (count == 0) return;
  if (elements < kSerial)
    body(0, count);
  else
    threads.parallel_for(0, count, body);
}

template <typename T>
const PrototypeRows<T>& row_kernels() {
  const auto pick = [](const PrototypeRows<float>& single,
                       const PrototypeRows<double>& twice) -> const auto& {
    if constexpr (std::is_same_v<T, float>)
      return single;
    else
      return twice;
  };
#if defined(S3H_X86_LEVELS)
  if (dispatch_level() >= Level::kAvx512)
    return pick(kPrototypeRowsAvx512, kPrototypeRowsAvx512Double);
  if (dispatch_level() >= Level::kAvx2)
    return pick(kPrototypeRowsAvx2, kPrototypeRowsAvx2Double);
#endif
  return pick(kPrototypeRowsBaseline, kPrototypeRowsBaselineDouble);
}

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float widen(Bfloat16 x) {
  return from_bits(static_cast<uint32_t>(x) << 16);
}

inline float widen(Float16 x) {
  const uint32_t bits = static_cast<uint32_t>(x);
  const uint32_t sign = (bits & 0x8000u) << 16;
  const uint32_t magnitude = (bits & 0x7fffu) << 13;
  // The product moves the exponent's bias, and makes subnormals normal.
  const float value = from_bits(magnitude) * 0x1p112f;
  const float special = from_bits(magnitude | 0x7f800000u);
  uint32_t result;
  const float chosen = (bits & 0x7c00u) == 0x7c00u ? special : value;
  std::memcpy(&result, &chosen, sizeof result);
  return from_bits(result | sign);
}

// A feature as T; `scratch` [depth] holds it where it has to be widened.
template <typename T, typename Element>
const T* feature_row(const Element* row, int64_t depth, T* scratch) {
  if constexpr (std::is_same_v<T, Element>) {
    return row;
  } else {
    for (int64_t d = 0; d < depth; ++d) scratch[d] = widen(row[d]);
    return scratch;
  }
}

// Samples in the order of their classes, and what is found out about them.
template <typename T>
struct Sorted {
  std::vector<int64_t> start;  // [classes + 1]
  // [members]; no thread but the one that fills a part of them touches it
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

template <typename T>
T inverse_norm(T squares) {
  if (!(squares < std::numeric_limits<T>::infinity()))
    return std::numeric_limits<T>::quiet_NaN();
  return squares > 0 ? 1 / std::sqrt(squares) : T(0);
}

// In the order of the classes features are read from anywhere, where no
// hardware looks ahead.
template <typename Element>
void prefetch(const Element* row, int64_t depth) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Element));
  for (int64_t d = 0; d < depth; d += kLine) __builtin_prefetch(row + d);
}

// How many samples ahead.
constexpr int64_t kAhead = 4;

// Finds the rows of the members [begin, end) of one class.
template <typename T, typename Element>
void assign(const AccumulateProblem<T, Element>& p, Sorted<T>& s, int64_t label,
            int64_t begin, int64_t end, T* scratch) {
  const PrototypeRows<T>& kernels = row_kernels<T>();
  const int64_t first = p.offsets[label];
  for (int64_t at = begin; at < end; ++at) {
    const size_t k = static_cast<size_t>(at);
    if (at + kAhead < s.start.back())
      prefetch(p.features + s.sample[k + kAhead] * p.depth, p.depth);
    const T* feature =
        feature_row(p.features + s.sample[k] * p.depth, p.depth, scratch);
    const T scale = p.metric == Metric::kCosine
                        ? inverse_norm(kernels.squares(feature, p.depth))
                        : T(-1);
    const Nearest<T> found = kernels.nearest(
        feature, scale, p.prototypes + first * p.depth, p.masses + first,
        p.offsets[label + 1] - first, p.depth);
    s.row[k] = found.row < 0 ? -1 : first + found.row;
    s.distance[k] = found.distance;
    s.scale[k] = p.metric == Metric::kCosine ? scale : T(1);
  }
}

// Columns [left, right) of one class; `whole`: its counts too.
template <typename T, typename Element>
void add_up_class(const AccumulateProblem<T, Element>& p, const Sorted<T>& s,
                  int64_t label, int64_t left, int64_t right, bool whole,
                  T* scratch, const Accumulated<T>& out) {
  const PrototypeRows<T>& kernels = row_kernels<T>();
  const int64_t width = right - left;
  const int64_t first = p.offsets[label], last = p.offsets[label + 1];
  for (int64_t row = first; row < last; ++row)
    std::fill_n(out.sums + row * p.depth + left, width, T(0));
  if (whole) std::fill(out.counts + first, out.counts + last, T(0));
  int64_t farthest = -1;
  const int64_t end = s.start[static_cast<size_t>(label) + 1];
  for (int64_t at = s.start[static_cast<size_t>(label)]; at < end; ++at) {
    const size_t k = static_cast<size_t>(at);
    if (s.row[k] < 0) continue;
    if (farthest < 0 ||
        s.distance[k] > s.distance[static_cast<size_t>(farthest)])
      farthest = at;
    const T* feature =
        feature_row(p.features + s.sample[k] * p.depth + left, width, scratch);
    kernels.add(feature, s.scale[k], width,
                out.sums + s.row[k] * p.depth + left);
    if (whole) out.counts[s.row[k]] += 1;
  }
  T* far = out.far_features + label * p.depth + left;
  if (farthest < 0) {
    std::fill_n(far, width, T(0));
  } else {
    const size_t k = static_cast<size_t>(farthest);
    const T* feature =
        feature_row(p.features + s.sample[k] * p.depth + left, width, scratch);
    kernels.scale(feature, s.scale[k], width, far);
  }
  if (whole)
    out.far_distances[label] =
        farthest < 0 ? T(-1) : s.distance[static_cast<size_t>(farthest)];
}

// Pieces of about the same work, a few for each thread. Neighbouring classes
// are done together and at once; a class that is too large for that has its
// members shared out first, and its columns afterwards.
struct Shares {
  struct Piece {
    bool large;
    int64_t first, last;  // classes, or members of one large class
    int64_t label;        // of the large class
  };
  struct Columns {
    int64_t label, left, right;
  };
  std::vector<Piece> pieces;
  std::vector<Columns> columns;
};

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
        shares.columns.push_back({c, left, std::min(left + width, p.depth)});
    }
    first = c + 1;
  }
  if (first < p.classes) shares.pieces.push_back({false, first, p.classes, 0});
  return shares;
}

}  // namespace

template <typename T, typename Element>
void accumulate_prototypes(const AccumulateProblem<T, Element>& p,
                           const Threads& threads, const Accumulated<T>& out) {
  Sorted<T> s = sort_by_class(p);
  const int64_t elements = (p.offsets[p.classes] + p.n) * p.depth;
  const Shares shares = share_out(p, s, elements < kSerial ? 1 : threads.count);
  const auto scratch_row = [&] {
    return std::vector<T>(
        std::is_same_v<T, Element> ? 0 : static_cast<size_t>(p.depth));
  };
  run(threads, static_cast<int64_t>(shares.pieces.size()), elements,
      [&](int64_t begin, int64_t end) {
        std::vector<T> scratch = scratch_row();
        for (int64_t at = begin; at < end; ++at) {
          const Shares::Piece& piece = shares.pieces[static_cast<size_t>(at)];
          if (piece.large) {
            assign(p, s, piece.label, piece.first, piece.last, scratch.data());
            continue;
          }
          for (int64_t c = piece.first; c < piece.last; ++c) {
            const size_t k = static_cast<size_t>(c);
            assign(p, s, c, s.start[k], s.start[k + 1], scratch.data());
            add_up_class(p, s, c, 0, p.depth, true, scratch.data(), out);
          }
        }
      });
  run(threads, static_cast<int64_t>(shares.columns.size()), elements,
      [&](int64_t begin, int64_t end) {
        std::vector<T> scratch = scratch_row();
        for (int64_t at = begin; at < end; ++at) {
          const auto& [label, left, right] =
              shares.columns[static_cast<size_t>(at)];
          add_up_class(p, s, label, left, right, left == 0, scratch.data(),
                       out);
        }
      });
  // By one thread: neighbouring samples are of different classes.
  std::fill(out.assignments, out.assignments + p.n, int64_t(-1));
  for (size_t k = 0; k < static_cast<size_t>(s.start.back()); ++k)
    out.assignments[s.sample[k]] = s.row[k];
}

template <typename T>
void apply_prototypes(const ApplyProblem<T>& p, const Threads& threads,
                      T* prototypes, T* sums, T* masses) {
  const PrototypeRows<T>& kernels = row_kernels<T>();
  const int64_t elements = p.offsets[p.classes] * p.depth;
  run(threads, p.classes, elements, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = p.offsets[c], last = p.offsets[c + 1];
      T present = 0, total = 0;
      for (int64_t row = first; row < last; ++row)
        present += p.batch_counts[row];
      if (!(present > 0)) continue;
      int64_t lightest = first;
      for (int64_t row = first; row < last; ++row) {
        masses[row] = p.momentum * masses[row] + p.batch_counts[row];
        total += masses[row];
        if (masses[row] < masses[lightest]) lightest = row;
      }
      const T least = p.expire_below * total / static_cast<T>(last - first);
      const bool dead = masses[lightest] <= least && p.far_distances[c] > 0;
      for (int64_t row = first; row < last; ++row) {
        T* sum = sums + row * p.depth;
        T* prototype = prototypes + row * p.depth;
        if (dead && row == lightest) {
          masses[row] = std::max(T(1), 2 * least);
          const T* far = p.far_features + c * p.depth;
          kernels.scale(far, masses[row], p.depth, sum);
          kernels.scale(far, T(1), p.depth, prototype);
        } else if (p.batch_counts[row] > 0) {
          kernels.decay(p.batch_sums + row * p.depth, p.momentum, p.depth, sum);
          const T scale = p.metric == Metric::kCosine
                              ? inverse_norm(kernels.squares(sum, p.depth))
                              : 1 / masses[row];
          // Unit vectors that cancel have no direction: the old one stays.
          if (scale > 0) kernels.scale(sum, scale, p.depth, prototype);
        } else {
          kernels.scale(sum, p.momentum, p.depth, sum);
        }
      }
    }
  });
}

#define S3H_INSTANTIATE(T, Element)                         \
  template void accumulate_prototypes<T, Element>(          \
      const AccumulateProblem<T, Element>&, const Threads&, \
      const Accumulated<T>&);
S3H_INSTANTIATE(float, float)
S3H_INSTANTIATE(float, Bfloat16)
S3H_INSTANTIATE(float, Float16)
S3H_INSTANTIATE(double, double)
#undef S3H_INSTANTIATE
template void apply_prototypes<float>(const ApplyProblem<float>&,
                                      const Threads&, float*, float*, float*);
template void apply_prototypes<double>(const ApplyProblem<double>&,
                                       const Threads&, double*, double*,
                                       double*);

}  // namespace s3h::cpu
