// The supervised contrastive loss (Khosla et al. 2020, L_out) of a batch with
// itself, from the similarity kernels and class sums:
//
//   loss_i = lse_i - z_i . (S_{y_i} - z_i) / (temperature (n_{y_i} - 1))
//
// S_c, n_c: sum and number of the rows of class c. A row is counted if its
// class has another row; otherwise its loss is 0, but it stays in the
// denominators.
#pragma once

#include <cstdint>

#include "../common/supcon_problem.h"
#include "threads.h"

namespace s3h::cpu {

using s3h::Reduction;

// T is float or double; Element is T, or Bfloat16 with float.
template <typename T, typename Element = T>
using SupConProblem = s3h::SupConProblem<T, Element>;

// lse: [n], for the backward, in units of log 2 if T is float; loss: [n]
// unreduced, otherwise [1]; the mean is over counted rows, or 0. Returns the
// number of counted rows. kept: scores for the backward (similarity.h) if T is
// float, or nullptr.
template <typename T, typename Element>
int64_t supcon(const SupConProblem<T, Element>& problem, const Threads& threads,
               double* lse, T* loss, float* kept = nullptr);

// grad: like loss; grad_features: [n, depth].
template <typename T, typename Element>
void supcon_backward(const SupConProblem<T, Element>& problem,
                     const Threads& threads, const T* grad, double* lse,
                     Element* grad_features, float* kept = nullptr);

}  // namespace s3h::cpu
