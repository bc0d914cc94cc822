// A thread owns a view. Its box is a pure function of the view's address, so
// neither the cut into blocks nor the order can matter. Warps wait for their
// slowest lane: a resized crop that misses tries again, and each try is a
// Taylor series with 18 divisions in sequence. Blocks are single warps, so that
// the few warps of a batch lie on as many multiprocessors.
//
// Numerics: double, one rounding per operation (csrc/common/exact.h), compiled
// with --fmad=false: the bits of the CPU.
#include "../common/boxes.h"
#include "device.cuh"
#include "view_boxes.h"

namespace s3h::cuda {
namespace {

constexpr int kBlock = 32;

__global__ void __launch_bounds__(kBlock)
    draw_boxes(ViewBoxProblem p, BoxConstraint constraint, int64_t* boxes,
               bool* fallback) {
  const int64_t i = static_cast<int64_t>(block_x()) * kBlock + thread_x();
  if (i >= p.count) return;
  const DrawAddress address{static_cast<uint32_t>(p.seed),
                            static_cast<uint32_t>(p.epoch),
                            static_cast<uint64_t>(p.sample_index[i]),
                            static_cast<uint32_t>(p.view[i * p.view_step]),
                            static_cast<uint32_t>(p.stream)};
  const int64_t* size = p.sizes + i * p.sizes_step;
  const DrawnBox drawn = draw_box(constraint, address, size[0], size[1]);
  int64_t* to = boxes + 4 * i;
  to[0] = drawn.box.top;
  to[1] = drawn.box.left;
  to[2] = drawn.box.height;
  to[3] = drawn.box.width;
  fallback[i] = drawn.fallback;
}

}  // namespace

Status draw_view_boxes(const ViewBoxProblem& p, int64_t* boxes, bool* fallback,
                       Stream stream) {
  BoxConstraint read;
  if (read_constraint(p.constraint, &read) >= 0)
    return {StatusCode::kCudaError, "constraint: a number is out of its range"};
  if (p.count == 0) return {};
  return launch(draw_boxes, {(p.count + kBlock - 1) / kBlock, 1, 1}, kBlock, 0,
                stream, p, read, boxes, fallback);
}

}  // namespace s3h::cuda
