// A block owns a view from its crop to its hole. Its two images lie in shared
// memory where they fit, and operations go back and forth between them; of
// larger images one is the output itself and the other a part of the workspace,
// and few blocks take the views in turns, so that what they work on stays in
// L2. A thread owns every 256th pixel, and one value of a table of 256.
//
//   image --crop, flip--> now <--operations--> other    hole, now --> output
//
// Tonal operations work in place, most of them through a table per channel.
// What an operation has to know of the whole image comes before it: extremes
// and sums by shuffles, a histogram by atomics in shared memory. All are whole
// numbers, so that their order does not show. Sampling positions that hold for
// the whole image are worked out by one thread.
//
// Numerics: csrc/common/augment_tones.h and augment_maps.h, one rounding per
// operation, compiled with --fmad=false: the bytes of the CPU.
#include <algorithm>
#include <climits>

#include "augment.h"
#include "augment_operations.cuh"
#include "device.cuh"

namespace s3h::cuda {
namespace {

using namespace augmentation;

constexpr int kResident = 4;  // blocks on a multiprocessor

__device__ inline int coordinate(int64_t value, const char* message) {
  if (!is_coordinate(value)) stop(message);
  return static_cast<int>(value);
}

// The image of a view from its corner on, black outside.
template <int kChannels>
__device__ inline void crop_and_flip(const AugmentProblem& p, int64_t view,
                                     int height, int width, uint8_t* to) {
  const int64_t number = p.source[view];
  if (number < 0 || number >= p.n) stop("source: an image out of range");
  const uint8_t* from = p.images + number * height * width * kChannels;
  int top = 0, left = 0;
  if (p.corners != nullptr) {
    top = coordinate(p.corners[2 * view], "corners: out of range");
    left = coordinate(p.corners[2 * view + 1], "corners: out of range");
  }
  const bool flip = p.flips != nullptr && p.flips[view];
  each_pixel(height, width, [&](int i, int y, int x) {
    copy_pixel<kChannels>(from, height, width, top + y,
                          left + (flip ? width - 1 - x : x), 0, i, to);
  });
  block_barrier();
}

template <int kChannels>
__device__ inline void cut_hole(const int64_t* hole, int height, int width,
                                uint8_t* data) {
  int sides[4];
  for (int i = 0; i < 4; ++i)
    sides[i] = coordinate(hole[i], "holes: out of range");
  const int top = sides[0] > 0 ? sides[0] : 0;
  const int left = sides[1] > 0 ? sides[1] : 0;
  const int end = sides[0] + sides[2], side = sides[1] + sides[3];
  const int rows = (end < height ? end : height) - top;
  const int columns = (side < width ? side : width) - left;
  if (rows > 0 && columns > 0)
    each_pixel(rows, columns, [&](int, int y, int x) {
      uint8_t* pixel = data + ((top + y) * width + left + x) * kChannels;
      for (int c = 0; c < kChannels; ++c) pixel[c] = 0;
    });
  block_barrier();
}

__device__ inline void copy_image(const uint8_t* from, int bytes, uint8_t* to) {
  const bool words = (reinterpret_cast<uintptr_t>(from) % 4 |
                      reinterpret_cast<uintptr_t>(to) % 4 | bytes % 4) == 0;
  if (words)
    for (int i = thread_x(); i < bytes / 4; i += kBlock)
      reinterpret_cast<uint32_t*>(to)[i] =
          reinterpret_cast<const uint32_t*>(from)[i];
  else
    for (int i = thread_x(); i < bytes; i += kBlock) to[i] = from[i];
}

template <int kChannels, bool kInShared>
__global__ void __launch_bounds__(kBlock, kResident)
    augment(AugmentProblem p, int stride, uint8_t* workspace, uint8_t* out) {
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  const auto height = static_cast<int>(p.height);
  const auto width = static_cast<int>(p.width);
  const int bytes = height * width * kChannels;
  for (int64_t view = block_x(); view < p.views; view += grid_x()) {
    uint8_t* result = out + view * bytes;
    uint8_t* now;
    uint8_t* other;
    if constexpr (kInShared) {
      now = shared_memory() + sizeof(Shared);
      other = now + stride;
    } else {
      now = result;
      other = workspace + static_cast<int64_t>(block_x()) * stride;
    }
    crop_and_flip<kChannels>(p, view, height, width, now);
    for (int64_t k = 0; k < p.steps; ++k) {
      const int64_t number = p.operations[view * p.steps + k];
      const double magnitude = p.magnitudes[view * p.steps + k];
      if (!is_operation(number)) stop("operations: no number of Operation");
      if (!is_magnitude(magnitude)) stop("magnitudes: out of range");
      const auto operation = static_cast<Operation>(number);
      if (operation == Operation::kPosterize && !is_bits(magnitude))
        stop("magnitudes: POSTERIZE needs whole bits 0 .. 8");
      if (operation == Operation::kBlur && !is_deviation(magnitude))
        stop("magnitudes: BLUR needs 0 .. 64 pixels");
      if (run<kChannels>(operation, magnitude, height, width, p.fill, shared,
                         now, other)) {
        uint8_t* before = now;
        now = other;
        other = before;
      }
    }
    if (p.holes != nullptr)
      cut_hole<kChannels>(p.holes + 4 * view, height, width, now);
    if (now != result) copy_image(now, bytes, result);
    // Before the next view's crop writes where this one was read.
    block_barrier();
  }
}

// How the views of a problem are spread over blocks.
struct Plan {
  bool in_shared;
  size_t shared_bytes;
  int stride;  // bytes from an image to the next, a multiple of 16
  int64_t blocks;
};

Plan plan_of(const AugmentProblem& p) {
  const int64_t bytes = p.height * p.width * p.channels;
  Plan plan{};
  plan.stride = static_cast<int>((bytes + 15) / 16 * 16);
  plan.shared_bytes = sizeof(Shared) + 2 * static_cast<size_t>(plan.stride);
  // Two blocks on a multiprocessor at least, or one waits for its barriers.
  plan.in_shared = plan.shared_bytes <= shared_memory_limit() / 2;
  if (plan.in_shared) {
    plan.blocks = std::min<int64_t>(p.views, INT_MAX);
  } else {
    plan.shared_bytes = sizeof(Shared);
    plan.blocks = std::min<int64_t>(p.views, kResident * multiprocessors());
  }
  return plan;
}

// Offsets of pixels are int; kLargest bounds the sides.
bool too_large(const AugmentProblem& p) {
  return p.height > kLargest || p.width > kLargest ||
         p.height * p.width * p.channels > (int64_t{1} << 30);
}

}  // namespace

size_t augment_images_workspace(const AugmentProblem& p) {
  if (too_large(p)) return 0;
  const Plan plan = plan_of(p);
  return plan.in_shared ? 0
                        : static_cast<size_t>(plan.blocks) *
                              static_cast<size_t>(plan.stride);
}

Status augment_images(const AugmentProblem& p, void* workspace, uint8_t* out,
                      Stream stream) {
  if (p.views == 0 || p.height == 0 || p.width == 0) return {};
  if (too_large(p))
    return {StatusCode::kCudaError, "images of more than 2^30 bytes"};
  const Plan plan = plan_of(p);
  const bool grey = p.channels == 1;
  const auto kernel = plan.in_shared
                          ? (grey ? augment<1, true> : augment<3, true>)
                          : (grey ? augment<1, false> : augment<3, false>);
  return launch(kernel, {plan.blocks, 1, 1}, kBlock, plan.shared_bytes, stream,
                p, plan.stride, static_cast<uint8_t*>(workspace), out);
}

}  // namespace s3h::cuda
