// Class-wise clustering by moving averages: class c owns the rows
// offsets[c] .. offsets[c + 1] - 1 of a ragged state.
//
//   accumulate: each sample goes to the nearest prototype among the rows of
//               its own class; sums and counts of the batch per row.
//   apply:      for every class in the batch, per row
//               sum = momentum sum + batch, mass = momentum mass + count,
//               prototype = sum / mass (cosine: sum / |sum|), and the lightest
//               row, if it is dead, starts anew as one half of the row with the
//               greatest distortion.
//
//   update:     both at once, for a batch that one process holds.
//
// A row of mass 0 is unborn: it has no prototype and takes no sample, but for
// the first row of a class. No torch in here.
#pragma once

#include <cstdint>

#include "threads.h"

namespace s3h::cpu {

enum class Metric { kEuclidean, kCosine };

template <typename T, typename Element>
struct AccumulateProblem {
  Metric metric;
  const Element* features;  // [n, depth]
  const int64_t* labels;    // [n]; negative: ignored; all below classes
  const T* prototypes;      // [rows, depth]; cosine: unit rows
  const T* masses;          // [rows]
  const int64_t* offsets;   // [classes + 1], from 0, rising
  int64_t n;
  int64_t classes;
  int64_t depth;
};

// What a batch adds; every element is written.
template <typename T>
struct Accumulated {
  int64_t* assignments;  // [n]: a row; -1: ignored, or distance not finite
  T* sums;               // [rows, depth]; cosine: of unit features
  T* counts;             // [rows]
  T* distortions;        // [rows]; sums of the samples' distances
  T* far_distances;      // [classes]; of the farthest sample, -1: none
  T* far_features;       // [classes, depth]
};

// The same bits for any number of threads.
template <typename T, typename Element>
void accumulate_prototypes(const AccumulateProblem<T, Element>& problem,
                           const Threads& threads, const Accumulated<T>& out);

template <typename T>
struct MovingAverage {
  Metric metric;
  T momentum;      // in [0, 1)
  T expire_below;  // share of a row's fair part of the class's mass
};

// What apply and update change.
template <typename T>
struct State {
  T* prototypes;  // [rows, depth]
  T* sums;        // [rows, depth]
  T* masses;      // [rows]
};

template <typename T>
struct ApplyProblem {
  MovingAverage<T> average;
  const int64_t* offsets;  // [classes + 1]
  int64_t classes;
  int64_t depth;
  const T* batch_sums;    // [rows, depth]
  const T* batch_counts;  // [rows]
  const T* distortions;   // [rows]
  const T* far_features;  // [classes, depth]
};

template <typename T>
void apply_prototypes(const ApplyProblem<T>& problem, const Threads& threads,
                      const State<T>& state);

template <typename T, typename Element>
struct UpdateProblem {
  MovingAverage<T> average;
  const Element* features;  // [n, depth]
  const int64_t* labels;    // [n]; negative: ignored; all below classes
  const int64_t* offsets;   // [classes + 1]
  int64_t n;
  int64_t classes;
  int64_t depth;
};

// Accumulate and apply, class by class, so that what the batch adds to a class
// never leaves the cache. The same bits as the two in turn. Every element of
// assignments [n] is written.
template <typename T, typename Element>
void update_prototypes(const UpdateProblem<T, Element>& problem,
                       const Threads& threads, const State<T>& state,
                       int64_t* assignments);

}  // namespace s3h::cpu
