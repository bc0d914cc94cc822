// The arguments of the prototype operations; pointers are to the device's own
// memory, row-major and contiguous.
#pragma once

#include <cstdint>

namespace s3h {

// T is the type of the state, Element that of the features; void if a kernel
// gets them in another way.
template <typename T, typename Element = T>
struct AccumulateProblem {
  bool cosine;
  const Element* features;  // [n, depth]
  const int64_t* labels;    // [n]; negative: ignored; all below classes
  const T* prototypes;      // [rows, depth]; cosine: unit rows
  const T* masses;          // [rows]
  const int64_t* offsets;   // [classes + 1], from 0 to rows, rising
  int64_t n;
  int64_t rows;
  int64_t classes;
  int64_t depth;
};

// The contribution of a batch; every element is written.
template <typename T>
struct Accumulated {
  int64_t* assignments;  // [n]: a row; -1: ignored, or distance not finite
  T* sums;               // [rows, depth]; cosine: of unit features
  T* counts;             // [rows]
  T* distortions;        // [rows]; sums of the samples' distances
  T* far_distances;      // [classes]; of the farthest sample, -1: none
  T* far_features;       // [classes, depth]
};

struct MovingAverage {
  bool cosine;
  double momentum;      // in [0, 1)
  double expire_below;  // relative to the class's mass per row
};

// The state that apply and update modify.
template <typename T>
struct State {
  T* prototypes;  // [rows, depth]
  T* sums;        // [rows, depth]
  T* masses;      // [rows]
};

template <typename T>
struct ApplyProblem : MovingAverage {
  const int64_t* offsets;  // [classes + 1]
  int64_t rows;
  int64_t classes;
  int64_t depth;
  const T* batch_sums;    // [rows, depth]
  const T* batch_counts;  // [rows]
  const T* distortions;   // [rows]
  const T* far_features;  // [classes, depth]
};

}  // namespace s3h
