// Dot products with class sums, the attraction of every contrastive loss here,
// on a GPU:
//
//   S_c = sum of the keys of class c,   dot_i = q_i . S_{y_i}
//
// In the symmetric case the keys are the queries and row i is left out of its
// own sum. A class outside [0, classes) has no sum, and its dot is 0. As in
// similarity.h nothing allocates, copies or waits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/class_sums_problem.h"
#include "scalar.h"
#include "status.h"

namespace s3h::cuda {

struct ClassSumProblem : s3h::ClassSumProblem<void> {
  Scalar type;  // of queries and keys
};

size_t class_sum_dots_workspace(const ClassSumProblem& problem);

// dots: [n] Real.
Status class_sum_dots(const ClassSumProblem& problem, void* workspace,
                      void* dots, Stream stream);

size_t class_sum_dots_backward_workspace(const ClassSumProblem& problem);

// grad: [n] Real; grad_queries: [n, depth], grad_keys: [m, depth], of the
// matrices' type, either may be nullptr; in the symmetric case grad_queries
// takes both roles' gradient. The same bits on every run.
Status class_sum_dots_backward(const ClassSumProblem& problem, void* workspace,
                               const void* grad, void* grad_queries,
                               void* grad_keys, Stream stream);

}  // namespace s3h::cuda
