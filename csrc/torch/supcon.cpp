// Registers the supervised contrastive loss under the LibTorch stable ABI; the
// schemas are in s3h_ext/ops/supcon.py.
#include "../cpu/supcon.h"

#include <tuple>

#include "../cpu/bfloat16.h"
#include "../cuda/supcon.h"
#include "backend.h"

namespace {

using namespace s3h::stable;
using s3h::Reduction;
using s3h::cpu::Bfloat16;

struct Inputs {
  Inputs(ScalarType matrix_type, const Tensor& features_in,
         const Tensor& labels_in, double temperature_in, int64_t num_classes,
         int64_t reduction_in, bool deterministic_in, bool allow_tf32_in)
      : type(compute_type(features_in)),
        matrix(matrix_type),
        device(features_in.device()),
        features(as_contiguous(features_in, matrix, device)),
        labels(labels_in),
        temperature(temperature_in),
        classes(num_classes),
        reduction(static_cast<Reduction>(reduction_in)),
        deterministic(deterministic_in),
        allow_tf32(allow_tf32_in) {
    STD_TORCH_CHECK(features.dim() == 2, "features must be [N, D]");
    STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
    STD_TORCH_CHECK(reduction_in >= 0 && reduction_in <= 2,
                    "reduction must be 0 (none), 1 (mean) or 2 (sum)");
    labels = *vector_of(labels_in, features.size(0), ScalarType::Long, device,
                        "labels");
  }

  template <typename T, typename Element = T>
  s3h::SupConProblem<T, Element> problem() const {
    return {data<Element>(features),
            data<int64_t>(labels),
            features.size(0),
            features.size(1),
            classes,
            temperature,
            reduction,
            deterministic};
  }

  template <class Backend>
  s3h::cuda::SupConProblem device_problem() const {
    return {problem<void>(), Backend::scalar(matrix), allow_tf32};
  }

  // What the forward keeps for the backward beside lse.
  template <class Backend>
  int64_t kept_count(bool keep_scores) const {
    if constexpr (Backend::kCuda) {
      return s3h::cuda::supcon_kept(device_problem<Backend>());
    } else {
      const int64_t n = features.size(0);
      return Backend::score_count(keep_scores, type, deterministic, n, n, true);
    }
  }

  // In units of log 2 on the CPU.
  template <class Backend>
  ScalarType lse_type() const {
    return Backend::kCuda ? type : ScalarType::Double;
  }

  // Whether the loss, and so its gradient, has one value per row.
  bool has_rows() const { return reduction == Reduction::kNone; }

  ScalarType type;    // of the computation and all vectors
  ScalarType matrix;  // of the features, for the kernel
  Device device;
  Tensor features;
  Tensor labels;
  double temperature;
  int64_t classes;
  Reduction reduction;
  bool deterministic;
  bool allow_tf32;
};

template <class Backend>
std::tuple<Tensor, Tensor, Tensor, Tensor> supcon(
    const Tensor& features, const Tensor& labels, double temperature,
    int64_t num_classes, int64_t reduction, bool deterministic, bool allow_tf32,
    bool keep_scores) {
  const Inputs in(Backend::similarity_type(features), features, labels,
                  temperature, num_classes, reduction, deterministic,
                  allow_tf32);
  const Backend backend(in.device);
  const int64_t n = in.features.size(0);
  const Tensor lse =
      new_empty(in.features, {n}, in.template lse_type<Backend>());
  const Tensor loss = in.has_rows() ? new_empty(in.features, {n}, in.type)
                                    : new_empty(in.features, {}, in.type);
  const Tensor counted = new_empty(in.features, {}, ScalarType::Long);
  const Tensor kept =
      new_empty(in.features, {in.template kept_count<Backend>(keep_scores)},
                ScalarType::Float);
  if constexpr (Backend::kCuda) {
    const auto problem = in.template device_problem<Backend>();
    backend.run("supcon", in.features, s3h::cuda::supcon_workspace(problem),
                [&](void* workspace, s3h::cuda::Stream stream) {
                  return s3h::cuda::supcon(
                      problem, workspace, loss.mutable_data_ptr(),
                      mutable_data<int64_t>(counted), lse.mutable_data_ptr(),
                      mutable_data<float>(kept), stream);
                });
  } else {
    Backend::template with_types<Bfloat16>(
        in.matrix, [&]<typename T, typename Element>() {
          *mutable_data<int64_t>(counted) =
              s3h::cpu::supcon(in.problem<T, Element>(), backend.threads(),
                               mutable_data<double>(lse), mutable_data<T>(loss),
                               scores_of(kept));
        });
  }
  return {loss, counted, lse, kept};
}

template <class Backend>
Tensor supcon_backward(const Tensor& grad_in, const Tensor& lse_in,
                       const Tensor& kept_in, const Tensor& features,
                       const Tensor& labels, double temperature,
                       int64_t num_classes, int64_t reduction,
                       bool deterministic, bool allow_tf32, bool keep_scores) {
  const Inputs in(Backend::similarity_type(features), features, labels,
                  temperature, num_classes, reduction, deterministic,
                  allow_tf32);
  const Backend backend(in.device);
  const int64_t n = in.features.size(0);
  STD_TORCH_CHECK(grad_in.numel() == (in.has_rows() ? n : 1),
                  "grad must have the loss's elements");
  const Tensor grad = as_contiguous(grad_in, in.type, in.device);
  const Tensor lse =
      *vector_of(lse_in, n, in.template lse_type<Backend>(), in.device, "lse");
  const Tensor kept =
      *vector_of(kept_in, in.template kept_count<Backend>(keep_scores),
                 ScalarType::Float, in.device, "kept");
  const Tensor out =
      new_empty(in.features, {n, in.features.size(1)}, in.matrix);
  if constexpr (Backend::kCuda) {
    const auto problem = in.template device_problem<Backend>();
    backend.run("supcon_backward", in.features,
                s3h::cuda::supcon_backward_workspace(problem),
                [&](void* workspace, s3h::cuda::Stream stream) {
                  return s3h::cuda::supcon_backward(
                      problem, workspace, grad.const_data_ptr(),
                      lse.const_data_ptr(), data<float>(kept),
                      out.mutable_data_ptr(), stream);
                });
  } else {
    Backend::template with_types<Bfloat16>(
        in.matrix, [&]<typename T, typename Element>() {
          s3h::cpu::supcon_backward(in.problem<T, Element>(), backend.threads(),
                                    data<T>(grad), mutable_data<double>(lse),
                                    mutable_data<Element>(out),
                                    scores_of(kept));
        });
  }
  return as_type(out, features.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, S3H_DISPATCH_KEY, library) {
  library.impl("supcon", TORCH_BOX(&supcon<LibraryBackend>));
  library.impl("supcon_backward", TORCH_BOX(&supcon_backward<LibraryBackend>));
}
