// Chooses kernels, their cut into blocks, and the workspace.
//
// Columns are split among blocks only where rows alone do not fill the device,
// or would leave most of it idle in their last wave. Parts of a gradient are of
// those rows alone and never exceed what two waves of blocks own: for large N,
// this memory is O(1).
#include <algorithm>
#include <cmath>

#include "device.cuh"
#include "similarity.h"
#include "similarity_kernels.h"
#include "similarity_log.cuh"

namespace s3h::cuda {
namespace {

constexpr int kBlocksPerMultiprocessor = 2;
// Below this many keys a second launch costs more than a longer first one.
constexpr int64_t kUnsplitColumns = 256;
// |x| of unit rows up to which it pays to try without a shift.
constexpr double kScoreBound = 32, kLeastScale = 0x1p-64;

struct Plan {
  const KernelSet* kernels;
  ScoreArguments arguments;
};

// Merges the splits' (maximum, sum) of a row, one row per thread.
__global__ void __launch_bounds__(128)
    merge_splits(const float* tops, const float* sums, int splits, int64_t n,
                 float* lse, float* correction) {
  const int64_t i =
      static_cast<int64_t>(block_x()) * block_threads() + thread_x();
  if (i >= n) return;
  float top = tops[i];
  for (int s = 1; s < splits; ++s) top = max_of(top, tops[s * n + i]);
  const float shift = magnitude(top) < __builtin_huge_valf() ? top : 0.f;
  float sum = 0.f;
  for (int s = 0; s < splits; ++s) {
    const float own = tops[s * n + i];
    // A split without keys has a sum of 0 and no maximum.
    if (sums[s * n + i] != 0.f)
      sum +=
          sums[s * n + i] *
          (own == top ? 1.f : exp2_fast((own - shift) * 1.4426950408889634f));
  }
  write_logarithm(lse + i, correction + i, shift, sum);
}

const KernelSet& kernels_of(const SimilarityProblem& p,
                            const SimilarityOptions& options) {
  switch (p.type) {
    case Scalar::kBFloat16:
      return bf16_kernels();
    case Scalar::kFloat16:
      return fp16_kernels();
    default:
      return options.allow_tf32 ? tf32_kernels() : fp32_kernels();
  }
}

Matrix matrix_of(const SimilarityProblem& p, const void* data, int64_t count) {
  const int64_t bytes = p.depth * (p.type == Scalar::kFloat32 ? 4 : 2);
  return {data, count, p.depth,
          bytes % 16 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0};
}

// The queries' and the keys' side, without lse and grad.
Plan plan_of(const SimilarityProblem& p, const SimilarityOptions& options) {
  Plan plan{&kernels_of(p, options), {}};
  ScoreArguments& a = plan.arguments;
  const bool labels =
      p.query_labels != nullptr &&
      (p.same_label_bias != nullptr || p.same_label_value != 0.0);
  a.rows.matrix = matrix_of(p, p.queries, p.n);
  a.columns.matrix = p.symmetric ? a.rows.matrix : matrix_of(p, p.keys, p.m);
  a.columns.bias = static_cast<const float*>(p.key_bias);
  if (labels) {
    a.rows.labels = p.query_labels;
    a.columns.labels = p.symmetric ? p.query_labels : p.key_labels;
    a.rows.same = static_cast<const float*>(p.same_label_bias);
  }
  if (!p.symmetric) a.rows.self = p.self_index;
  a.inverse_temperature = static_cast<float>(1.0 / p.temperature);
  a.inverse_temperature_rest =
      std::isfinite(a.inverse_temperature)
          ? static_cast<float>(1.0 / p.temperature - a.inverse_temperature)
          : 0.f;
  const double log2 = 1.4426950408889634 / p.temperature;
  a.inverse_temperature_log2 = static_cast<float>(log2);
  a.inverse_temperature_log2_rest =
      std::isfinite(a.inverse_temperature_log2)
          ? static_cast<float>(log2 - a.inverse_temperature_log2)
          : 0.f;
  a.same_value = static_cast<float>(p.same_label_value);
  a.symmetric = p.symmetric;
  a.plain = !labels && p.key_bias == nullptr && a.rows.self == nullptr;
  const bool shifted = labels && p.same_label_bias == nullptr &&
                       p.same_label_value != -INFINITY &&
                       !(std::fabs(p.same_label_value) <= kMostBias);
  a.bounded = options.assume_normalized && !shifted &&
              1.0 / p.temperature <= kScoreBound &&
              1.0 / p.temperature >= kLeastScale;
  a.most_sum = a.plain ? kMostSum : kMostBiasedSum;
  a.most_log = a.plain ? kMostLog : kMostBiasedLog;
  a.chunks = static_cast<int>(std::max<int64_t>(1, (p.depth + 127) / 128));
  a.stages =
      plan.kernels->shared_bytes(a.chunks, 2) <= shared_memory_limit() ? 2 : 1;
  return plan;
}

// Of the symmetric case, where a pair is looked at from both sides: each row is
// a query and a key.
void take_both_roles(ScoreArguments& a) {
  a.rows.bias = a.columns.bias;
  a.columns.same = a.rows.same;
}

int64_t blocks_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

// Blocks that the device holds at a time.
int64_t slots_of_device() {
  return std::max(1, multiprocessors()) *
         static_cast<int64_t>(kBlocksPerMultiprocessor);
}

// Into how many parts the columns are cut, for so many blocks without: the
// fewest tiles in sequence, one more counted per wave. `always`: parts that
// there may be whatever their memory.
int splits_of(const KernelSet& kernels, int64_t blocks, int64_t columns,
              int64_t always) {
  if (columns <= kUnsplitColumns) return 1;
  const int64_t slots = slots_of_device();
  const int64_t tiles = blocks_of(columns, kernels.columns);
  const int64_t most = std::min(
      tiles, std::max(always, 2 * slots / std::max<int64_t>(1, blocks)));
  int64_t best = 1, least = INT64_MAX;
  for (int64_t splits = 1; splits <= std::max<int64_t>(1, most); ++splits) {
    const int64_t cost =
        blocks_of(blocks * splits, slots) * (blocks_of(tiles, splits) + 1);
    if (cost < least) {
      least = cost;
      best = splits;
    }
  }
  return static_cast<int>(best);
}

// The triangle's atomics have no fixed order, and pay off on a full device.
bool takes_triangle(const Plan& plan, const SimilarityProblem& p,
                    const SimilarityOptions& options) {
  return p.symmetric && plan.arguments.bounded && !options.deterministic &&
         4 * blocks_of(p.n, plan.kernels->rows) >= multiprocessors();
}

// Rows of the triangle differ in length: more blocks than slots even it out.
int triangle_splits(const Plan& plan, int64_t n) {
  return static_cast<int>(std::clamp<int64_t>(
      blocks_of(4 * slots_of_device(), blocks_of(n, plan.kernels->rows)), 1,
      blocks_of(n, plan.kernels->columns)));
}

// Two numbers of a row, one launch more: up to so many parts cost little.
constexpr int64_t kForwardParts = 8;

int forward_splits(const Plan& plan, int64_t rows, int64_t columns) {
  return splits_of(*plan.kernels, blocks_of(rows, plan.kernels->rows), columns,
                   kForwardParts);
}

// The blocks of rows of a gradient: the first ones have all columns each and
// fill whole waves, the last ones split them.
struct Cut {
  int64_t whole, split;
  int splits;
};

Cut backward_cut(const Plan& plan, int64_t rows, int64_t columns) {
  const int64_t blocks = blocks_of(rows, plan.kernels->rows);
  const int64_t planes = plan.arguments.chunks, slots = slots_of_device();
  const int64_t whole = blocks * planes / slots * slots / planes;
  const int64_t split = blocks - whole;
  const int splits = splits_of(*plan.kernels, split * planes, columns, 1);
  return splits == 1 ? Cut{blocks, 0, 1} : Cut{whole, split, splits};
}

size_t parts_bytes(const Plan& plan, int64_t rows, int64_t columns) {
  const Cut cut = backward_cut(plan, rows, columns);
  return cut.split == 0
             ? 0
             : sizeof(float) * static_cast<size_t>(cut.splits) *
                   static_cast<size_t>(rows - cut.whole * plan.kernels->rows) *
                   plan.arguments.rows.matrix.depth;
}

// The gradient of the rows' side.
Status backward_of(const Plan& plan, const ScoreArguments& a, void* workspace,
                   void* gradient, Stream stream) {
  const int64_t rows = a.rows.matrix.count, depth = a.rows.matrix.depth;
  if (rows == 0 || depth == 0) return {};
  const Cut cut = backward_cut(plan, rows, a.columns.matrix.count);
  auto* parts = static_cast<float*>(workspace);
  Status status;
  if (cut.whole > 0)
    status = plan.kernels->backward(a, {gradient, parts}, cut.whole, 1, stream);
  if (!status.ok() || cut.split == 0) return status;
  ScoreArguments last = a;
  last.first_block = static_cast<int>(cut.whole);
  status = plan.kernels->backward(last, {gradient, parts}, cut.split,
                                  cut.splits, stream);
  if (!status.ok()) return status;
  const int64_t before = cut.whole * plan.kernels->rows;
  return plan.kernels->add_parts(
      parts, cut.splits, (rows - before) * depth,
      static_cast<char*>(gradient) + before * depth * plan.kernels->element,
      stream);
}

}  // namespace

size_t logsumexp_workspace(const SimilarityProblem& p,
                           const SimilarityOptions& options) {
  if (p.type == Scalar::kFloat64 || p.n == 0) return 0;
  const Plan plan = plan_of(p, options);
  if (takes_triangle(plan, p, options)) return sizeof(float) * p.n;
  const int splits = forward_splits(plan, p.n, p.m);
  return splits == 1 ? 0
                     : 2 * sizeof(float) * static_cast<size_t>(splits) * p.n;
}

Status logsumexp(const SimilarityProblem& p, const SimilarityOptions& options,
                 void* workspace, void* lse, void* correction, Stream stream) {
  if (p.n == 0) return {};
  if (p.type == Scalar::kFloat64)
    return logsumexp_fp64(p, static_cast<double*>(lse), stream);
  const Plan plan = plan_of(p, options);
  auto* sums = static_cast<float*>(workspace);
  auto* result = static_cast<float*>(lse);
  auto* factor = static_cast<float*>(correction);
  if (takes_triangle(plan, p, options)) {
    const ForwardOutputs out{result, factor, nullptr, sums, true};
    ScoreArguments both = plan.arguments;
    take_both_roles(both);
    Status status = options.zeroed
                        ? Status{}
                        : fill_zero(sums, sizeof(float) * p.n, stream);
    if (status.ok())
      status =
          plan.kernels->triangle(both, out, triangle_splits(plan, p.n), stream);
    return status.ok() ? plan.kernels->forward(plan.arguments, out, 1, stream)
                       : status;
  }
  const int splits = forward_splits(plan, p.n, p.m);
  float* tops = splits == 1 ? nullptr : sums + splits * p.n;
  const Status status = plan.kernels->forward(
      plan.arguments, {result, factor, tops, sums, false}, splits, stream);
  if (!status.ok() || splits == 1) return status;
  constexpr int kBlock = 128;
  return launch(merge_splits, {blocks_of(p.n, kBlock), 1, 1}, kBlock, 0, stream,
                static_cast<const float*>(tops),
                static_cast<const float*>(sums), splits, p.n, result, factor);
}

size_t logsumexp_backward_workspace(const SimilarityProblem& p,
                                    const SimilarityOptions& options,
                                    bool need_queries, bool need_keys) {
  if (p.type == Scalar::kFloat64) return 0;
  const Plan plan = plan_of(p, options);
  const size_t queries = need_queries ? parts_bytes(plan, p.n, p.m) : 0;
  const size_t keys =
      need_keys && !p.symmetric ? parts_bytes(plan, p.m, p.n) : 0;
  return std::max(queries, keys);
}

Status logsumexp_backward(const SimilarityProblem& p,
                          const SimilarityOptions& options, void* workspace,
                          const void* grad, const void* lse,
                          const void* correction, void* grad_queries,
                          void* grad_keys, Stream stream) {
  if (p.type == Scalar::kFloat64)
    return logsumexp_backward_fp64(p, static_cast<const double*>(grad),
                                   static_cast<const double*>(lse),
                                   static_cast<double*>(grad_queries),
                                   static_cast<double*>(grad_keys), stream);
  const Plan plan = plan_of(p, options);
  ScoreArguments a = plan.arguments;
  a.rows.lse = static_cast<const float*>(lse);
  a.rows.correction = static_cast<const float*>(correction);
  a.rows.grad = static_cast<const float*>(grad);
  if (p.symmetric) {
    take_both_roles(a);
    a.columns.lse = a.rows.lse;
    a.columns.correction = a.rows.correction;
    a.columns.grad = a.rows.grad;
  }
  if (grad_queries != nullptr) {
    const Status status = backward_of(plan, a, workspace, grad_queries, stream);
    if (!status.ok()) return status;
  }
  if (grad_keys != nullptr && !p.symmetric) {
    std::swap(a.rows, a.columns);
    return backward_of(plan, a, workspace, grad_keys, stream);
  }
  return {};
}

}  // namespace s3h::cuda
