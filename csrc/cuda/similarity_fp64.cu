// float64, simple and slow: for gradient checks. A block owns one row (of
// queries, or of keys for their gradient), a thread every 128th column. The
// backward gathers 128 weights in shared memory and adds them to the row's
// gradient, a thread per element of depth, in fixed order.
#include "device.cuh"
#include "similarity_kernels.h"

namespace s3h::cuda {
namespace {

constexpr int kBlock = 128;
constexpr double kInfinite = __builtin_huge_val();

struct Arguments {
  SimilarityProblem problem;
  const double* grad;
  const double* lse;
};

__device__ inline const double* row_of(const void* matrix, int64_t i,
                                       int64_t depth) {
  return static_cast<const double*>(matrix) + i * depth;
}

// x_ij of query i and key j; -inf where excluded.
__device__ inline double exponent(const SimilarityProblem& p, int64_t i,
                                  int64_t j) {
  if (p.symmetric ? i == j : p.self_index != nullptr && p.self_index[i] == j)
    return -kInfinite;
  const double* q = row_of(p.queries, i, p.depth);
  const double* k = row_of(p.symmetric ? p.queries : p.keys, j, p.depth);
  double x = 0;
  for (int64_t d = 0; d < p.depth; ++d) x += q[d] * k[d];
  x /= p.temperature;
  if (p.key_bias != nullptr) x += static_cast<const double*>(p.key_bias)[j];
  if (p.query_labels != nullptr) {
    const int64_t label = p.query_labels[i];
    const int64_t* others = p.symmetric ? p.query_labels : p.key_labels;
    if (label >= 0 && label == others[j]) {
      const double same = p.same_label_bias != nullptr
                              ? static_cast<const double*>(p.same_label_bias)[i]
                              : p.same_label_value;
      x = same == -kInfinite ? same : x + same;
    }
  }
  return x;
}

__device__ inline double weight(const Arguments& a, int64_t i, int64_t j) {
  if (a.lse[i] == -kInfinite) return 0;
  const double x = exponent(a.problem, i, j);
  return x == -kInfinite ? 0 : a.grad[i] * exp_of(x - a.lse[i]);
}

__device__ inline void merge(double& top, double& sum, double other_top,
                             double other_sum) {
  if (other_sum == 0) return;
  if (sum == 0) {
    top = other_top;
    sum = other_sum;
  } else if (other_top <= top) {
    sum += other_top == top ? other_sum : other_sum * exp_of(other_top - top);
  } else {
    sum = sum * exp_of(top - other_top) + other_sum;
    top = other_top;
  }
}

__global__ void __launch_bounds__(kBlock)
    forward_fp64(SimilarityProblem p, double* lse) {
  const int64_t i = block_x();
  double top = 0, sum = 0;
  for (int64_t j = thread_x(); j < p.m; j += kBlock) {
    const double x = exponent(p, i, j);
    if (x != -kInfinite) merge(top, sum, x, 1);
  }
  auto* pairs = reinterpret_cast<double*>(shared_memory());
  pairs[2 * thread_x()] = top;
  pairs[2 * thread_x() + 1] = sum;
  block_barrier();
  if (thread_x() != 0) return;
  for (int t = 1; t < kBlock; ++t)
    merge(top, sum, pairs[2 * t], pairs[2 * t + 1]);
  lse[i] = sum == 0 ? -kInfinite : top + log_of(sum);
}

// kKeys: the block's row is a key; else a query, and its own key as well in the
// symmetric case.
template <bool kKeys>
__global__ void __launch_bounds__(kBlock)
    backward_fp64(Arguments a, double* gradient) {
  const SimilarityProblem& p = a.problem;
  const int64_t row = block_x();
  const int64_t count = kKeys ? p.n : p.m;
  const void* others = kKeys || p.symmetric ? p.queries : p.keys;
  double* to = gradient + row * p.depth;
  auto* weights = reinterpret_cast<double*>(shared_memory());
  for (int64_t d = thread_x(); d < p.depth; d += kBlock) to[d] = 0;
  for (int64_t first = 0; first < count; first += kBlock) {
    const int64_t c = first + thread_x();
    double w = 0;
    if (c < count) {
      w = kKeys ? weight(a, c, row) : weight(a, row, c);
      if (p.symmetric) w += weight(a, c, row);
    }
    weights[thread_x()] = w / p.temperature;
    block_barrier();
    const int64_t left = count - first;
    const int here = left < kBlock ? static_cast<int>(left) : kBlock;
    for (int64_t d = thread_x(); d < p.depth; d += kBlock) {
      double sum = to[d];
      for (int t = 0; t < here; ++t)
        sum += weights[t] * row_of(others, first + t, p.depth)[d];
      to[d] = sum;
    }
    block_barrier();
  }
}

}  // namespace

Status logsumexp_fp64(const SimilarityProblem& problem, double* lse,
                      Stream stream) {
  return launch(forward_fp64, {problem.n, 1, 1}, kBlock,
                2 * kBlock * sizeof(double), stream, problem, lse);
}

Status logsumexp_backward_fp64(const SimilarityProblem& problem,
                               const double* grad, const double* lse,
                               double* grad_queries, double* grad_keys,
                               Stream stream) {
  const Arguments arguments{problem, grad, lse};
  const size_t shared = kBlock * sizeof(double);
  if (grad_queries != nullptr && problem.n > 0) {
    const Status status =
        launch(backward_fp64<false>, {problem.n, 1, 1}, kBlock, shared, stream,
               arguments, grad_queries);
    if (!status.ok()) return status;
  }
  if (grad_keys != nullptr && !problem.symmetric && problem.m > 0)
    return launch(backward_fp64<true>, {problem.m, 1, 1}, kBlock, shared,
                  stream, arguments, grad_keys);
  return {};
}

}  // namespace s3h::cuda
