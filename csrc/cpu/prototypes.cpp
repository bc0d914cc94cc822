// Samples are sorted by class with a counting sort, and each thread takes whole
// classes: nearest prototypes, then sums, while prototypes, sums and features
// are in its caches. Threads share the largest classes of a long tail. Every
// sum runs over a class's samples in the order of the batch, so no result
// depends on the number of threads.
#include "prototypes.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "prototype_members.h"
#include "prototype_rows.h"
#include "run_ranges.h"

namespace s3h::cpu {
namespace {

// Below this many elements, waking threads costs more than the work.
constexpr int64_t kSerial = 1 << 15;

void run(const Threads& threads, int64_t count, int64_t elements,
         const RangeFunction& body) {
  if (count > 0) run_ranges(threads, count, elements < kSerial, body);
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
    return pick(avx512::kFloatRows, avx512::kDoubleRows);
  if (dispatch_level() >= Level::kAvx2)
    return pick(avx2::kFloatRows, avx2::kDoubleRows);
#endif
  return pick(baseline::kFloatRows, baseline::kDoubleRows);
}

// 0 for a row of zeros; NaN for one that contains a NaN or an infinity, or is
// too long for its inverse.
template <typename T>
T inverse_norm(const T* row, int64_t depth) {
  const T squares = row_kernels<T>().squares(row, depth);
  // Range in which the squares are normal numbers, with full precision.
  constexpr T kTiny = std::numeric_limits<T>::min() * T(1 << 24);
  if (squares > kTiny && squares < std::numeric_limits<T>::infinity())
    return 1 / std::sqrt(squares);
  double wide = 0;
  for (int64_t d = 0; d < depth; ++d)
    wide += static_cast<double>(row[d]) * static_cast<double>(row[d]);
  if (wide == 0) return 0;
  const T inverse = static_cast<T>(1 / std::sqrt(wide));
  return inverse > 0 ? inverse : std::numeric_limits<T>::quiet_NaN();
}

// In class order, features are read from random places, which the hardware
// cannot prefetch.
template <typename Element>
void prefetch(const Element* row, int64_t depth) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Element));
  for (int64_t d = 0; d < depth; d += kLine) __builtin_prefetch(row + d);
}

// Number of samples to prefetch.
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
    const T scale = p.cosine ? inverse_norm(feature, p.depth) : T(-1);
    const Nearest<T> found = kernels.nearest(
        feature, scale, p.prototypes + first * p.depth, p.masses + first,
        p.offsets[label + 1] - first, p.depth);
    s.row[k] = found.row < 0 ? -1 : first + found.row;
    s.distance[k] = found.distance;
    s.scale[k] = p.cosine ? scale : T(1);
  }
}

// The contribution of a batch to one class of K rows.
template <typename T>
struct ClassTotals {
  T* sums;                    // [K, depth]
  T* counts;                  // [K]
  T* distortions;             // [K]
  T* far_feature;             // [depth]
  T* far_distance = nullptr;  // if it is needed
};

// Columns [left, right) of one class; `whole`: its counts too.
template <typename T, typename Element>
void add_up_class(const AccumulateProblem<T, Element>& p, const Sorted<T>& s,
                  int64_t label, int64_t left, int64_t right, bool whole,
                  T* scratch, const ClassTotals<T>& out) {
  const PrototypeRows<T>& kernels = row_kernels<T>();
  const int64_t width = right - left;
  const int64_t first = p.offsets[label];
  const int64_t rows = p.offsets[label + 1] - first;
  for (int64_t row = 0; row < rows; ++row)
    std::fill_n(out.sums + row * p.depth + left, width, T(0));
  if (whole) {
    std::fill_n(out.counts, rows, T(0));
    std::fill_n(out.distortions, rows, T(0));
  }
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
    const int64_t row = s.row[k] - first;
    kernels.add(feature, s.scale[k], width, out.sums + row * p.depth + left);
    if (whole) {
      out.counts[row] += 1;
      out.distortions[row] += s.distance[k];
    }
  }
  T* far = out.far_feature + left;
  if (farthest < 0) {
    std::fill_n(far, width, T(0));
  } else {
    const size_t k = static_cast<size_t>(farthest);
    const T* feature =
        feature_row(p.features + s.sample[k] * p.depth + left, width, scratch);
    kernels.scale(feature, s.scale[k], width, far);
  }
  if (whole && out.far_distance != nullptr)
    *out.far_distance =
        farthest < 0 ? T(-1) : s.distance[static_cast<size_t>(farthest)];
}

// Distance of the two halves of a row from it, as a fraction of the distance to
// the class's farthest sample: Linde, Buzo and Gray's splitting.
constexpr double kSplit = 0.03;

// MovingAverage in the type of the computation.
template <typename T>
struct Average {
  explicit Average(const MovingAverage& from)
      : cosine(from.cosine),
        momentum(static_cast<T>(from.momentum)),
        expire_below(static_cast<T>(from.expire_below)) {}

  bool cosine;
  T momentum, expire_below;
};

// Rounding error of the cosine of equal directions, in units of epsilon times
// the squared norm; for a prototype of equal samples it is about 0.05. Anything
// below is not a distortion.
constexpr double kCosineNoise = 8;

template <typename T>
T noise_of(const Average<T>& average, const T* prototype, T count,
           int64_t depth) {
  const T squares = average.cosine ? T(kCosineNoise)
                                   : row_kernels<T>().squares(prototype, depth);
  return std::numeric_limits<T>::epsilon() * count * squares;
}

// Adds a batch to the `rows` rows of one class.
template <typename T>
void apply_class(const Average<T>& average, int64_t rows, int64_t depth,
                 const ClassTotals<const T>& batch, T* prototypes, T* sums,
                 T* masses) {
  const PrototypeRows<T>& kernels = row_kernels<T>();
  T present = 0, before = 0, total = 0;
  for (int64_t row = 0; row < rows; ++row) present += batch.counts[row];
  if (!(present > 0)) return;
  int64_t lightest = 0;
  for (int64_t row = 0; row < rows; ++row) {
    before += masses[row];
    masses[row] = average.momentum * masses[row] + batch.counts[row];
    total += masses[row];
    if (masses[row] < masses[lightest]) lightest = row;
  }
  const T least = average.expire_below * total / static_cast<T>(rows);
  // In the first batch of a class, distances refer to no prototype.
  int64_t parent = -1;
  if (before > 0 && masses[lightest] <= least)
    for (int64_t row = 0; row < rows; ++row)
      if (row != lightest &&
          batch.distortions[row] >
              (parent < 0 ? T(0) : batch.distortions[parent]) &&
          batch.distortions[row] > noise_of(average, prototypes + row * depth,
                                            batch.counts[row], depth))
        parent = row;
  const auto move = [&](int64_t row) {
    const T* sum = sums + row * depth;
    const T scale = average.cosine ? inverse_norm(sum, depth) : 1 / masses[row];
    // Unit vectors that cancel have no direction: keep the old one.
    if (scale > 0) kernels.scale(sum, scale, depth, prototypes + row * depth);
  };
  for (int64_t row = 0; row < rows; ++row) {
    if (batch.counts[row] > 0) {
      kernels.decay(batch.sums + row * depth, average.momentum, depth,
                    sums + row * depth);
      move(row);
    } else {
      kernels.scale(sums + row * depth, average.momentum, depth,
                    sums + row * depth);
    }
  }
  if (parent < 0) return;
  masses[lightest] = masses[parent] /= 2;
  const T step = T(kSplit) * masses[parent];
  const T* prototype = prototypes + parent * depth;
  T *sum = sums + parent * depth, *child = sums + lightest * depth;
  for (int64_t d = 0; d < depth; ++d) {
    const T half = sum[d] / 2;
    const T shift = step * (batch.far_feature[d] - prototype[d]);
    child[d] = half + shift;
    sum[d] = half - shift;
  }
  move(lightest);
  move(parent);
}

// Holds the batch's part of a class if the caller does not keep it.
template <typename T>
class ClassMemory {
 public:
  ClassMemory(int64_t rows, int64_t depth)
      : memory_(static_cast<size_t>(rows * depth + 2 * rows + depth)),
        rows_(rows),
        depth_(depth) {}

  ClassTotals<T> totals() {
    T* counts = memory_.data() + rows_ * depth_;
    T* distortions = counts + rows_;
    return {memory_.data(), counts, distortions, distortions + rows_};
  }

 private:
  std::vector<T> memory_;
  int64_t rows_, depth_;
};

// Finds the rows of all samples and sums up every class. `Sink` provides the
// memory for a class's part:
//   kAbsentToo          whether classes without a sample have one
//   Local, local()      a thread's memory for the classes that it does alone
//   prepare(labels)     for the classes that threads share
//   ahead(label)        announces the next class
//   small(label, local), large(place, label)    -> ClassTotals
//   done(label, totals)                         they are complete
template <typename T, typename Element, typename Sink>
void cluster(const AccumulateProblem<T, Element>& p, const Threads& threads,
             int64_t* assignments, Sink& sink) {
  Sorted<T> s = sort_by_class(p);
  const int64_t elements = (p.offsets[p.classes] + p.n) * p.depth;
  const Shares shares = share_out(p, s, elements < kSerial ? 1 : threads.count);
  sink.prepare(shares.large);
  const auto scratch_row = [&] {
    return std::vector<T>(
        std::is_same_v<T, Element> ? 0 : static_cast<size_t>(p.depth));
  };
  run(threads, static_cast<int64_t>(shares.pieces.size()), elements,
      [&](int64_t begin, int64_t end) {
        std::vector<T> scratch = scratch_row();
        typename Sink::Local local = sink.local();
        for (int64_t at = begin; at < end; ++at) {
          const Shares::Piece& piece = shares.pieces[static_cast<size_t>(at)];
          if (piece.large) {
            assign(p, s, piece.label, piece.first, piece.last, scratch.data());
            continue;
          }
          for (int64_t c = piece.first; c < piece.last; ++c) {
            const size_t k = static_cast<size_t>(c);
            if (!Sink::kAbsentToo && s.start[k] == s.start[k + 1]) continue;
            if (c + 1 < piece.last) sink.ahead(c + 1);
            assign(p, s, c, s.start[k], s.start[k + 1], scratch.data());
            const ClassTotals<T> totals = sink.small(c, local);
            add_up_class(p, s, c, 0, p.depth, true, scratch.data(), totals);
            sink.done(c, totals);
          }
        }
      });
  run(threads, static_cast<int64_t>(shares.columns.size()), elements,
      [&](int64_t begin, int64_t end) {
        std::vector<T> scratch = scratch_row();
        for (int64_t at = begin; at < end; ++at) {
          const auto& [place, left, right] =
              shares.columns[static_cast<size_t>(at)];
          const int64_t label = shares.large[static_cast<size_t>(place)];
          add_up_class(p, s, label, left, right, left == 0, scratch.data(),
                       sink.large(place, label));
        }
      });
  run(threads, static_cast<int64_t>(shares.large.size()), elements,
      [&](int64_t begin, int64_t end) {
        for (int64_t place = begin; place < end; ++place) {
          const int64_t label = shares.large[static_cast<size_t>(place)];
          sink.done(label, sink.large(place, label));
        }
      });
  // By one thread: neighbouring samples belong to different classes.
  std::fill(assignments, assignments + p.n, int64_t(-1));
  for (size_t k = 0; k < static_cast<size_t>(s.start.back()); ++k)
    assignments[s.sample[k]] = s.row[k];
}

// Stores every class's part for the caller.
template <typename T>
struct KeepAll {
  struct Local {};
  static constexpr bool kAbsentToo = true;

  Local local() const { return {}; }
  void prepare(const std::vector<int64_t>&) const {}
  ClassTotals<T> small(int64_t label, Local&) const { return of(label); }
  ClassTotals<T> large(int64_t, int64_t label) const { return of(label); }
  void ahead(int64_t) const {}
  void done(int64_t, const ClassTotals<T>&) const {}

  ClassTotals<T> of(int64_t label) const {
    const int64_t first = offsets[label];
    return {out.sums + first * depth, out.counts + first,
            out.distortions + first, out.far_features + label * depth,
            out.far_distances + label};
  }

  const int64_t* offsets;
  int64_t depth;
  const Accumulated<T>& out;
};

// Applies a class's part to the state while it is in the cache.
template <typename T>
class ApplyAtOnce {
 public:
  using Local = ClassMemory<T>;
  static constexpr bool kAbsentToo = false;

  ApplyAtOnce(const MovingAverage& average, const int64_t* offsets,
              int64_t classes, int64_t depth, const State<T>& state)
      : average_(average), offsets_(offsets), depth_(depth), state_(state) {
    for (int64_t c = 0; c < classes; ++c) most_ = std::max(most_, rows(c));
  }

  Local local() const { return Local(most_, depth_); }
  void prepare(const std::vector<int64_t>& large) {
    for (int64_t label : large) large_.emplace_back(rows(label), depth_);
  }
  ClassTotals<T> small(int64_t, Local& local) const { return local.totals(); }
  ClassTotals<T> large(int64_t place, int64_t) {
    return large_[static_cast<size_t>(place)].totals();
  }
  void ahead(int64_t label) const {
    const int64_t first = offsets_[label];
    prefetch(state_.prototypes + first * depth_, rows(label) * depth_);
    prefetch(state_.sums + first * depth_, rows(label) * depth_);
  }
  void done(int64_t label, const ClassTotals<T>& totals) const {
    const int64_t first = offsets_[label];
    apply_class<T>(
        average_, rows(label), depth_,
        {totals.sums, totals.counts, totals.distortions, totals.far_feature},
        state_.prototypes + first * depth_, state_.sums + first * depth_,
        state_.masses + first);
  }

 private:
  int64_t rows(int64_t label) const {
    return offsets_[label + 1] - offsets_[label];
  }

  const Average<T> average_;
  const int64_t* offsets_;
  int64_t depth_, most_ = 0;
  const State<T>& state_;
  std::vector<ClassMemory<T>> large_;
};

}  // namespace

template <typename T, typename Element>
void accumulate_prototypes(const AccumulateProblem<T, Element>& p,
                           const Threads& threads, const Accumulated<T>& out) {
  KeepAll<T> sink{p.offsets, p.depth, out};
  cluster(p, threads, out.assignments, sink);
}

template <typename T>
void apply_prototypes(const ApplyProblem<T>& p, const Threads& threads,
                      const State<T>& state) {
  const Average<T> average(p);
  const int64_t elements = p.offsets[p.classes] * p.depth;
  run(threads, p.classes, elements, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = p.offsets[c];
      apply_class<T>(average, p.offsets[c + 1] - first, p.depth,
                     {p.batch_sums + first * p.depth, p.batch_counts + first,
                      p.distortions + first, p.far_features + c * p.depth},
                     state.prototypes + first * p.depth,
                     state.sums + first * p.depth, state.masses + first);
    }
  });
}

template <typename T, typename Element>
void update_prototypes(const UpdateProblem<Element>& p, const Threads& threads,
                       const State<T>& state, int64_t* assignments) {
  const AccumulateProblem<T, Element> batch{
      p.cosine,  p.features, p.labels, state.prototypes, state.masses,
      p.offsets, p.n,        p.rows,   p.classes,        p.depth};
  ApplyAtOnce<T> sink(p, p.offsets, p.classes, p.depth, state);
  cluster(batch, threads, assignments, sink);
}

#define S3H_INSTANTIATE(T, Element)                                            \
  template void accumulate_prototypes<T, Element>(                             \
      const AccumulateProblem<T, Element>&, const Threads&,                    \
      const Accumulated<T>&);                                                  \
  template void update_prototypes<T, Element>(const UpdateProblem<Element>&,   \
                                              const Threads&, const State<T>&, \
                                              int64_t*);
S3H_INSTANTIATE(float, float)
S3H_INSTANTIATE(float, Bfloat16)
S3H_INSTANTIATE(float, Float16)
S3H_INSTANTIATE(double, double)
#undef S3H_INSTANTIATE
template void apply_prototypes<float>(const ApplyProblem<float>&,
                                      const Threads&, const State<float>&);
template void apply_prototypes<double>(const ApplyProblem<double>&,
                                       const Threads&, const State<double>&);

}  // namespace s3h::cpu
