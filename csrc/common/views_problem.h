// The patches that views are rendered from, and how. Fields are documented in
// s3h_ext/ops/patches.py; pointers, except for `list`, are to the device's own
// memory.
#pragma once

#include <cstdint>

namespace s3h {

constexpr int64_t kLargestBoxSide = 65536;

// Pixels [height, width, channels].
struct ByteImage {
  const uint8_t* data;
  int64_t height;
  int64_t width;
};

enum class ViewType { kFloat, kBfloat16, kHalf };

struct ViewsProblem {
  // Images of one size one after the other; or `list`, a list on the host of
  // images of any size, which may be freed when the call returns.
  ByteImage first;
  const ByteImage* list;
  int64_t images;
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
};

}  // namespace s3h
