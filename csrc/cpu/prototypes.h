// Class-wise clustering by moving averages: class c owns the rows
// offsets[c] .. offsets[c + 1] - 1 of a ragged state.
//
//   accumulate: each sample goes to the nearest prototype among the rows of
//               its own class; sums and counts of the batch per row.
//   apply:      for every class in the batch, per row
//               sum = momentum sum + batch, mass = momentum mass + count,
//               prototype = sum / mass (cosine: sum / |sum|), and the lightest
//               row, if it is dead, restarts as one half of the row with the
//               greatest distortion.
//
//   update:     both at once, for a batch that one process holds.
//
// A row of mass 0 is unused: it has no prototype and gets no samples, except
// for the first row of a class. Does not depend on torch.
#pragma once

#include <cstdint>

#include "../common/prototypes_problem.h"
#include "threads.h"

namespace s3h::cpu {

// The same bits for any number of threads.
template <typename T, typename Element>
void accumulate_prototypes(const AccumulateProblem<T, Element>& problem,
                           const Threads& threads, const Accumulated<T>& out);

template <typename T>
void apply_prototypes(const ApplyProblem<T>& problem, const Threads& threads,
                      const State<T>& state);

template <typename Element>
struct UpdateProblem : MovingAverage {
  const Element* features;  // [n, depth]
  const int64_t* labels;    // [n]; negative: ignored; all below classes
  const int64_t* offsets;   // [classes + 1]
  int64_t n;
  int64_t rows;
  int64_t classes;
  int64_t depth;
};

// Accumulate and apply, class by class, so that the batch's contribution to a
// class never leaves the cache. Gives the same bits as the two in sequence.
// Every element of assignments [n] is written.
template <typename T, typename Element>
void update_prototypes(const UpdateProblem<Element>& problem,
                       const Threads& threads, const State<T>& state,
                       int64_t* assignments);

}  // namespace s3h::cpu
