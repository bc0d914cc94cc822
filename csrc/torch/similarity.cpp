// Registers the CPU kernels of the similarity family under the LibTorch stable
// ABI. The schemas live in Python (s3h_ext/ops/similarity.py); here tensors are
// checked for what memory safety needs, brought to the kernels' layout, and
// unwrapped to pointers.
#include "../cpu/similarity.h"

#include <algorithm>
#include <tuple>

#include "cpu_call.h"
#include "similarity_inputs.h"

namespace {

using s3h::cpu::Bfloat16;
using namespace s3h::stable;

template <typename T, typename Element = T>
s3h::cpu::SimilarityProblem<T, Element> problem_of(const SimilarityInputs& in) {
  return {!in.keys.has_value(),
          data<Element>(in.queries),
          pointer<Element>(in.keys),
          in.n,
          in.m,
          in.depth,
          in.temperature,
          pointer<T>(in.key_bias),
          pointer<int64_t>(in.query_labels),
          pointer<int64_t>(in.key_labels),
          pointer<T>(in.same_label_bias),
          in.same_label_value,
          pointer<int64_t>(in.self_index)};
}

std::tuple<Tensor, Tensor> similarity_logsumexp(
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    [[maybe_unused]] bool assume_normalized, bool deterministic,
    [[maybe_unused]] bool allow_tf32) {
  const SimilarityInputs in(cpu_matrix_type(queries), queries, keys,
                            temperature, key_bias, query_labels, key_labels,
                            same_label_bias, same_label_value, self_index);
  const s3h::cpu::Threads threads = torch_threads();
  const Tensor lse = torch::stable::new_empty(in.queries, {in.n}, in.type);
  const bool tiled = in.type != ScalarType::Double;
  const Tensor lse_log2 = torch::stable::new_empty(
      in.queries, {tiled ? in.n : 0}, ScalarType::Double);
  if (!tiled) {
    s3h::cpu::logsumexp_rows(problem_of<double>(in), threads,
                             mutable_data<double>(lse));
    return {lse, lse_log2};
  }
  double* found = mutable_data<double>(lse_log2);
  if (in.matrix == ScalarType::BFloat16)
    s3h::cpu::logsumexp_tiled(problem_of<float, Bfloat16>(in), threads,
                              deterministic, found);
  else
    s3h::cpu::logsumexp_tiled(problem_of<float>(in), threads, deterministic,
                              found);
  std::transform(found, found + in.n, mutable_data<float>(lse), [](double x) {
    return static_cast<float>(x * s3h::cpu::kLn2);
  });
  return {lse, lse_log2};
}

std::tuple<Tensor, Tensor> similarity_logsumexp_backward(
    const Tensor& grad_in, const Tensor& lse_in, const Tensor& lse_log2_in,
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    bool need_queries, bool need_keys, [[maybe_unused]] bool assume_normalized,
    bool deterministic, [[maybe_unused]] bool allow_tf32) {
  const SimilarityInputs in(cpu_matrix_type(queries), queries, keys,
                            temperature, key_bias, query_labels, key_labels,
                            same_label_bias, same_label_value, self_index);
  const s3h::cpu::Threads threads = torch_threads();
  const Tensor grad = *vector_of(grad_in, in.n, in.type, in.device, "grad");
  const bool tiled = in.type != ScalarType::Double;
  const Tensor lse =
      *vector_of(tiled ? lse_log2_in : lse_in, in.n, ScalarType::Double,
                 in.device, tiled ? "lse_log2" : "lse");
  need_keys = need_keys && keys.has_value();
  Tensor grad_queries =
      torch::stable::new_empty(in.queries, {need_queries ? in.n : 0, in.depth});
  Tensor grad_keys =
      torch::stable::new_empty(in.queries, {need_keys ? in.m : 0, in.depth});
  void* to_queries = target(grad_queries, need_queries);
  void* to_keys = target(grad_keys, need_keys);
  if (!tiled)
    s3h::cpu::logsumexp_rows_backward(
        problem_of<double>(in), threads, data<double>(grad), data<double>(lse),
        static_cast<double*>(to_queries), static_cast<double*>(to_keys));
  else if (in.matrix == ScalarType::BFloat16)
    s3h::cpu::logsumexp_tiled_backward(
        problem_of<float, Bfloat16>(in), threads, deterministic,
        data<float>(grad), data<double>(lse),
        static_cast<Bfloat16*>(to_queries), static_cast<Bfloat16*>(to_keys));
  else
    s3h::cpu::logsumexp_tiled_backward(
        problem_of<float>(in), threads, deterministic, data<float>(grad),
        data<double>(lse), static_cast<float*>(to_queries),
        static_cast<float*>(to_keys));
  const ScalarType stored = queries.scalar_type();
  if (stored != in.matrix) {
    grad_queries = torch::stable::to(grad_queries, stored);
    grad_keys = torch::stable::to(grad_keys, stored);
  }
  return {grad_queries, grad_keys};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("similarity_logsumexp", TORCH_BOX(&similarity_logsumexp));
  library.impl("similarity_logsumexp_backward",
               TORCH_BOX(&similarity_logsumexp_backward));
}
