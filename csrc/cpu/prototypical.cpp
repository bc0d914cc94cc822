// Everything but the similarities is linear in the number of rows.
#include "prototypical.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "bfloat16.h"
#include "similarity.h"

namespace s3h::cpu {
namespace {

// The prototypes as keys with labels.
template <typename Element>
struct Similarities {
  explicit Similarities(const PrototypicalProblem<Element>& p)
      : owners(static_cast<size_t>(p.classes * p.per_class)) {
    for (size_t j = 0; j < owners.size(); ++j)
      owners[j] = static_cast<int64_t>(j) / p.per_class;
    problem.queries = p.features;
    problem.keys = p.prototypes;
    problem.n = p.n;
    problem.m = static_cast<int64_t>(owners.size());
    problem.depth = p.depth;
    problem.temperature = p.temperature;
    problem.query_labels = p.labels;
    problem.key_labels = owners.data();
  }

  std::vector<int64_t> owners;
  SimilarityProblem<float, Element> problem{};
};

// Whether the row has a loss: prototypes of its own class, and others.
bool counts(const double* lse, int64_t n, int64_t row) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  return lse[row] != kNone && lse[n + row] != kNone;
}

int64_t count(const double* lse, int64_t n) {
  int64_t counted = 0;
  for (int64_t i = 0; i < n; ++i) counted += counts(lse, n, i);
  return counted;
}

}  // namespace

template <typename Element>
int64_t prototypical(const PrototypicalProblem<Element>& p,
                     const Threads& threads, double* lse, float* loss,
                     float* kept) {
  const Similarities<Element> all(p);
  logsumexp_tiled(all.problem, threads, p.deterministic,
                  {lse, lse + p.n, kept});
  double sum = 0;
  for (int64_t i = 0; i < p.n; ++i) {
    const double row =
        counts(lse, p.n, i) ? (lse[i] - lse[p.n + i]) * kLn2 : 0.0;
    if (p.reduction == Reduction::kNone) loss[i] = static_cast<float>(row);
    sum += row;
  }
  const int64_t counted = count(lse, p.n);
  if (p.reduction == Reduction::kMean)
    sum /= static_cast<double>(std::max<int64_t>(1, counted));
  if (p.reduction != Reduction::kNone) *loss = static_cast<float>(sum);
  return counted;
}

template <typename Element>
void prototypical_backward(const PrototypicalProblem<Element>& p,
                           const Threads& threads, const float* grad,
                           double* lse, float* kept, Element* grad_features,
                           Element* grad_prototypes) {
  const Similarities<Element> all(p);
  const bool each = p.reduction == Reduction::kNone;
  const auto unit = static_cast<float>(
      p.reduction == Reduction::kMean ? std::max<int64_t>(1, count(lse, p.n))
                                      : int64_t{1});
  std::vector<float> upstream(static_cast<size_t>(p.n));
  for (int64_t i = 0; i < p.n; ++i)
    if (counts(lse, p.n, i))
      upstream[static_cast<size_t>(i)] = (each ? grad[i] : *grad) / unit;
  logsumexp_tiled_backward(all.problem, threads, p.deterministic,
                           upstream.data(), {lse, lse + p.n, kept},
                           grad_features, grad_prototypes);
}

#define S3H_INSTANTIATE(Element)                                              \
  template int64_t prototypical<Element>(const PrototypicalProblem<Element>&, \
                                         const Threads&, double*, float*,     \
                                         float*);                             \
  template void prototypical_backward<Element>(                               \
      const PrototypicalProblem<Element>&, const Threads&, const float*,      \
      double*, float*, Element*, Element*);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
