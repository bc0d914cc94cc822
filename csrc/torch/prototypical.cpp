// Registers the prototypical supervised contrastive loss under the LibTorch
// stable ABI; the schemas are in s3h_ext/ops/prototypical.py.
#include "../cpu/prototypical.h"

#include <tuple>

#include "cpu_backend.h"

namespace {

using s3h::cpu::Bfloat16;
using s3h::cpu::Reduction;
using namespace s3h::stable;

struct Inputs {
  Inputs(const Tensor& features_in, const Tensor& prototypes_in,
         const Tensor& labels_in, double temperature_in, int64_t reduction_in,
         bool deterministic_in)
      : matrix(Cpu::similarity_type(features_in)),
        features(as_contiguous(features_in, matrix)),
        prototypes(as_contiguous(prototypes_in, matrix)),
        labels(labels_in),
        temperature(temperature_in),
        reduction(static_cast<Reduction>(reduction_in)),
        deterministic(deterministic_in) {
    STD_TORCH_CHECK(compute_type(features) == ScalarType::Float,
                    "features must be of 32 or 16 bits");
    STD_TORCH_CHECK(features.dim() == 2, "features must be [N, D], got ",
                    shape_of(features));
    const int64_t dims = prototypes.dim();
    STD_TORCH_CHECK((dims == 2 || dims == 3) &&
                        prototypes.size(dims - 1) == features.size(1),
                    "prototypes must be [C, D] or [C, K, D] with the features' "
                    "D, got ",
                    shape_of(prototypes));
    STD_TORCH_CHECK(temperature > 0, "temperature must be positive");
    STD_TORCH_CHECK(reduction_in >= 0 && reduction_in <= 2,
                    "reduction must be 0 (none), 1 (mean) or 2 (sum)");
    labels = *vector_of(labels_in, n(), ScalarType::Long, "labels");
  }

  template <typename Element>
  s3h::cpu::PrototypicalProblem<Element> problem() const {
    return {data<Element>(features),
            data<Element>(prototypes),
            data<int64_t>(labels),
            n(),
            prototypes.size(0),
            per_class(),
            features.size(1),
            temperature,
            reduction,
            deterministic};
  }

  int64_t n() const { return features.size(0); }
  int64_t per_class() const {
    return prototypes.dim() == 3 ? prototypes.size(1) : 1;
  }
  int64_t score_count(bool keep) const {
    return Cpu::score_count(keep, ScalarType::Float, deterministic, n(),
                            prototypes.size(0) * per_class(), false);
  }

  // Whether the loss, and so its gradient, has one value per row.
  bool has_rows() const { return reduction == Reduction::kNone; }

  ScalarType matrix;  // type of features and prototypes for the kernel
  Tensor features;
  Tensor prototypes;
  Tensor labels;
  double temperature;
  Reduction reduction;
  bool deterministic;
};

template <typename Body>
void with_element(ScalarType matrix, const Body& body) {
  if (matrix == ScalarType::BFloat16)
    body.template operator()<Bfloat16>();
  else
    body.template operator()<float>();
}

std::tuple<Tensor, Tensor, Tensor, Tensor> prototypical(
    const Tensor& features, const Tensor& prototypes, const Tensor& labels,
    double temperature, int64_t reduction, bool deterministic,
    bool keep_scores) {
  const Inputs in(features, prototypes, labels, temperature, reduction,
                  deterministic);
  const Cpu backend(features.device());
  const Tensor lse = new_empty(in.features, {2, in.n()}, ScalarType::Double);
  const Tensor loss = in.has_rows()
                          ? new_empty(in.features, {in.n()}, ScalarType::Float)
                          : new_empty(in.features, {}, ScalarType::Float);
  const Tensor counted = new_empty(in.features, {}, ScalarType::Long);
  const Tensor scores =
      new_empty(in.features, {in.score_count(keep_scores)}, ScalarType::Float);
  with_element(in.matrix, [&]<typename Element>() {
    *mutable_data<int64_t>(counted) = s3h::cpu::prototypical(
        in.problem<Element>(), backend.threads(), mutable_data<double>(lse),
        mutable_data<float>(loss), scores_of(scores));
  });
  return {loss, counted, lse, scores};
}

std::tuple<Tensor, Tensor> prototypical_backward(
    const Tensor& grad_in, const Tensor& lse_in, const Tensor& scores_in,
    bool need_features, bool need_prototypes, const Tensor& features,
    const Tensor& prototypes, const Tensor& labels, double temperature,
    int64_t reduction, bool deterministic, bool keep_scores) {
  const Inputs in(features, prototypes, labels, temperature, reduction,
                  deterministic);
  const Cpu backend(features.device());
  STD_TORCH_CHECK(grad_in.numel() == (in.has_rows() ? in.n() : 1),
                  "grad must have the loss's elements");
  const Tensor grad = as_contiguous(grad_in, ScalarType::Float);
  STD_TORCH_CHECK(
      lse_in.dim() == 2 && lse_in.size(0) == 2 && lse_in.size(1) == in.n(),
      "lse must be [2, ", in.n(), "], got ", shape_of(lse_in));
  const Tensor lse = as_contiguous(lse_in, ScalarType::Double);
  const Tensor scores = *vector_of(scores_in, in.score_count(keep_scores),
                                   ScalarType::Float, "scores");
  const auto gradient_of = [&](const Tensor& of, bool wanted) {
    const int64_t first = wanted ? of.size(0) : 0;
    return of.dim() == 3
               ? new_empty(of, {first, of.size(1), of.size(2)}, in.matrix)
               : new_empty(of, {first, of.size(1)}, in.matrix);
  };
  const Tensor to_features = gradient_of(in.features, need_features);
  const Tensor to_prototypes = gradient_of(in.prototypes, need_prototypes);
  with_element(in.matrix, [&]<typename Element>() {
    s3h::cpu::prototypical_backward(
        in.problem<Element>(), backend.threads(), data<float>(grad),
        mutable_data<double>(lse), scores_of(scores),
        static_cast<Element*>(target(to_features, need_features)),
        static_cast<Element*>(target(to_prototypes, need_prototypes)));
  });
  return {as_type(to_features, features.scalar_type()),
          as_type(to_prototypes, features.scalar_type())};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(s3h, CPU, library) {
  library.impl("prototypical", TORCH_BOX(&prototypical));
  library.impl("prototypical_backward", TORCH_BOX(&prototypical_backward));
}
