// Registers the class-sum kernels under the LibTorch stable ABI; the schemas
// live in s3h_ext/ops/class_sums.py.
#include "../cpu/class_sums.h"

#include <tuple>

#include "tensors.h"

namespace {

using namespace s3h::stable;

// Owns the converted tensors for as long as the pointers are in use.
struct Inputs {
  Inputs(const Tensor& queries_in, const OptionalTensor& keys_in,
         const Tensor& query_classes_in, const OptionalTensor& key_classes_in,
         int64_t classes_in)
      : type(compute_type(queries_in)),
        classes(classes_in),
        queries(as_contiguous(queries_in, type)) {
    STD_TORCH_CHECK(queries.dim() == 2, "queries must be [N, D]");
    n = queries.size(0);
    depth = queries.size(1);
    m = n;
    if (keys_in.has_value()) {
      keys = as_contiguous(*keys_in, type);
      STD_TORCH_CHECK(keys->dim() == 2 && keys->size(1) == depth,
                      "keys must be [M, D] with the queries' D");
      m = keys->size(0);
    }
    STD_TORCH_CHECK(keys.has_value() == key_classes_in.has_value(),
                    "keys and key_classes go together");
    STD_TORCH_CHECK(classes >= 0, "num_classes must not be negative");
    query_classes =
        vector_of(query_classes_in, n, ScalarType::Long, "query_classes");
    key_classes = vector_of(key_classes_in, m, ScalarType::Long, "key_classes");
  }

  template <typename T>
  s3h::cpu::ClassSumProblem<T> problem() const {
    return {!keys.has_value(),
            data<T>(queries),
            pointer<T>(keys),
            n,
            m,
            depth,
            pointer<int64_t>(query_classes),
            pointer<int64_t>(key_classes),
            classes};
  }

  ScalarType type;
  int64_t classes;
  Tensor queries;
  int64_t n = 0, m = 0, depth = 0;
  OptionalTensor keys, query_classes, key_classes;
};

Tensor class_sum_dots(const Tensor& queries, const OptionalTensor& keys,
                      const Tensor& query_classes,
                      const OptionalTensor& key_classes, int64_t num_classes) {
  const Inputs in(queries, keys, query_classes, key_classes, num_classes);
  const Tensor sums =
      torch::stable::new_empty(in.queries, {num_classes, in.depth}, in.type);
  const Tensor dots = torch::stable::new_empty(in.queries, {in.n}, in.type);
  if (in.type == ScalarType::Double)
    s3h::cpu::class_sum_dots(in.problem<double>(), torch_threads(),
                             mutable_data<double>(sums),
                             mutable_data<double>(dots));
  else
    s3h::cpu::class_sum_dots(in.problem<float>(), torch_threads(),
                             mutable_data<float>(sums),
                             mutable_data<float>(dots));
  return dots;
}

template <typename T>
void backward(const Inputs& in, const Tensor& grad, const Tensor& sums,
              const Tensor& grad_queries, bool need_queries,
              const Tensor& grad_keys, bool need_keys) {
  s3h::cpu::class_sum_dots_backward(
      in.problem<T>(), torch_threads(), data<T>(grad), mutable_data<T>(sums),
      need_queries ? mutable_data<T>(grad_queries) : nullptr,
      need_keys ? mutable_data<T>(grad_keys) : nullptr);
}

std::tuple<Tensor, Tensor> class_sum_dots_backward(
    const Tensor& grad_in, const Tensor& queries, const OptionalTensor& keys,
    const Tensor& query_classes, const OptionalTensor& key_classes,
    int64_t num_classes, bool need_queries, bool need_keys) {
  const Inputs in(queries, keys, query_classes, key_classes, num_classes);
  const Tensor grad = *vector_of(grad_in, in.n, in.type, "grad");
  need_keys = need_keys && keys.has_value();
  const Tensor sums = torch::stable::new_empty(
      in.queries, {2 * num_classes, in.depth}, in.type);
  Tensor grad_queries = torch::stable::new_empty(
      in.queries, {need_queries ? in.n : 0, in.depth}, in.type);
  Tensor grad_keys = torch::stable::new_empty(
      in.queries, {need_keys ? in.m : 0, in.depth}, in.type);
  if (in.type == ScalarType::Double)
    backward<double>(in, grad, sums, grad_queries, need_queries, grad_keys,
                     need_keys);
  else
    backward<float>(in, grad, sums, grad_queries, need_queries, grad_keys,
                    need_keys);
  const ScalarType stored = queries.scalar_type();
  if (stored != in.type) {
    grad_queries = torch::stable::to(grad_queries, stored);
    grad_keys = torch::stable::to(grad_keys, stored);
  }
  return {grad_queries, grad_keys};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("class_sum_dots", TORCH_BOX(&class_sum_dots));
  library.impl("class_sum_dots_backward", TORCH_BOX(&class_sum_dots_backward));
}
