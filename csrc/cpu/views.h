// Views rendered from patches of byte images in one pass: crop, mirror, resize
// (antialiased bilinear) or affine map, colour matrix, clamp, normalise, place,
// erase.
//
// No torch in here: plain pointers and sizes, row-major and contiguous, and a
// parallel_for handed in. The caller has checked every index and rectangle.
#pragma once

#include <cstdint>

#include "../common/view_patches.h"
#include "threads.h"

namespace s3h::cpu {

struct ViewsProblem : ViewPatches {
  const ByteImage* images;
  void* out;  // [views, height, width, channels]
};

// A view is rendered by one thread and from its own patches alone: its bits
// depend neither on the number of threads nor on the other views.
void render_views(const ViewsProblem& problem, const Threads& threads);

}  // namespace s3h::cpu
