// Registers the class-sum kernels under the LibTorch stable ABI; the schemas
// are in s3h_ext/ops/class_sums.py.
#include "../cpu/class_sums.h"

#include <tuple>

#include "../cuda/class_sums.h"
#include "backend.h"

namespace {

using namespace s3h::stable;

// Owns the converted tensors while their pointers are in use.
struct ClassSumInputs {
  ClassSumInputs(ScalarType matrix_type, const Tensor& queries_in,
                 const OptionalTensor& keys_in, const Tensor& query_classes_in,
                 const OptionalTensor& key_classes_in, int64_t classes_in)
      : type(compute_type(queries_in)),
        matrix(matrix_type),
        device(queries_in.device()),
        classes(classes_in),
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
    STD_TORCH_CHECK(keys.has_value() == key_classes_in.has_value(),
                    "keys and key_classes go together");
    STD_TORCH_CHECK(classes >= 0, "num_classes must not be negative");
    query_classes = vector_of(query_classes_in, n, ScalarType::Long, device,
                              "query_classes");
    key_classes =
        vector_of(key_classes_in, m, ScalarType::Long, device, "key_classes");
  }

  template <typename T>
  s3h::ClassSumProblem<T> problem() const {
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

  ScalarType type;    // of the computation and all vectors
  ScalarType matrix;  // of queries and keys
  Device device;
  int64_t classes;
  Tensor queries;
  int64_t n = 0, m = 0, depth = 0;
  OptionalTensor keys, query_classes, key_classes;
};

template <class Backend>
Tensor class_sum_dots(const Tensor& queries, const OptionalTensor& keys,
                      const Tensor& query_classes,
                      const OptionalTensor& key_classes, int64_t num_classes) {
  const ClassSumInputs in(Backend::class_sums_type(queries), queries, keys,
                          query_classes, key_classes, num_classes);
  const Backend backend(in.device);
  const Tensor dots = new_empty(in.queries, {in.n}, in.type);
  if constexpr (Backend::kCuda) {
    const s3h::cuda::ClassSumProblem problem{in.problem<void>(),
                                             Backend::scalar(in.matrix)};
    backend.run("class_sum_dots", in.queries,
                s3h::cuda::class_sum_dots_workspace(problem),
                [&](void* workspace, s3h::cuda::Stream stream) {
                  return s3h::cuda::class_sum_dots(
                      problem, workspace, dots.mutable_data_ptr(), stream);
                });
  } else {
    const Tensor sums = new_empty(in.queries, {num_classes, in.depth}, in.type);
    Backend::with_types(in.type, [&]<typename T, typename>() {
      s3h::cpu::class_sum_dots(in.problem<T>(), backend.threads(),
                               mutable_data<T>(sums), mutable_data<T>(dots));
    });
  }
  return dots;
}

template <class Backend>
std::tuple<Tensor, Tensor> class_sum_dots_backward(
    const Tensor& grad_in, bool need_queries, bool need_keys,
    const Tensor& queries, const OptionalTensor& keys,
    const Tensor& query_classes, const OptionalTensor& key_classes,
    int64_t num_classes) {
  const ClassSumInputs in(Backend::class_sums_type(queries), queries, keys,
                          query_classes, key_classes, num_classes);
  const Backend backend(in.device);
  const Tensor grad = *vector_of(grad_in, in.n, in.type, in.device, "grad");
  need_keys = need_keys && keys.has_value();
  const Tensor grad_queries =
      new_empty(in.queries, {need_queries ? in.n : 0, in.depth},
                in.queries.scalar_type());
  const Tensor grad_keys = new_empty(
      in.queries, {need_keys ? in.m : 0, in.depth}, in.queries.scalar_type());
  void* to_queries = target(grad_queries, need_queries);
  void* to_keys = target(grad_keys, need_keys);
  if constexpr (Backend::kCuda) {
    const s3h::cuda::ClassSumProblem problem{in.problem<void>(),
                                             Backend::scalar(in.matrix)};
    if (need_queries || need_keys)
      backend.run("class_sum_dots_backward", in.queries,
                  s3h::cuda::class_sum_dots_backward_workspace(problem),
                  [&](void* workspace, s3h::cuda::Stream stream) {
                    return s3h::cuda::class_sum_dots_backward(
                        problem, workspace, grad.const_data_ptr(), to_queries,
                        to_keys, stream);
                  });
  } else {
    const Tensor sums =
        new_empty(in.queries, {2 * num_classes, in.depth}, in.type);
    Backend::with_types(in.type, [&]<typename T, typename>() {
      s3h::cpu::class_sum_dots_backward(in.problem<T>(), backend.threads(),
                                        data<T>(grad), mutable_data<T>(sums),
                                        static_cast<T*>(to_queries),
                                        static_cast<T*>(to_keys));
    });
  }
  return {as_type(grad_queries, queries.scalar_type()),
          as_type(grad_keys, queries.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("class_sum_dots", TORCH_BOX(&class_sum_dots<LibraryBackend>));
  library.impl("class_sum_dots_backward",
               TORCH_BOX(&class_sum_dots_backward<LibraryBackend>));
}
