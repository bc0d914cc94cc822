// Registers the CUDA kernels of the similarity family under the LibTorch stable
// ABI: the counterpart of similarity.cpp, in a library of its own that is
// loaded only where torch has CUDA.
#include <tuple>

#include "cuda_call.h"
#include "similarity_inputs.h"

namespace {

using namespace s3h::stable;

s3h::cuda::SimilarityProblem problem_of(const SimilarityInputs& in) {
  return {!in.keys.has_value(),
          cuda_scalar(in.matrix),
          in.queries.const_data_ptr(),
          pointer<void>(in.keys),
          in.n,
          in.m,
          in.depth,
          in.temperature,
          pointer<void>(in.key_bias),
          pointer<int64_t>(in.query_labels),
          pointer<int64_t>(in.key_labels),
          pointer<void>(in.same_label_bias),
          in.same_label_value,
          pointer<int64_t>(in.self_index)};
}

bool corrected(const SimilarityInputs& in) {
  return in.type == ScalarType::Float;
}

std::tuple<Tensor, Tensor> similarity_logsumexp(
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    bool assume_normalized, bool deterministic, bool allow_tf32) {
  const SimilarityInputs in(queries.scalar_type(), queries, keys, temperature,
                            key_bias, query_labels, key_labels, same_label_bias,
                            same_label_value, self_index);
  const CudaCall call(in.device);
  const auto problem = problem_of(in);
  const s3h::cuda::SimilarityOptions options{assume_normalized, deterministic,
                                             allow_tf32};
  const Tensor lse = torch::stable::new_empty(in.queries, {in.n}, in.type);
  const Tensor correction = torch::stable::new_empty(
      in.queries, {corrected(in) ? in.n : 0}, ScalarType::Float);
  const Tensor work =
      workspace(in.queries, s3h::cuda::logsumexp_workspace(problem, options));
  call.check(s3h::cuda::logsumexp(problem, options, work.mutable_data_ptr(),
                                  lse.mutable_data_ptr(),
                                  correction.mutable_data_ptr(), call.stream()),
             "similarity_logsumexp");
  return {lse, correction};
}

std::tuple<Tensor, Tensor> similarity_logsumexp_backward(
    const Tensor& grad_in, const Tensor& lse_in, const Tensor& correction_in,
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    bool need_queries, bool need_keys, bool assume_normalized,
    bool deterministic, bool allow_tf32) {
  const SimilarityInputs in(queries.scalar_type(), queries, keys, temperature,
                            key_bias, query_labels, key_labels, same_label_bias,
                            same_label_value, self_index);
  const CudaCall call(in.device);
  const auto problem = problem_of(in);
  const s3h::cuda::SimilarityOptions options{assume_normalized, deterministic,
                                             allow_tf32};
  const Tensor grad = *vector_of(grad_in, in.n, in.type, in.device, "grad");
  const Tensor lse = *vector_of(lse_in, in.n, in.type, in.device, "lse");
  const Tensor correction =
      *vector_of(correction_in, corrected(in) ? in.n : 0, ScalarType::Float,
                 in.device, "correction");
  need_keys = need_keys && keys.has_value();
  Tensor grad_queries =
      torch::stable::new_empty(in.queries, {need_queries ? in.n : 0, in.depth});
  Tensor grad_keys =
      torch::stable::new_empty(in.queries, {need_keys ? in.m : 0, in.depth});
  if (need_queries || need_keys) {
    const Tensor work =
        workspace(in.queries, s3h::cuda::logsumexp_backward_workspace(
                                  problem, options, need_queries, need_keys));
    call.check(
        s3h::cuda::logsumexp_backward(
            problem, options, work.mutable_data_ptr(), grad.const_data_ptr(),
            lse.const_data_ptr(), correction.const_data_ptr(),
            target(grad_queries, need_queries), target(grad_keys, need_keys),
            call.stream()),
        "similarity_logsumexp_backward");
  }
  return {grad_queries, grad_keys};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CUDA, library) {
  library.impl("similarity_logsumexp", TORCH_BOX(&similarity_logsumexp));
  library.impl("similarity_logsumexp_backward",
               TORCH_BOX(&similarity_logsumexp_backward));
}
