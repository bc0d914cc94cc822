// The prototypical supervised contrastive loss (Wang et al. 2021) of a batch,
//
//   loss_i = log sum_{j of other classes} exp(x_ij)
//          - log sum_{j of the own class} exp(x_ij),
//   x_ij   = z_i . p_j / temperature,
//
// from one pass over the similarities. A row is not counted, and its loss is 0,
// if it has no class, or its class has all prototypes or none.
#pragma once

#include <cstdint>

#include "supcon.h"
#include "threads.h"

namespace s3h::cpu {

// Computes in float; Element is float or Bfloat16.
template <typename Element>
struct PrototypicalProblem {
  const Element* features;    // [n, depth]
  const Element* prototypes;  // [classes, per_class, depth]
  const int64_t* labels;      // [n]; outside of [0, classes): no class
  int64_t n;
  int64_t classes;
  int64_t per_class;
  int64_t depth;
  double temperature;
  Reduction reduction;
  bool deterministic;  // the same bits for any number of threads
};

// lse: [2, n] for the backward, over the others and over the own class, in
// units of log 2; loss: [n] unreduced, otherwise [1]; the mean is over counted
// rows, or 0. kept: scores for the backward (similarity.h), or nullptr. Returns
// the number of counted rows.
template <typename Element>
int64_t prototypical(const PrototypicalProblem<Element>& problem,
                     const Threads& threads, double* lse, float* loss,
                     float* kept);

// grad: like loss; grad_features and grad_prototypes: like the features and
// prototypes; either may be nullptr.
template <typename Element>
void prototypical_backward(const PrototypicalProblem<Element>& problem,
                           const Threads& threads, const float* grad,
                           double* lse, float* kept, Element* grad_features,
                           Element* grad_prototypes);

}  // namespace s3h::cpu
