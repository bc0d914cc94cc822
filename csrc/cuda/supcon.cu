// The denominators are the similarity kernels' work; what is here is linear in
// the number of rows, but for the search of classes. Eight launches, unless the
// loss is not reduced or there are more rows than fill the device:
//
//   collect_classes  a block finds the rows of a class, adds them up and counts
//                    them (supcon_classes.cuh)
//   similarity.cu    log-sum-exp: at most two, since the memory that the
//                    triangle adds to is zeroed in collect_classes
//   row_losses       a warp per row: its loss; the last block to finish adds up
//                    what the blocks have left, in their order
//   row_upstream     a thread per row: the gradient of its loss, and its weight
//   similarity.cu    their gradient: at most two, three above whole waves
//   add_attraction   a warp per row: the attraction's gradient on top
//
// Nothing but whole numbers goes through an atomic: the same bits on every run,
// as far as the log-sum-exp has them.
#include <algorithm>

#include "lanes.cuh"
#include "rows_by_key.h"
#include "similarity.h"
#include "supcon.h"
#include "supcon_classes.cuh"

namespace s3h::cuda {
namespace {

// How a row stands to its class.
struct Place {
  int64_t key;
  int64_t others;  // 0: the row is not counted
};

__device__ inline Place place_of(const Keys& keys, const int32_t* sizes,
                                 int64_t row) {
  const int64_t key = key_of(keys, row);
  return {key, key < 0 ? 0 : sizes[key] - 1};
}

struct BlockSum {
  double loss;
  int64_t counted;
};

template <typename T>
struct LossArguments {
  const T* rows;
  Keys keys;
  const RealOf<T>* sums;
  const int32_t* sizes;
  const RealOf<T>* lse;
  int64_t n, depth;
  double temperature;
  Reduction reduction;
  BlockSum* blocks;  // [grid]
  uint32_t* passed;  // 0 before
  RealOf<T>* loss;   // [n] or [1]
  int64_t* counted;  // [1]
  int32_t* again;    // the same, for the backward
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock) row_losses(LossArguments<T> a) {
  using Real = RealOf<T>;
  auto* shared = reinterpret_cast<BlockSum*>(shared_memory());  // [kBlock]
  auto* flag = reinterpret_cast<uint32_t*>(shared + kBlock);
  const int lane = thread_x() % 32, warp = thread_x() / 32;
  const int64_t i = static_cast<int64_t>(block_x()) * kBlockWarps + warp;
  Real loss = 0;
  bool counts = false;
  if (i < a.n) {
    const Place place = place_of(a.keys, a.sizes, i);
    counts = place.others > 0;
    if (counts) {
      const T* row = a.rows + i * a.depth;
      const Real* sum = a.sums + place.key * a.depth;
      Real dot = 0;
      for (int64_t d = lane * kWidth; d < a.depth; d += 32 * kWidth) {
        const auto x = load_several<kWidth>(row + d);
        const auto s = load_several<kWidth>(sum + d);
        for (int e = 0; e < kWidth; ++e) {
          const Real own = widen(x.at[e]);
          dot += own * (s.at[e] - own);
        }
      }
      dot = sum_of_lanes(dot);
      loss = static_cast<Real>(
          static_cast<double>(a.lse[i]) -
          static_cast<double>(dot) /
              (a.temperature * static_cast<double>(place.others)));
    }
    if (lane == 0 && a.reduction == Reduction::kNone) a.loss[i] = loss;
  }
  if (lane == 0) shared[warp] = {static_cast<double>(loss), counts ? 1 : 0};
  block_barrier();
  if (thread_x() == 0) {
    BlockSum all{};
    for (int w = 0; w < kBlockWarps; ++w) {
      all.loss += shared[w].loss;
      all.counted += shared[w].counted;
    }
    a.blocks[block_x()] = all;
    *flag = arrive(a.passed) + 1 == static_cast<uint32_t>(grid_x()) ? 1 : 0;
  }
  block_barrier();
  if (*flag == 0) return;

  BlockSum own{};
  for (int b = thread_x(); b < grid_x(); b += kBlock) {
    own.loss += a.blocks[b].loss;
    own.counted += a.blocks[b].counted;
  }
  shared[thread_x()] = own;
  for (int half = kBlock / 2; half > 0; half /= 2) {
    block_barrier();
    if (thread_x() >= half) continue;
    shared[thread_x()].loss += shared[thread_x() + half].loss;
    shared[thread_x()].counted += shared[thread_x() + half].counted;
  }
  if (thread_x() != 0) return;
  const int64_t counted = shared[0].counted;
  *a.counted = counted;
  *a.again = static_cast<int32_t>(counted);
  if (a.reduction == Reduction::kNone) return;
  const double over =
      a.reduction == Reduction::kMean && counted > 0 ? counted : 1;
  *a.loss = static_cast<Real>(shared[0].loss / over);
}

// upstream_i = g_i, weight_i = -g_i / (temperature (n_c - 1)).
template <typename Real>
struct UpstreamArguments {
  Keys keys;
  const int32_t* sizes;
  const int32_t* counted;
  const Real* grad;
  int64_t n;
  double temperature;
  Reduction reduction;
  Real* upstream;
  Real* weight;
};

template <typename Real>
__global__ void __launch_bounds__(kBlock)
    row_upstream(UpstreamArguments<Real> a) {
  const int64_t i = static_cast<int64_t>(block_x()) * kBlock + thread_x();
  if (i >= a.n) return;
  const int64_t others = place_of(a.keys, a.sizes, i).others;
  Real upstream = 0, weight = 0;
  if (others > 0) {
    upstream = a.reduction == Reduction::kNone ? a.grad[i] : *a.grad;
    if (a.reduction == Reduction::kMean)
      upstream /= static_cast<Real>(*a.counted);
    weight = -upstream /
             (static_cast<Real>(a.temperature) * static_cast<Real>(others));
  }
  a.upstream[i] = upstream;
  a.weight[i] = weight;
}

// gradient_i += w_i (S - 2 z_i) + W, W the sum of w_j z_j over the class; where
// all rows of a class have one weight, W = w_i S.
template <typename T>
struct AttractionArguments {
  const T* rows;
  Keys keys;
  const RealOf<T>* sums;
  const int32_t* sizes;
  const RealOf<T>* weight;
  const RealOf<T>* weighted;  // [keys, depth], W; or nullptr
  int64_t n, depth;
  T* gradient;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    add_attraction(AttractionArguments<T> a) {
  using Real = RealOf<T>;
  const int64_t i =
      static_cast<int64_t>(block_x()) * kBlockWarps + thread_x() / 32;
  if (i >= a.n) return;
  const Place place = place_of(a.keys, a.sizes, i);
  if (place.others == 0) return;
  const Real weight = a.weight[i];
  const int64_t to = i * a.depth, from = place.key * a.depth;
  for (int64_t d = thread_x() % 32 * kWidth; d < a.depth; d += 32 * kWidth) {
    const auto own = load_several<kWidth>(a.rows + to + d);
    const auto sum = load_several<kWidth>(a.sums + from + d);
    auto gradient = load_several<kWidth>(a.gradient + to + d);
    Several<Real, kWidth> others{};
    if (a.weighted != nullptr)
      others = load_several<kWidth>(a.weighted + from + d);
    for (int e = 0; e < kWidth; ++e) {
      const Real x = widen(own.at[e]);
      const Real part = a.weighted == nullptr
                            ? 2 * weight * (sum.at[e] - x)
                            : weight * (sum.at[e] - 2 * x) + others.at[e];
      gradient.at[e] = narrow<T>(widen(gradient.at[e]) + part);
    }
    store_several(a.gradient + to + d, gradient);
  }
}

int64_t key_count(const SupConProblem& p) {
  return p.classes < 0 ? p.n : std::min(p.classes, p.n);
}

int64_t blocks_of(int64_t count, int64_t size) {
  return std::max<int64_t>(1, ceil_divide(count, size));
}

// Where the parts of what is kept lie, in floats.
struct Kept {
  explicit Kept(const SupConProblem& p) {
    const int64_t keys = key_count(p);
    const auto real = static_cast<int64_t>(real_size(p.type) / 4);
    first = ceil_divide(keys * p.depth * real, 4) * 4;
    correction = first + 2 * p.n;
    sizes = correction + p.n;
    counted = sizes + keys;
    count = counted + 1;
  }
  int64_t first, correction, sizes, counted, count;
};

Keys keys_of(const SupConProblem& p, const float* kept) {
  const bool by_row = p.classes < 0 || p.classes > p.n;
  // The backward does not write there.
  auto* first = const_cast<float*>(kept) + Kept(p).first;
  return {p.labels, by_row ? reinterpret_cast<int64_t*>(first) : nullptr,
          p.classes, key_count(p)};
}

SimilarityProblem similarities(const SupConProblem& p) {
  SimilarityProblem all{};
  all.symmetric = true;
  all.queries = p.features;
  all.n = all.m = p.n;
  all.depth = p.depth;
  all.temperature = p.temperature;
  all.type = p.type;
  return all;
}

SimilarityOptions options_of(const SupConProblem& p) {
  return {true, p.deterministic, p.allow_tf32, true};
}

// Parts of a workspace, each aligned.
class Parts {
 public:
  explicit Parts(void* start) : at_(static_cast<unsigned char*>(start)) {}
  template <typename T>
  T* take(size_t bytes) {
    auto* place = reinterpret_cast<T*>(at_);
    at_ += padded(bytes);
    return place;
  }

 private:
  unsigned char* at_;
};

size_t block_sum_bytes(const SupConProblem& p) {
  return sizeof(BlockSum) * static_cast<size_t>(blocks_of(p.n, kBlockWarps));
}

size_t row_bytes(const SupConProblem& p) {
  return real_size(p.type) * static_cast<size_t>(p.n);
}

size_t weighted_bytes(const SupConProblem& p) {
  if (p.reduction != Reduction::kNone) return 0;
  return real_size(p.type) * static_cast<size_t>(key_count(p) * p.depth);
}

// Calls function.template operator()<T, kWidth>() for the problem's type, with
// 16 bytes of it where all rows begin at a multiple of 16.
template <typename Function>
Status with_width(const SupConProblem& p, const void* other,
                  const Function& function) {
  return with_element(p.type, [&]<typename T>() {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
    const bool vectors = p.depth % kWidth == 0 && aligned_to(p.features, 16) &&
                         aligned_to(other, 16);
    return vectors ? function.template operator()<T, kWidth>()
                   : function.template operator()<T, 1>();
  });
}

}  // namespace

int64_t supcon_kept(const SupConProblem& p) { return Kept(p).count; }

size_t supcon_workspace(const SupConProblem& p) {
  return padded(logsumexp_workspace(similarities(p), options_of(p))) +
         padded(block_sum_bytes(p)) + padded(sizeof(uint32_t));
}

Status supcon(const SupConProblem& p, void* workspace, void* loss,
              int64_t* counted, void* lse, float* kept, Stream stream) {
  const Kept at(p);
  const Keys keys = keys_of(p, kept);
  auto* sizes = reinterpret_cast<int32_t*>(kept + at.sizes);
  Parts parts(workspace);
  const size_t own = logsumexp_workspace(similarities(p), options_of(p));
  auto* scratch = parts.take<float>(own);
  auto* blocks = parts.take<BlockSum>(block_sum_bytes(p));
  auto* passed = parts.take<uint32_t>(sizeof(uint32_t));
  const int64_t zero_count =
      own >= sizeof(float) * static_cast<size_t>(p.n) ? p.n : 0;
  Status status = with_width(p, nullptr, [&]<typename T, int kWidth>() {
    using Real = RealOf<T>;
    const ClassArguments<T> a{static_cast<const T*>(p.features),
                              keys,
                              p.n,
                              p.depth,
                              reinterpret_cast<Real*>(kept),
                              sizes,
                              passed,
                              scratch,
                              zero_count};
    return launch(
        collect_classes<T, kWidth>,
        {std::max<int64_t>(1, keys.count), blocks_of(p.depth, 32 * kWidth), 1},
        kBlock, kBlockWarps * (32 * kWidth * sizeof(Real) + sizeof(uint32_t)),
        stream, a);
  });
  if (status.ok())
    status = logsumexp(similarities(p), options_of(p), scratch, lse,
                       kept + at.correction, stream);
  if (!status.ok()) return status;
  return with_width(p, nullptr, [&]<typename T, int kWidth>() {
    using Real = RealOf<T>;
    const LossArguments<T> a{static_cast<const T*>(p.features),
                             keys,
                             reinterpret_cast<const Real*>(kept),
                             sizes,
                             static_cast<const Real*>(lse),
                             p.n,
                             p.depth,
                             p.temperature,
                             p.reduction,
                             blocks,
                             passed,
                             static_cast<Real*>(loss),
                             counted,
                             reinterpret_cast<int32_t*>(kept + at.counted)};
    return launch(row_losses<T, kWidth>, {blocks_of(p.n, kBlockWarps), 1, 1},
                  kBlock, kBlock * sizeof(BlockSum) + sizeof(uint32_t), stream,
                  a);
  });
}

size_t supcon_backward_workspace(const SupConProblem& p) {
  return 2 * padded(row_bytes(p)) + padded(weighted_bytes(p)) +
         std::max(logsumexp_backward_workspace(similarities(p), options_of(p),
                                               true, false),
                  add_rows_workspace(p.type, 1, p.n, key_count(p), p.depth));
}

Status supcon_backward(const SupConProblem& p, void* workspace,
                       const void* grad, const void* lse, const float* kept,
                       void* grad_features, Stream stream) {
  if (p.n == 0 || p.depth == 0) return {};
  const Kept at(p);
  const Keys keys = keys_of(p, kept);
  const auto* sizes = reinterpret_cast<const int32_t*>(kept + at.sizes);
  Parts parts(workspace);
  void* upstream = parts.take<void>(row_bytes(p));
  void* weight = parts.take<void>(row_bytes(p));
  void* weighted = parts.take<void>(weighted_bytes(p));
  void* scratch = parts.take<void>(0);
  Status status = with_element(p.type, [&]<typename T>() {
    using Real = RealOf<T>;
    const UpstreamArguments<Real> a{
        keys,
        sizes,
        reinterpret_cast<const int32_t*>(kept + at.counted),
        static_cast<const Real*>(grad),
        p.n,
        p.temperature,
        p.reduction,
        static_cast<Real*>(upstream),
        static_cast<Real*>(weight)};
    return launch(row_upstream<Real>, {blocks_of(p.n, kBlock), 1, 1}, kBlock, 0,
                  stream, a);
  });
  if (status.ok())
    status = logsumexp_backward(similarities(p), options_of(p), scratch,
                                upstream, lse, kept + at.correction,
                                grad_features, nullptr, stream);
  if (!status.ok() || keys.count == 0) return status;
  const bool each = p.reduction == Reduction::kNone;
  if (each) {
    const RowsByKey set{
        p.features, keys.first != nullptr ? keys.first : p.labels,
        weight,     p.n,
        weighted,   nullptr};
    status = add_rows(p.type, &set, 1, keys.count, p.depth, scratch, stream);
  }
  if (!status.ok()) return status;
  return with_width(p, grad_features, [&]<typename T, int kWidth>() {
    using Real = RealOf<T>;
    const AttractionArguments<T> a{
        static_cast<const T*>(p.features),
        keys,
        reinterpret_cast<const Real*>(kept),
        sizes,
        static_cast<const Real*>(weight),
        each ? static_cast<const Real*>(weighted) : nullptr,
        p.n,
        p.depth,
        static_cast<T*>(grad_features)};
    return launch(add_attraction<T, kWidth>,
                  {blocks_of(p.n, kBlockWarps), 1, 1}, kBlock, 0, stream, a);
  });
}

}  // namespace s3h::cuda
