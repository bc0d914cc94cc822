// Registers the class-sum kernels under the LibTorch stable ABI; the schemas
// live in s3h_ext/ops/class_sums.py.
#include "../cpu/class_sums.h"

#include <tuple>

#include "class_sum_inputs.h"
#include "cpu_call.h"

namespace {

using namespace s3h::stable;

template <typename T>
s3h::cpu::ClassSumProblem<T> problem_of(const ClassSumInputs& in) {
  return {!in.keys.has_value(),
          data<T>(in.queries),
          pointer<T>(in.keys),
          in.n,
          in.m,
          in.depth,
          pointer<int64_t>(in.query_classes),
          pointer<int64_t>(in.key_classes),
          in.classes};
}

Tensor class_sum_dots(const Tensor& queries, const OptionalTensor& keys,
                      const Tensor& query_classes,
                      const OptionalTensor& key_classes, int64_t num_classes) {
  const ClassSumInputs in(compute_type(queries), queries, keys, query_classes,
                          key_classes, num_classes);
  const Tensor sums =
      torch::stable::new_empty(in.queries, {num_classes, in.depth}, in.type);
  const Tensor dots = torch::stable::new_empty(in.queries, {in.n}, in.type);
  if (in.type == ScalarType::Double)
    s3h::cpu::class_sum_dots(problem_of<double>(in), torch_threads(),
                             mutable_data<double>(sums),
                             mutable_data<double>(dots));
  else
    s3h::cpu::class_sum_dots(problem_of<float>(in), torch_threads(),
                             mutable_data<float>(sums),
                             mutable_data<float>(dots));
  return dots;
}

template <typename T>
void backward(const ClassSumInputs& in, const Tensor& grad, const Tensor& sums,
              const Tensor& grad_queries, bool need_queries,
              const Tensor& grad_keys, bool need_keys) {
  s3h::cpu::class_sum_dots_backward(
      problem_of<T>(in), torch_threads(), data<T>(grad), mutable_data<T>(sums),
      need_queries ? mutable_data<T>(grad_queries) : nullptr,
      need_keys ? mutable_data<T>(grad_keys) : nullptr);
}

std::tuple<Tensor, Tensor> class_sum_dots_backward(
    const Tensor& grad_in, const Tensor& queries, const OptionalTensor& keys,
    const Tensor& query_classes, const OptionalTensor& key_classes,
    int64_t num_classes, bool need_queries, bool need_keys) {
  const ClassSumInputs in(compute_type(queries), queries, keys, query_classes,
                          key_classes, num_classes);
  const Tensor grad = *vector_of(grad_in, in.n, in.type, in.device, "grad");
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
