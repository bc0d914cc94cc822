// Views rendered from patches of byte images in one pass: crop, mirror, resize
// (antialiased bilinear) or affine map, colour matrix, clamp, normalise, place,
// erase.
//
// Does not depend on torch: plain pointers and sizes, row-major and contiguous,
// and a parallel_for passed in. The caller has checked indices and rectangles.
#pragma once

#include <cstdint>

#include "../common/views_problem.h"
#include "threads.h"

namespace s3h::cpu {

// Each view is rendered by one thread from its own patches only: its bits do
// not depend on the number of threads or the other views.
//
// out: [views, height, width, channels].
void render_views(const ViewsProblem& problem, const Threads& threads,
                  void* out);

}  // namespace s3h::cpu
