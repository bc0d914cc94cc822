// Class-wise clustering by moving averages, on a GPU: the two operations of
// csrc/cpu/prototypes.h with the same meaning. As in similarity.h nothing
// allocates, copies or waits, and the same bits come out on every run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../common/prototypes_problem.h"
#include "scalar.h"
#include "status.h"

namespace s3h::cuda {

struct AccumulateProblem : s3h::AccumulateProblem<void> {
  Scalar type;  // of the features, depth > 0; the state is Real
};

using Accumulated = s3h::Accumulated<void>;

size_t accumulate_prototypes_workspace(const AccumulateProblem& problem);

Status accumulate_prototypes(const AccumulateProblem& problem, void* workspace,
                             const Accumulated& out, Stream stream);

struct ApplyProblem : s3h::ApplyProblem<void> {
  bool wide;  // Real is double
};

// In place: prototypes, sums [rows, depth], masses [rows].
Status apply_prototypes(const ApplyProblem& problem, void* prototypes,
                        void* sums, void* masses, Stream stream);

}  // namespace s3h::cuda
