// Registers the kernels of the similarity family under the LibTorch stable ABI.
// The schemas are in s3h_ext/ops/similarity.py. Tensors are checked here as far
// as memory safety needs it, converted to the kernels' layout, and unwrapped to
// pointers.
#include "../cpu/similarity.h"

#include <algorithm>
#include <tuple>

#include "../cpu/bfloat16.h"
#include "../cuda/similarity.h"
#include "backend.h"

namespace {

using namespace s3h::stable;
using s3h::cpu::Bfloat16;

// Owns the converted tensors while their pointers are in use.
struct SimilarityInputs {
  SimilarityInputs(ScalarType matrix_type, const Tensor& queries_in,
                   const OptionalTensor& keys_in, double temperature_in,
                   const OptionalTensor& key_bias_in,
                   const OptionalTensor& query_labels_in,
                   const OptionalTensor& key_labels_in,
                   const OptionalTensor& same_label_bias_in,
                   double same_label_value_in,
                   const OptionalTensor& self_index_in)
      : type(compute_type(queries_in)),
        matrix(matrix_type),
        device(queries_in.device()),
        temperature(temperature_in),
        same_label_value(same_label_value_in),
        queries(as_contiguous(queries_in, matrix, device)) {
    STD_TORCH_CHECK(queries.dim() == 2, "queries must be [N, D], got ",
                    shape_of(queries));
    n = queries.size(0);
    depth = queries.size(1);
    m = n;
    if (keys_in.has_value()) {
      keys = as_contiguous(*keys_in, matrix, device);
      STD_TORCH_CHECK(keys->dim() == 2 && keys->size(1) == depth,
                      "keys must be [M, D] with the queries' D");
      m = keys->size(0);
    }
    STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
    STD_TORCH_CHECK(!keys.has_value() || query_labels_in.has_value() ==
                                             key_labels_in.has_value(),
                    "query_labels and key_labels go together");
    constexpr auto integer = ScalarType::Long;
    key_bias = vector_of(key_bias_in, m, type, device, "key_bias");
    query_labels =
        vector_of(query_labels_in, n, integer, device, "query_labels");
    key_labels = vector_of(key_labels_in, m, integer, device, "key_labels");
    same_label_bias =
        vector_of(same_label_bias_in, n, type, device, "same_label_bias");
    self_index = vector_of(self_index_in, n, integer, device, "self_index");
  }

  template <typename T, typename Element = T>
  s3h::SimilarityProblem<T, Element> problem() const {
    return {!keys.has_value(),
            data<Element>(queries),
            pointer<Element>(keys),
            n,
            m,
            depth,
            temperature,
            pointer<T>(key_bias),
            pointer<int64_t>(query_labels),
            pointer<int64_t>(key_labels),
            pointer<T>(same_label_bias),
            same_label_value,
            pointer<int64_t>(self_index)};
  }

  template <class Backend>
  int64_t score_count(bool keep, bool deterministic) const {
    return Backend::score_count(keep, type, deterministic, n, m,
                                !keys.has_value());
  }

  // Size of the backward's extra input beside lse: 0 if that is float64.
  int64_t kept_rows() const { return type == ScalarType::Double ? 0 : n; }

  ScalarType type;    // of the computation and all vectors
  ScalarType matrix;  // of queries and keys
  Device device;
  double temperature;
  double same_label_value;
  Tensor queries;
  int64_t n = 0, m = 0, depth = 0;
  OptionalTensor keys, key_bias, query_labels, key_labels, same_label_bias,
      self_index;
};

// The log-sum-exp in units of log 2 on the CPU, its correction on CUDA.
template <class Backend>
constexpr auto kept_type =
    Backend::kCuda ? ScalarType::Float : ScalarType::Double;

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> similarity_logsumexp(
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    bool assume_normalized, bool deterministic, bool allow_tf32,
    [[maybe_unused]] bool keep_scores) {
  const SimilarityInputs in(Backend::similarity_type(queries), queries, keys,
                            temperature, key_bias, query_labels, key_labels,
                            same_label_bias, same_label_value, self_index);
  const Backend backend(in.device);
  const Tensor lse = new_empty(in.queries, {in.n}, in.type);
  const Tensor kept =
      new_empty(in.queries, {in.kept_rows()}, kept_type<Backend>);
  int64_t kept_scores = 0;
  if constexpr (!Backend::kCuda)
    kept_scores = in.template score_count<Backend>(keep_scores, deterministic);
  const Tensor scores = new_empty(in.queries, {kept_scores}, ScalarType::Float);
  if constexpr (Backend::kCuda) {
    const s3h::cuda::SimilarityProblem problem{in.problem<void>(),
                                               Backend::scalar(in.matrix)};
    const s3h::cuda::SimilarityOptions options{assume_normalized, deterministic,
                                               allow_tf32};
    backend.run("similarity_logsumexp", in.queries,
                s3h::cuda::logsumexp_workspace(problem, options),
                [&](void* workspace, s3h::cuda::Stream stream) {
                  return s3h::cuda::logsumexp(problem, options, workspace,
                                              lse.mutable_data_ptr(),
                                              kept.mutable_data_ptr(), stream);
                });
  } else if (in.type == ScalarType::Double) {
    s3h::cpu::logsumexp_rows(in.problem<double>(), backend.threads(),
                             mutable_data<double>(lse));
  } else {
    double* found = mutable_data<double>(kept);
    Backend::template with_types<Bfloat16>(
        in.matrix, [&]<typename T, typename Element>() {
          if constexpr (std::is_same_v<T, float>)
            s3h::cpu::logsumexp_tiled(in.problem<float, Element>(),
                                      backend.threads(), deterministic,
                                      {found, nullptr, scores_of(scores)});
        });
    std::transform(found, found + in.n, mutable_data<float>(lse), [](double x) {
      return static_cast<float>(x * s3h::cpu::kLn2);
    });
  }
  return {lse, kept, scores};
}

template <class Backend>
std::tuple<Tensor, Tensor> similarity_logsumexp_backward(
    const Tensor& grad_in, const Tensor& lse_in, const Tensor& kept_in,
    const Tensor& scores_in, bool need_queries, bool need_keys,
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    bool assume_normalized, bool deterministic, bool allow_tf32,
    [[maybe_unused]] bool keep_scores) {
  const SimilarityInputs in(Backend::similarity_type(queries), queries, keys,
                            temperature, key_bias, query_labels, key_labels,
                            same_label_bias, same_label_value, self_index);
  const Backend backend(in.device);
  const Tensor grad = *vector_of(grad_in, in.n, in.type, in.device, "grad");
  const Tensor lse = *vector_of(lse_in, in.n, in.type, in.device, "lse");
  const Tensor kept = *vector_of(kept_in, in.kept_rows(), kept_type<Backend>,
                                 in.device, "kept");
  need_keys = need_keys && keys.has_value();
  const Tensor grad_queries =
      new_empty(in.queries, {need_queries ? in.n : 0, in.depth},
                in.queries.scalar_type());
  const Tensor grad_keys = new_empty(
      in.queries, {need_keys ? in.m : 0, in.depth}, in.queries.scalar_type());
  void* to_queries = target(grad_queries, need_queries);
  void* to_keys = target(grad_keys, need_keys);
  if constexpr (Backend::kCuda) {
    const s3h::cuda::SimilarityProblem problem{in.problem<void>(),
                                               Backend::scalar(in.matrix)};
    const s3h::cuda::SimilarityOptions options{assume_normalized, deterministic,
                                               allow_tf32};
    if (need_queries || need_keys)
      backend.run("similarity_logsumexp_backward", in.queries,
                  s3h::cuda::logsumexp_backward_workspace(
                      problem, options, need_queries, need_keys),
                  [&](void* workspace, s3h::cuda::Stream stream) {
                    return s3h::cuda::logsumexp_backward(
                        problem, options, workspace, grad.const_data_ptr(),
                        lse.const_data_ptr(), kept.const_data_ptr(), to_queries,
                        to_keys, stream);
                  });
  } else {
    const Tensor scores = *vector_of(
        scores_in, in.template score_count<Backend>(keep_scores, deterministic),
        ScalarType::Float, in.device, "scores");
    Backend::template with_types<Bfloat16>(
        in.matrix, [&]<typename T, typename Element>() {
          const auto problem = in.problem<T, Element>();
          auto* queries_out = static_cast<Element*>(to_queries);
          auto* keys_out = static_cast<Element*>(to_keys);
          if constexpr (std::is_same_v<T, double>)
            s3h::cpu::logsumexp_rows_backward(
                problem, backend.threads(), data<double>(grad),
                data<double>(lse), queries_out, keys_out);
          else
            s3h::cpu::logsumexp_tiled_backward(
                problem, backend.threads(), deterministic, data<float>(grad),
                {mutable_data<double>(kept), nullptr, scores_of(scores)},
                queries_out, keys_out);
        });
  }
  return {as_type(grad_queries, queries.scalar_type()),
          as_type(grad_keys, queries.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("similarity_logsumexp",
               TORCH_BOX(&similarity_logsumexp<LibraryBackend>));
  library.impl("similarity_logsumexp_backward",
               TORCH_BOX(&similarity_logsumexp_backward<LibraryBackend>));
}
