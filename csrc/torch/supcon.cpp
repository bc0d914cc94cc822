// Registers the supervised contrastive loss under the LibTorch stable ABI; the
// schemas are in s3h_ext/ops/supcon.py.
#include "../cpu/supcon.h"

#include <tuple>

#include "cpu_backend.h"

namespace {

using s3h::cpu::Bfloat16;
using s3h::cpu::Reduction;
using namespace s3h::stable;

struct Inputs {
  Inputs(const Tensor& features_in, const Tensor& labels_in,
         double temperature_in, int64_t num_classes, int64_t reduction_in,
         bool deterministic_in)
      : type(compute_type(features_in)),
        matrix(Cpu::similarity_type(features_in)),
        features(as_contiguous(features_in, matrix)),
        labels(labels_in),
        temperature(temperature_in),
        classes(num_classes),
        reduction(static_cast<Reduction>(reduction_in)),
        deterministic(deterministic_in) {
    STD_TORCH_CHECK(features.dim() == 2, "features must be [N, D]");
    STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
    STD_TORCH_CHECK(reduction_in >= 0 && reduction_in <= 2,
                    "reduction must be 0 (none), 1 (mean) or 2 (sum)");
    labels =
        *vector_of(labels_in, features.size(0), ScalarType::Long, "labels");
  }

  template <typename T, typename Element = T>
  s3h::cpu::SupConProblem<T, Element> problem() const {
    return {data<Element>(features),
            data<int64_t>(labels),
            features.size(0),
            features.size(1),
            classes,
            temperature,
            reduction,
            deterministic};
  }

  int64_t score_count(bool keep) const {
    const int64_t n = features.size(0);
    return Cpu::score_count(keep, type, deterministic, n, n, true);
  }

  // Whether the loss, and so its gradient, has one value per row.
  bool has_rows() const { return reduction == Reduction::kNone; }

  ScalarType type;    // of the computation and all vectors
  ScalarType matrix;  // of the features, for the kernel
  Tensor features;
  Tensor labels;
  double temperature;
  int64_t classes;
  Reduction reduction;
  bool deterministic;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> supcon(
    const Tensor& features, const Tensor& labels, double temperature,
    int64_t num_classes, int64_t reduction, bool deterministic,
    bool keep_scores) {
  const Inputs in(features, labels, temperature, num_classes, reduction,
                  deterministic);
  const Cpu backend(features.device());
  const int64_t n = in.features.size(0);
  const Tensor lse = new_empty(in.features, {n}, ScalarType::Double);
  const Tensor loss = in.has_rows() ? new_empty(in.features, {n}, in.type)
                                    : new_empty(in.features, {}, in.type);
  const Tensor counted = new_empty(in.features, {}, ScalarType::Long);
  const Tensor scores =
      new_empty(in.features, {in.score_count(keep_scores)}, ScalarType::Float);
  Cpu::with_types<Bfloat16>(in.matrix, [&]<typename T, typename Element>() {
    *mutable_data<int64_t>(counted) = s3h::cpu::supcon(
        in.problem<T, Element>(), backend.threads(), mutable_data<double>(lse),
        mutable_data<T>(loss), scores_of(scores));
  });
  return {loss, counted, lse, scores};
}

Tensor supcon_backward(const Tensor& grad_in, const Tensor& lse_in,
                       const Tensor& scores_in, const Tensor& features,
                       const Tensor& labels, double temperature,
                       int64_t num_classes, int64_t reduction,
                       bool deterministic, bool keep_scores) {
  const Inputs in(features, labels, temperature, num_classes, reduction,
                  deterministic);
  const Cpu backend(features.device());
  const int64_t n = in.features.size(0);
  STD_TORCH_CHECK(grad_in.numel() == (in.has_rows() ? n : 1),
                  "grad must have the loss's elements");
  const Tensor grad = as_contiguous(grad_in, in.type);
  const Tensor lse = *vector_of(lse_in, n, ScalarType::Double, "lse");
  const Tensor scores = *vector_of(scores_in, in.score_count(keep_scores),
                                   ScalarType::Float, "scores");
  const Tensor out =
      new_empty(in.features, {n, in.features.size(1)}, in.matrix);
  Cpu::with_types<Bfloat16>(in.matrix, [&]<typename T, typename Element>() {
    s3h::cpu::supcon_backward(in.problem<T, Element>(), backend.threads(),
                              data<T>(grad), mutable_data<double>(lse),
                              mutable_data<Element>(out), scores_of(scores));
  });
  return as_type(out, features.scalar_type());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("supcon", TORCH_BOX(&supcon));
  library.impl("supcon_backward", TORCH_BOX(&supcon_backward));
}
