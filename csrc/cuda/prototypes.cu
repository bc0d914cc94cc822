// accumulate, in this order:
//   assign_samples  A warp owns a sample and takes it against the rows of its
//                   class, four at a time; lanes take kWidth elements each in
//                   turn. What it finds goes to memory, and the distance to
//                   the class's greatest by an atomic maximum of whole numbers
//                   in the order of the distances.
//   first_farthest  A thread per sample: the first of those as far as that,
//                   again by an atomic maximum.
//   write_farthest  A warp per class.
//   rows_by_key.cu  Sums and counts, by assignments in the place of labels;
//                   then distances, as rows of one column.
// apply: a block owns a class. Its first warp goes over the masses, then all
// warps take rows in turn, then the first warp splits a row if another is dead.
//
// Atomics are of whole numbers alone, so the order of blocks does not show:
// the same bits on every run. Products and sums are in Real, added up over the
// lanes by shuffles. A label that is not below the number of classes stops the
// kernel; offsets are kept within the state, whatever they are.
#include <algorithm>

#include "elements.cuh"
#include "lanes.cuh"
#include "prototypes.h"
#include "rows_by_key.h"

namespace s3h::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kBlockWarps = kBlock / 32;
constexpr int kAtOnce = 4;
// As in csrc/cpu/prototypes.cpp.
constexpr double kSplit = 0.03;
constexpr double kCosineNoise = 8;

template <typename T>
struct Assign {
  bool cosine;
  const T* features;
  const int64_t* labels;
  const RealOf<T>* prototypes;
  const RealOf<T>* masses;
  const int64_t* offsets;
  int64_t n, rows, classes, depth;
  int64_t* assignments;  // [n]
  RealOf<T>* distances;  // [n]
  RealOf<T>* scales;     // [n]: what a feature is multiplied by
  uint64_t* farthest;    // [classes]: greatest place_of, 0: none
};

// Whole numbers in the order of the numbers; never 0.
__device__ inline uint64_t place_of(float x) {
  const uint32_t bits = float_to_bits(x);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline uint64_t place_of(double x) {
  const uint64_t bits = double_to_bits(x), sign = uint64_t{1} << 63;
  return (bits & sign) != 0 ? ~bits : bits | sign;
}

__device__ inline int64_t within(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock) assign_samples(Assign<T> a) {
  using Real = RealOf<T>;
  const int64_t i =
      static_cast<int64_t>(block_x()) * kBlockWarps + thread_x() / 32;
  if (i >= a.n) return;
  const int lane = thread_x() % 32;
  const int64_t label = a.labels[i];
  if (label >= a.classes)
    stop("accumulate_prototypes: a label is not below the number of classes");
  int64_t best = -1;
  Real nearest = infinity<Real>(), scale = 1;
  if (label >= 0) {
    const T* feature = a.features + i * a.depth;
    if (a.cosine) {
      Real squares = 0;
      for (int64_t d = lane * kWidth; d < a.depth; d += 32 * kWidth) {
        const auto x = load_several<kWidth>(feature + d);
        for (int e = 0; e < kWidth; ++e)
          squares += widen(x.at[e]) * widen(x.at[e]);
      }
      scale = inverse_norm(squares, a.depth,
                           [&](int64_t d) { return widen(feature[d]); });
    }
    const int64_t first = within(a.offsets[label], 0, a.rows);
    const int64_t last = within(a.offsets[label + 1], first, a.rows);
    for (int64_t row = first; row < last; row += kAtOnce) {
      Real sums[kAtOnce] = {};
      for (int64_t d = lane * kWidth; d < a.depth; d += 32 * kWidth) {
        const auto x = load_several<kWidth>(feature + d);
#pragma unroll
        for (int r = 0; r < kAtOnce; ++r) {
          // The last row again where there are fewer than four.
          const int64_t own = row + r < last ? row + r : last - 1;
          const auto p = load_several<kWidth>(a.prototypes + own * a.depth + d);
          for (int e = 0; e < kWidth; ++e) {
            const Real f = widen(x.at[e]);
            const Real difference = f - p.at[e];
            sums[r] += a.cosine ? f * p.at[e] : difference * difference;
          }
        }
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const Real sum = sum_of_lanes(sums[r]);
        const Real distance = a.cosine ? 1 - scale * sum : sum;
        const int64_t own = row + r;
        if (own >= last) break;
        // An unborn row takes no sample, but for the first of a class.
        if ((own == first || a.masses[own] > 0) && distance < nearest) {
          nearest = distance;
          best = own;
        }
      }
    }
  }
  if (lane != 0) return;
  a.assignments[i] = best;
  a.distances[i] = nearest;
  a.scales[i] = scale;
  if (best < 0) return;
  const uint64_t place = place_of(nearest);
  // Read first: most samples are not the farthest so far.
  if (place > read_shared_word(a.farthest + label))
    atomic_max(a.farthest + label, place);
}

struct Farthest {
  const int64_t* labels;
  const int64_t* assignments;
  const uint64_t* farthest;
  uint64_t* first;  // [classes]: n - the first of the farthest samples, 0: none
  int64_t n;
};

template <typename Real>
__global__ void __launch_bounds__(kBlock)
    first_farthest(Farthest a, const Real* distances) {
  const int64_t i = static_cast<int64_t>(block_x()) * kBlock + thread_x();
  if (i >= a.n || a.assignments[i] < 0) return;
  const int64_t label = a.labels[i];
  if (place_of(distances[i]) == a.farthest[label])
    atomic_max(a.first + label, static_cast<uint64_t>(a.n - i));
}

template <typename T>
__global__ void __launch_bounds__(kBlock)
    write_farthest(Assign<T> a, const uint64_t* first, RealOf<T>* far_distances,
                   RealOf<T>* far_features) {
  using Real = RealOf<T>;
  const int64_t c =
      static_cast<int64_t>(block_x()) * kBlockWarps + thread_x() / 32;
  if (c >= a.classes) return;
  const int lane = thread_x() % 32;
  Real* to = far_features + c * a.depth;
  if (first[c] == 0) {
    if (lane == 0) far_distances[c] = -1;
    for (int64_t d = lane; d < a.depth; d += 32) to[d] = 0;
    return;
  }
  const int64_t i = a.n - static_cast<int64_t>(first[c]);
  if (lane == 0) far_distances[c] = a.distances[i];
  const T* feature = a.features + i * a.depth;
  for (int64_t d = lane; d < a.depth; d += 32)
    to[d] = a.scales[i] * widen(feature[d]);
}

template <typename Real>
struct Apply {
  bool cosine;
  Real momentum, expire_below;
  const int64_t* offsets;
  int64_t rows, depth;
  const Real* batch_sums;
  const Real* batch_counts;
  const Real* distortions;
  const Real* far_features;
  Real* prototypes;
  Real* sums;
  Real* masses;
};

// What the first warp finds out about a class.
struct ClassState {
  bool present;
  int64_t dead, parent;  // rows; -1: none is split
};

// The first row of [first, last) for which `is(row)` holds, or -1, for all
// lanes of a warp, which look at 32 rows in turn.
template <typename Is>
__device__ inline int64_t first_row(int64_t first, int64_t last, const Is& is) {
  const int lane = thread_x() % 32;
  for (int64_t row = first; row < last; row += 32) {
    const uint32_t who = warp_ballot(row + lane < last && is(row + lane));
    if (who != 0) return row + count_bits((who & (0u - who)) - 1);
  }
  return -1;
}

// Brings the masses of a class up to date; all lanes get the state.
template <typename Real>
__device__ inline ClassState update_masses(const Apply<Real>& a, int64_t first,
                                           int64_t last) {
  const int lane = thread_x() % 32;
  bool present = false;
  for (int64_t row = first + lane; row < last; row += 32)
    present = present || a.batch_counts[row] > 0;
  if (!warp_any(present)) return {false, -1, -1};
  Real before = 0, total = 0, least = infinity<Real>();
  for (int64_t row = first + lane; row < last; row += 32) {
    before += a.masses[row];
    const Real mass = a.momentum * a.masses[row] + a.batch_counts[row];
    a.masses[row] = mass;
    total += mass;
    least = mass < least ? mass : least;
  }
  before = sum_of_lanes(before);
  total = sum_of_lanes(total);
  least = -greatest_of_lanes(-least);
  const Real limit = a.expire_below * total / static_cast<Real>(last - first);
  // The first batch of a class has distances to no prototype.
  if (!(before > 0 && least <= limit)) return {true, -1, -1};
  const int64_t dead = first_row(
      first, last, [&](int64_t row) { return a.masses[row] == least; });
  Real most = 0;
  int64_t parent = -1;
  for (int64_t row = first; row < last; ++row) {
    const Real distortion = a.distortions[row];
    if (row == dead || !(distortion > most)) continue;
    Real squares = kCosineNoise;
    if (!a.cosine) {
      squares = 0;
#pragma unroll 1
      for (int64_t d = lane; d < a.depth; d += 32) {
        const Real x = a.prototypes[row * a.depth + d];
        squares += x * x;
      }
      squares = sum_of_lanes(squares);
    }
    if (!(distortion > epsilon<Real>() * a.batch_counts[row] * squares))
      continue;
    most = distortion;
    parent = row;
  }
  return {true, dead, parent};
}

// The prototype of a row's sum, whose squares `squares` are this lane's part
// of. Unit vectors that cancel have no direction: the old one stays.
template <typename Real>
__device__ inline void move_prototype(const Apply<Real>& a, int64_t row,
                                      Real mass, Real squares) {
  const Real* sum = a.sums + row * a.depth;
  const Real scale = a.cosine ? inverse_norm(squares, a.depth,
                                             [&](int64_t d) { return sum[d]; })
                              : 1 / mass;
  if (!(scale > 0)) return;
  for (int64_t d = thread_x() % 32; d < a.depth; d += 32)
    a.prototypes[row * a.depth + d] = scale * sum[d];
}

// One warp makes the halves of `parent` two rows.
template <typename Real>
__device__ inline void split(const Apply<Real>& a, const Real* far,
                             int64_t parent, int64_t child) {
  const int lane = thread_x() % 32;
  const Real mass = a.masses[parent] / 2;
  // The parent last: the child is made of it.
#pragma unroll 1
  for (int half = 0; half < 2; ++half) {
    const int64_t row = half == 0 ? child : parent;
    const Real step = Real(half == 0 ? kSplit : -kSplit) * mass;
    Real squares = 0;
    for (int64_t d = lane; d < a.depth; d += 32) {
      const int64_t at = parent * a.depth + d;
      const Real now = a.sums[at] / 2 + step * (far[d] - a.prototypes[at]);
      a.sums[row * a.depth + d] = now;
      squares += now * now;
    }
    move_prototype(a, row, mass, squares);
  }
  warp_barrier();  // all lanes have read the parent's mass
  if (lane == 0) a.masses[parent] = a.masses[child] = mass;
}

template <typename Real>
__global__ void __launch_bounds__(kBlock) apply_class(Apply<Real> a) {
  const int64_t c = block_x();
  const int64_t first = within(a.offsets[c], 0, a.rows);
  const int64_t last = within(a.offsets[c + 1], first, a.rows);
  const int lane = thread_x() % 32, warp = thread_x() / 32;
  auto* state = reinterpret_cast<ClassState*>(shared_memory());
  if (warp == 0) {
    const ClassState found = update_masses(a, first, last);
    if (lane == 0) *state = found;
  }
  block_barrier();
  if (!state->present) return;
  for (int64_t row = first + warp; row < last; row += kBlockWarps) {
    Real* sum = a.sums + row * a.depth;
    if (!(a.batch_counts[row] > 0)) {
      for (int64_t d = lane; d < a.depth; d += 32) sum[d] *= a.momentum;
      continue;
    }
    Real squares = 0;
    for (int64_t d = lane; d < a.depth; d += 32) {
      const Real now = a.momentum * sum[d] + a.batch_sums[row * a.depth + d];
      sum[d] = now;
      squares += now * now;
    }
    move_prototype(a, row, a.masses[row], squares);
  }
  block_barrier();
  if (warp == 0 && state->parent >= 0)
    split(a, a.far_features + c * a.depth, state->parent, state->dead);
}

// The parts of the workspace.
struct Parts {
  size_t farthest, first, distances, scales, sums, end;
};

Parts parts_of(const AccumulateProblem& p) {
  const size_t real = real_size(p.type);
  Parts parts{};
  parts.first = 8 * static_cast<size_t>(p.classes);
  parts.distances = padded(16 * static_cast<size_t>(p.classes));
  parts.scales = parts.distances + padded(real * static_cast<size_t>(p.n));
  parts.sums = parts.scales + padded(real * static_cast<size_t>(p.n));
  // Used for the sums, then for the distortions.
  parts.end =
      parts.sums +
      std::max(add_rows_workspace(p.type, 1, p.n, p.rows, p.depth),
               add_rows_workspace(real_type(p.type), 1, p.n, p.rows, 1));
  return parts;
}

template <typename T>
Status find_rows(const AccumulateProblem& p, const Parts& parts,
                 unsigned char* work, const Accumulated& out, Stream stream) {
  using Real = RealOf<T>;
  const Assign<T> a{p.cosine,
                    static_cast<const T*>(p.features),
                    p.labels,
                    static_cast<const Real*>(p.prototypes),
                    static_cast<const Real*>(p.masses),
                    p.offsets,
                    p.n,
                    p.rows,
                    p.classes,
                    p.depth,
                    out.assignments,
                    reinterpret_cast<Real*>(work + parts.distances),
                    reinterpret_cast<Real*>(work + parts.scales),
                    reinterpret_cast<uint64_t*>(work + parts.farthest)};
  auto* first = reinterpret_cast<uint64_t*>(work + parts.first);
  Status status;
  if (p.n > 0) {
    // Several doubles at a time do not fit into the registers.
    constexpr int kWidth = std::is_same_v<T, double> ? 1 : 4;
    const bool vectors = p.depth % kWidth == 0 && aligned_to(p.features, 16) &&
                         aligned_to(p.prototypes, 16);
    const Grid per_warp{ceil_divide(p.n, kBlockWarps), 1, 1};
    status =
        vectors
            ? launch(assign_samples<T, kWidth>, per_warp, kBlock, 0, stream, a)
            : launch(assign_samples<T, 1>, per_warp, kBlock, 0, stream, a);
    if (!status.ok()) return status;
    const Farthest farthest{p.labels, out.assignments, a.farthest, first, p.n};
    status =
        launch(first_farthest<Real>, {ceil_divide(p.n, kBlock), 1, 1}, kBlock,
               0, stream, farthest, static_cast<const Real*>(a.distances));
    if (!status.ok()) return status;
  }
  return launch(write_farthest<T>, {ceil_divide(p.classes, kBlockWarps), 1, 1},
                kBlock, 0, stream, a, static_cast<const uint64_t*>(first),
                static_cast<Real*>(out.far_distances),
                static_cast<Real*>(out.far_features));
}

template <typename Real>
Status apply_as(const ApplyProblem& p, void* prototypes, void* sums,
                void* masses, Stream stream) {
  const Apply<Real> a{p.cosine,
                      static_cast<Real>(p.momentum),
                      static_cast<Real>(p.expire_below),
                      p.offsets,
                      p.rows,
                      p.depth,
                      static_cast<const Real*>(p.batch_sums),
                      static_cast<const Real*>(p.batch_counts),
                      static_cast<const Real*>(p.distortions),
                      static_cast<const Real*>(p.far_features),
                      static_cast<Real*>(prototypes),
                      static_cast<Real*>(sums),
                      static_cast<Real*>(masses)};
  return launch(apply_class<Real>, {p.classes, 1, 1}, kBlock,
                sizeof(ClassState), stream, a);
}

}  // namespace

size_t accumulate_prototypes_workspace(const AccumulateProblem& p) {
  return parts_of(p).end;
}

Status accumulate_prototypes(const AccumulateProblem& p, void* workspace,
                             const Accumulated& out, Stream stream) {
  if (p.classes == 0) return {};
  const Parts parts = parts_of(p);
  auto* work = static_cast<unsigned char*>(workspace);
  Status status = fill_zero(work, 16 * static_cast<size_t>(p.classes), stream);
  if (!status.ok()) return status;
  status = with_element(p.type, [&]<typename T>() {
    return find_rows<T>(p, parts, work, out, stream);
  });
  if (!status.ok()) return status;
  const RowsByKey set{
      p.features, out.assignments, p.cosine ? work + parts.scales : nullptr,
      p.n,        out.sums,        out.counts};
  status =
      add_rows(p.type, &set, 1, p.rows, p.depth, work + parts.sums, stream);
  if (!status.ok()) return status;
  const RowsByKey column{work + parts.distances, out.assignments, nullptr, p.n,
                         out.distortions,        nullptr};
  return add_rows(real_type(p.type), &column, 1, p.rows, 1, work + parts.sums,
                  stream);
}

Status apply_prototypes(const ApplyProblem& p, void* prototypes, void* sums,
                        void* masses, Stream stream) {
  if (p.classes == 0) return {};
  return p.wide ? apply_as<double>(p, prototypes, sums, masses, stream)
                : apply_as<float>(p, prototypes, sums, masses, stream);
}

}  // namespace s3h::cuda
