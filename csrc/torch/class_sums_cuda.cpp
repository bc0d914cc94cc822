// Registers the CUDA kernels of the class sums under the LibTorch stable ABI:
// the counterpart of class_sums.cpp.
#include <tuple>

#include "../cuda/class_sums.h"
#include "class_sum_inputs.h"
#include "cuda_call.h"

namespace {

using namespace s3h::stable;

s3h::cuda::ClassSumProblem problem_of(const ClassSumInputs& in) {
  return {!in.keys.has_value(),
          cuda_scalar(in.matrix),
          in.queries.const_data_ptr(),
          pointer<void>(in.keys),
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
  const ClassSumInputs in(queries.scalar_type(), queries, keys, query_classes,
                          key_classes, num_classes);
  const CudaCall call(in.device);
  const auto problem = problem_of(in);
  const Tensor dots = torch::stable::new_empty(in.queries, {in.n}, in.type);
  const Tensor work =
      workspace(in.queries, s3h::cuda::class_sum_dots_workspace(problem));
  call.check(s3h::cuda::class_sum_dots(problem, work.mutable_data_ptr(),
                                       dots.mutable_data_ptr(), call.stream()),
             "class_sum_dots");
  return dots;
}

std::tuple<Tensor, Tensor> class_sum_dots_backward(
    const Tensor& grad_in, const Tensor& queries, const OptionalTensor& keys,
    const Tensor& query_classes, const OptionalTensor& key_classes,
    int64_t num_classes, bool need_queries, bool need_keys) {
  const ClassSumInputs in(queries.scalar_type(), queries, keys, query_classes,
                          key_classes, num_classes);
  const CudaCall call(in.device);
  const auto problem = problem_of(in);
  const Tensor grad = *vector_of(grad_in, in.n, in.type, in.device, "grad");
  need_keys = need_keys && keys.has_value();
  Tensor grad_queries =
      torch::stable::new_empty(in.queries, {need_queries ? in.n : 0, in.depth});
  Tensor grad_keys =
      torch::stable::new_empty(in.queries, {need_keys ? in.m : 0, in.depth});
  if (need_queries || need_keys) {
    const Tensor work = workspace(
        in.queries, s3h::cuda::class_sum_dots_backward_workspace(problem));
    call.check(s3h::cuda::class_sum_dots_backward(
                   problem, work.mutable_data_ptr(), grad.const_data_ptr(),
                   target(grad_queries, need_queries),
                   target(grad_keys, need_keys), call.stream()),
               "class_sum_dots_backward");
  }
  return {grad_queries, grad_keys};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CUDA, library) {
  library.impl("class_sum_dots", TORCH_BOX(&class_sum_dots));
  library.impl("class_sum_dots_backward", TORCH_BOX(&class_sum_dots_backward));
}
