// The sums of the classes come from rows_by_key.cu, those of the keys and, for
// the gradient, those of the queries times their upstream gradient in the same
// launch. Here a warp owns a row and takes it against its class's sum: lanes
// take kWidth elements (16 bytes of the row) each in turn, and a dot product is
// added up over the lanes by shuffles. Nothing is added by an atomic: the same
// bits on every run.
#include "class_sums.h"
#include "elements.cuh"
#include "rows_by_key.h"

namespace s3h::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kRowsPerBlock = kBlock / 32;

__device__ inline int64_t row_of_warp() {
  return static_cast<int64_t>(block_x()) * kRowsPerBlock + thread_x() / 32;
}

template <typename T>
struct DotArguments {
  const T* rows;
  const int64_t* classes;
  const RealOf<T>* sums;  // [known, depth]
  int64_t count, depth, known;
  bool without_itself;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    row_dots(DotArguments<T> a, RealOf<T>* dots) {
  using Real = RealOf<T>;
  const int64_t i = row_of_warp();
  if (i >= a.count) return;
  const int lane = thread_x() % 32;
  const int64_t label = a.classes[i];
  Real dot = 0;
  if (label >= 0 && label < a.known) {
    const T* row = a.rows + i * a.depth;
    const Real* sum = a.sums + label * a.depth;
    for (int64_t d = lane * kWidth; d < a.depth; d += 32 * kWidth) {
      const auto x = load_several<kWidth>(row + d);
      const auto s = load_several<kWidth>(sum + d);
      for (int e = 0; e < kWidth; ++e) {
        const Real own = widen(x.at[e]);
        dot += own * (a.without_itself ? s.at[e] - own : s.at[e]);
      }
    }
  }
  for (int mask = 16; mask > 0; mask /= 2) dot += shuffle_xor(dot, mask);
  if (lane == 0) dots[i] = dot;
}

// gradient_i = g_i (sums_c - 2 x_i) + weighted_c with the row's class c; what
// is nullptr is left out, and 0 without a class.
template <typename T>
struct GradientRows {
  const int64_t* classes;
  const RealOf<T>* grad;      // g, read with sums
  const RealOf<T>* sums;      // [known, depth]
  const T* own;               // x, or nullptr
  const RealOf<T>* weighted;  // [known, depth]
  T* gradient;
  int64_t count;
};

template <typename T>
struct GradientArguments {
  GradientRows<T> sides[2];
  int64_t depth, known;
};

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    row_gradients(GradientArguments<T> a) {
  using Real = RealOf<T>;
  // By selection: parameters that are indexed are copied to local memory.
  const GradientRows<T> side = block_y() == 0 ? a.sides[0] : a.sides[1];
  const int64_t i = row_of_warp();
  if (i >= side.count) return;
  const int64_t label = side.classes[i];
  const bool known = label >= 0 && label < a.known;
  const int64_t from = label * a.depth, to = i * a.depth;
  const Real grad = known && side.sums != nullptr ? side.grad[i] : Real(0);
  for (int64_t d = thread_x() % 32 * kWidth; d < a.depth; d += 32 * kWidth) {
    Several<Real, kWidth> value{};
    if (known && side.sums != nullptr) {
      value = load_several<kWidth>(side.sums + from + d);
      if (side.own != nullptr) {
        const auto own = load_several<kWidth>(side.own + to + d);
        for (int e = 0; e < kWidth; ++e) value.at[e] -= 2 * widen(own.at[e]);
      }
      for (int e = 0; e < kWidth; ++e) value.at[e] *= grad;
    }
    if (known && side.weighted != nullptr) {
      const auto others = load_several<kWidth>(side.weighted + from + d);
      for (int e = 0; e < kWidth; ++e) value.at[e] += others.at[e];
    }
    Several<T, kWidth> result;
    for (int e = 0; e < kWidth; ++e) result.at[e] = narrow<T>(value.at[e]);
    store_several(side.gradient + to + d, result);
  }
}

struct Rows {
  const void* data;
  const int64_t* classes;
  int64_t count;
};

Rows keys_of(const ClassSumProblem& p) {
  if (p.symmetric) return {p.queries, p.query_classes, p.n};
  return {p.keys, p.key_classes, p.m};
}

size_t sums_bytes(const ClassSumProblem& p) {
  return padded(real_size(p.type) * static_cast<size_t>(p.classes) * p.depth);
}

unsigned char* after(void* workspace, size_t bytes) {
  return static_cast<unsigned char*>(workspace) + bytes;
}

template <typename T>
bool takes_vectors(const ClassSumProblem& p, const void* a, const void* b) {
  return p.depth % (16 / static_cast<int64_t>(sizeof(T))) == 0 &&
         aligned_to(a, 16) && aligned_to(b, 16);
}

template <typename T>
Status launch_gradients(const ClassSumProblem& p, const void* grad,
                        const void* sums, const void* weighted,
                        void* grad_queries, void* grad_keys, Stream stream) {
  using Real = RealOf<T>;
  const auto* w = static_cast<const Real*>(weighted);
  GradientArguments<T> a{};
  a.depth = p.depth;
  a.known = p.classes;
  int sides = 0;
  if (grad_queries != nullptr && p.n > 0)
    a.sides[sides++] = {
        p.query_classes,
        static_cast<const Real*>(grad),
        static_cast<const Real*>(sums),
        p.symmetric ? static_cast<const T*>(p.queries) : nullptr,
        p.symmetric ? w : nullptr,
        static_cast<T*>(grad_queries),
        p.n};
  if (grad_keys != nullptr && !p.symmetric && p.m > 0)
    a.sides[sides++] = {p.key_classes,
                        nullptr,
                        nullptr,
                        nullptr,
                        w,
                        static_cast<T*>(grad_keys),
                        p.m};
  if (sides == 0) return {};
  const int64_t rows =
      a.sides[0].count > a.sides[1].count ? a.sides[0].count : a.sides[1].count;
  const Grid grid{ceil_divide(rows, kRowsPerBlock), sides, 1};
  constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
  const bool vectors =
      takes_vectors<T>(p, p.symmetric ? p.queries : nullptr, grad_queries) &&
      aligned_to(grad_keys, 16);
  return vectors ? launch(row_gradients<T, kWidth>, grid, kBlock, 0, stream, a)
                 : launch(row_gradients<T, 1>, grid, kBlock, 0, stream, a);
}

}  // namespace

size_t class_sum_dots_workspace(const ClassSumProblem& p) {
  return sums_bytes(p) +
         add_rows_workspace(p.type, 1, keys_of(p).count, p.classes, p.depth);
}

Status class_sum_dots(const ClassSumProblem& p, void* workspace, void* dots,
                      Stream stream) {
  if (p.n == 0) return {};
  const Rows keys = keys_of(p);
  const RowsByKey set{keys.data,  keys.classes, nullptr,
                      keys.count, workspace,    nullptr};
  const Status status = add_rows(p.type, &set, 1, p.classes, p.depth,
                                 after(workspace, sums_bytes(p)), stream);
  if (!status.ok()) return status;
  const Grid grid{ceil_divide(p.n, kRowsPerBlock), 1, 1};
  return with_element(p.type, [&]<typename T>() {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
    const DotArguments<T> a{static_cast<const T*>(p.queries),
                            p.query_classes,
                            static_cast<const RealOf<T>*>(workspace),
                            p.n,
                            p.depth,
                            p.classes,
                            p.symmetric};
    auto* to = static_cast<RealOf<T>*>(dots);
    return takes_vectors<T>(p, p.queries, nullptr)
               ? launch(row_dots<T, kWidth>, grid, kBlock, 0, stream, a, to)
               : launch(row_dots<T, 1>, grid, kBlock, 0, stream, a, to);
  });
}

size_t class_sum_dots_backward_workspace(const ClassSumProblem& p) {
  const int64_t rows = p.n > p.m ? p.n : p.m;
  const size_t one = add_rows_workspace(p.type, 1, rows, p.classes, p.depth);
  const size_t two = add_rows_workspace(p.type, 2, rows, p.classes, p.depth);
  return 2 * sums_bytes(p) + (one > two ? one : two);
}

Status class_sum_dots_backward(const ClassSumProblem& p, void* workspace,
                               const void* grad, void* grad_queries,
                               void* grad_keys, Stream stream) {
  const size_t bytes = sums_bytes(p);
  void* weighted = after(workspace, bytes);
  RowsByKey sets[2];
  int count = 0;
  if (grad_queries != nullptr) {
    const Rows keys = keys_of(p);
    sets[count++] = {keys.data,  keys.classes, nullptr,
                     keys.count, workspace,    nullptr};
  }
  if (grad_keys != nullptr || p.symmetric)
    sets[count++] = {p.queries, p.query_classes, grad, p.n, weighted, nullptr};
  const Status status = add_rows(p.type, sets, count, p.classes, p.depth,
                                 after(workspace, 2 * bytes), stream);
  if (!status.ok() || p.depth == 0) return status;
  return with_element(p.type, [&]<typename T>() {
    return launch_gradients<T>(p, grad, workspace, weighted, grad_queries,
                               grad_keys, stream);
  });
}

}  // namespace s3h::cuda
