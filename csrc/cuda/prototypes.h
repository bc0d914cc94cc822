// Class-wise clustering by moving averages, on a GPU: the two operations of
// csrc/cpu/prototypes.h with the same meaning. As in similarity.h nothing
// allocates, copies or waits, and the same bits come out on every run.
#pragma once

#include <cstddef>
#include <cstdint>

#include "scalar.h"
#include "status.h"

namespace s3h::cuda {

// Real: float, double for kFloat64 features.
struct AccumulateProblem {
  bool cosine;
  Scalar type;
  const void* features;    // [n, depth], depth > 0
  const int64_t* labels;   // [n]; negative: ignored; all below classes
  const void* prototypes;  // [rows, depth] Real
  const void* masses;      // [rows] Real
  const int64_t* offsets;  // [classes + 1], from 0 to rows, rising
  int64_t n;
  int64_t rows;
  int64_t classes;
  int64_t depth;
};

// What a batch adds; every element is written.
struct Accumulated {
  int64_t* assignments;  // [n]
  void* sums;            // [rows, depth] Real
  void* counts;          // [rows] Real
  void* distortions;     // [rows] Real
  void* far_distances;   // [classes] Real
  void* far_features;    // [classes, depth] Real
};

size_t accumulate_prototypes_workspace(const AccumulateProblem& problem);

Status accumulate_prototypes(const AccumulateProblem& problem, void* workspace,
                             const Accumulated& out, Stream stream);

struct ApplyProblem {
  bool cosine;
  bool wide;  // Real is double
  double momentum;
  double expire_below;
  const int64_t* offsets;  // [classes + 1]
  int64_t rows;
  int64_t classes;
  int64_t depth;
  const void* batch_sums;    // [rows, depth] Real
  const void* batch_counts;  // [rows] Real
  const void* distortions;   // [rows] Real
  const void* far_features;  // [classes, depth] Real
};

// In place: prototypes, sums [rows, depth], masses [rows].
Status apply_prototypes(const ApplyProblem& problem, void* prototypes,
                        void* sums, void* masses, Stream stream);

}  // namespace s3h::cuda
