// The supervised contrastive loss (Khosla et al. 2020, L_out) of a batch with
// itself, and its gradient, on a GPU:
//
//   loss_i = lse_i - z_i . (S_{y_i} - z_i) / (temperature (n_{y_i} - 1))
//
// S_c, n_c: sum and number of the rows of class c. A row is counted if its
// class has another row; the loss of any other is 0, though it stays in the
// denominators. As in similarity.h nothing allocates, copies or waits; rows are
// expected to have unit length, and others take longer.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/supcon_problem.h"
#include "scalar.h"
#include "status.h"

namespace s3h::cuda {

struct SupConProblem : s3h::SupConProblem<void> {
  Scalar type;      // of the features; the vectors are Real
  bool allow_tf32;  // kFloat32 by one TF32 product
};

// How many floats the forward keeps for the backward beside lse;
// s3h_ext/ops/supcon.py knows it too.
int64_t supcon_kept(const SupConProblem& problem);

// Bytes of device memory, aligned to 256, that the calls below work in.
size_t supcon_workspace(const SupConProblem& problem);
size_t supcon_backward_workspace(const SupConProblem& problem);

// loss: [n] Real unreduced, else [1]; the mean is over counted rows, of none it
// is 0. counted: [1]. lse: [n] Real; kept: [supcon_kept], aligned to 256.
Status supcon(const SupConProblem& problem, void* workspace, void* loss,
              int64_t* counted, void* lse, float* kept, Stream stream);

// grad: like loss; grad_features: [n, depth] of the features' type.
Status supcon_backward(const SupConProblem& problem, void* workspace,
                       const void* grad, const void* lse, const float* kept,
                       void* grad_features, Stream stream);

}  // namespace s3h::cuda
