// Registers the CPU kernels of the similarity family under the LibTorch stable
// ABI. The schemas live in Python (s3h_ext/ops/similarity.py); here tensors are
// checked for what memory safety needs, brought to the kernels' layout, and
// unwrapped to pointers.
#include "../cpu/similarity.h"

#include <tuple>

#include "tensors.h"

namespace {

using s3h::cpu::Bfloat16;
using namespace s3h::stable;

// The type the matrices are handed over in.
ScalarType matrix_type(const Tensor& queries) {
  if (queries.scalar_type() == ScalarType::BFloat16 &&
      s3h::cpu::bfloat16_products())
    return ScalarType::BFloat16;
  return compute_type(queries);
}

// Owns the converted tensors for as long as the pointers are in use.
struct Inputs {
  Inputs(const Tensor& queries_in, const OptionalTensor& keys_in,
         double temperature_in, const OptionalTensor& key_bias_in,
         const OptionalTensor& query_labels_in,
         const OptionalTensor& key_labels_in,
         const OptionalTensor& same_label_bias_in, double same_label_value_in,
         const OptionalTensor& self_index_in)
      : type(compute_type(queries_in)),
        matrix(matrix_type(queries_in)),
        temperature(temperature_in),
        same_label_value(same_label_value_in),
        queries(as_contiguous(queries_in, matrix)) {
    STD_TORCH_CHECK(queries.dim() == 2, "queries must be [N, D]");
    n = queries.size(0);
    depth = queries.size(1);
    m = n;
    if (keys_in.has_value()) {
      keys = as_contiguous(*keys_in, matrix);
      STD_TORCH_CHECK(keys->dim() == 2 && keys->size(1) == depth,
                      "keys must be [M, D] with the queries' D");
      m = keys->size(0);
    }
    STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
    key_bias = vector_of(key_bias_in, m, type, "key_bias");
    query_labels =
        vector_of(query_labels_in, n, ScalarType::Long, "query_labels");
    key_labels = vector_of(key_labels_in, m, ScalarType::Long, "key_labels");
    STD_TORCH_CHECK(
        !keys.has_value() || query_labels.has_value() == key_labels.has_value(),
        "query_labels and key_labels go together");
    same_label_bias = vector_of(same_label_bias_in, n, type, "same_label_bias");
    self_index = vector_of(self_index_in, n, ScalarType::Long, "self_index");
  }

  template <typename T, typename Element = T>
  s3h::cpu::SimilarityProblem<T, Element> problem() const {
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

  ScalarType type;
  ScalarType matrix;
  double temperature;
  double same_label_value;
  Tensor queries;
  int64_t n = 0, m = 0, depth = 0;
  OptionalTensor keys, key_bias, query_labels, key_labels, same_label_bias,
      self_index;
};

Tensor similarity_logsumexp(
    const Tensor& queries, const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    [[maybe_unused]] bool assume_normalized, bool deterministic) {
  const Inputs in(queries, keys, temperature, key_bias, query_labels,
                  key_labels, same_label_bias, same_label_value, self_index);
  const Threads threads = torch_threads();
  const Tensor lse = torch::stable::new_empty(in.queries, {in.n}, in.type);
  if (in.type == ScalarType::Double)
    s3h::cpu::logsumexp_rows(in.problem<double>(), threads,
                             mutable_data<double>(lse));
  else if (in.matrix == ScalarType::BFloat16)
    s3h::cpu::logsumexp_tiled(in.problem<float, Bfloat16>(), threads,
                              deterministic, mutable_data<float>(lse));
  else
    s3h::cpu::logsumexp_tiled(in.problem<float>(), threads, deterministic,
                              mutable_data<float>(lse));
  return lse;
}

std::tuple<Tensor, Tensor> similarity_logsumexp_backward(
    const Tensor& grad_in, const Tensor& lse_in, const Tensor& queries,
    const OptionalTensor& keys, double temperature,
    const OptionalTensor& key_bias, const OptionalTensor& query_labels,
    const OptionalTensor& key_labels, const OptionalTensor& same_label_bias,
    double same_label_value, const OptionalTensor& self_index,
    bool need_queries, bool need_keys, [[maybe_unused]] bool assume_normalized,
    bool deterministic) {
  const Inputs in(queries, keys, temperature, key_bias, query_labels,
                  key_labels, same_label_bias, same_label_value, self_index);
  const Threads threads = torch_threads();
  const Tensor grad = *vector_of(grad_in, in.n, in.type, "grad");
  const Tensor lse = *vector_of(lse_in, in.n, in.type, "lse");
  need_keys = need_keys && keys.has_value();
  Tensor grad_queries =
      torch::stable::new_empty(in.queries, {need_queries ? in.n : 0, in.depth});
  Tensor grad_keys =
      torch::stable::new_empty(in.queries, {need_keys ? in.m : 0, in.depth});
  // What is not asked for is not calculated.
  const auto target = [](const Tensor& tensor, bool wanted) {
    return wanted ? tensor.mutable_data_ptr() : nullptr;
  };
  void* to_queries = target(grad_queries, need_queries);
  void* to_keys = target(grad_keys, need_keys);
  if (in.type == ScalarType::Double)
    s3h::cpu::logsumexp_rows_backward(
        in.problem<double>(), threads, data<double>(grad), data<double>(lse),
        static_cast<double*>(to_queries), static_cast<double*>(to_keys));
  else if (in.matrix == ScalarType::BFloat16)
    s3h::cpu::logsumexp_tiled_backward(
        in.problem<float, Bfloat16>(), threads, deterministic,
        data<float>(grad), data<float>(lse), static_cast<Bfloat16*>(to_queries),
        static_cast<Bfloat16*>(to_keys));
  else
    s3h::cpu::logsumexp_tiled_backward(
        in.problem<float>(), threads, deterministic, data<float>(grad),
        data<float>(lse), static_cast<float*>(to_queries),
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
