// Views rendered from patches of byte images in one pass: crop, mirror, resize
// (antialiased bilinear) or affine map, colour matrix, clamp, normalise, place,
// erase. The meaning of every field is that of s3h_ext/ops/patches.py.
//
// No torch in here: plain pointers and sizes, row-major and contiguous, and a
// parallel_for handed in. The caller has checked every index and rectangle.
#pragma once

#include <cstdint>

#include "similarity.h"

namespace s3h::cpu {

constexpr int64_t kLargestBoxSide = 65536;

// Pixels [height, width, channels].
struct ByteImage {
  const uint8_t* data;
  int64_t height;
  int64_t width;
};

enum class ViewType { kFloat, kBfloat16, kHalf };

struct ViewsProblem {
  const ByteImage* images;
  int64_t channels;  // 1 or 3
  int64_t patches;
  const int64_t* image;  // [patches]
  const int64_t* box;    // [patches, 4]
  const bool* flip;      // [patches] or nullptr, like all up to rect
  const float* colour;   // [patches, channels, channels + 1]
  const float* affine;   // [patches, 2, 3]
  const int64_t* view;   // [patches]
  const int64_t* rect;   // [patches, 4]
  const int64_t* erase;  // [views, 4] or nullptr
  int64_t views;
  int64_t height;
  int64_t width;
  double mean[3];
  double std[3];
  double fill;
  bool nearest;
  ViewType type;
  void* out;  // [views, height, width, channels]
};

// A view is rendered by one thread and from its own patches alone: its bits
// depend neither on the number of threads nor on the other views.
void render_views(const ViewsProblem& problem, const Threads& threads);

}  // namespace s3h::cpu
