// The arguments of drawing boxes; boxes.h defines the draws. Pointers, except
// for `constraint`, are to the device's own memory.
#pragma once

#include <cstdint>

namespace s3h {

constexpr int kConstraintNumbers = 18;

struct ViewBoxProblem {
  int64_t count;
  const int64_t* sizes;  // height, width of image i at i * sizes_step
  int64_t sizes_step;    // 2, or 0 if all images have one size
  const int64_t* sample_index;
  const int64_t* view;       // of image i at i * view_step
  int64_t view_step;         // 1, or 0 if all have one view number
  const double* constraint;  // on the host, as boxes.h reads it
  int64_t constraint_numbers;
  int64_t seed, epoch, stream;
};

}  // namespace s3h
