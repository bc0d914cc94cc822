// Draws the boxes of many views on a GPU; csrc/common/boxes.h says what is
// drawn, and the bits are those of the CPU.
#pragma once

#include <cstdint>

#include "status.h"

namespace s3h::cuda {

// The caller has checked seed, epoch, stream and the constraint; what lies in
// device memory is taken as it is.
struct ViewBoxProblem {
  int64_t count;
  const int64_t* sizes;  // height, width of image i at i * sizes_step
  int64_t sizes_step;    // 2, or 0 where all images have one size
  const int64_t* sample_index;
  const int64_t* view;  // of image i at i * view_step
  int64_t view_step;    // 1, or 0 where all have one view number
  int64_t seed, epoch, stream;
};

constexpr int kBoxConstraintNumbers = 18;

// constraint: that many numbers on the host, as csrc/common/boxes.h reads them.
// boxes: [count, 4] top, left, height, width; fallback: [count].
Status draw_view_boxes(const ViewBoxProblem& problem, const double* constraint,
                       int64_t* boxes, bool* fallback, Stream stream);

}  // namespace s3h::cuda
