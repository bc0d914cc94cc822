// Which patches of a view a tile of it shows, and what a patch asks for. What
// is known on the device alone, the numbers in the lists, is checked here.
#pragma once

#include <climits>

#include "device.cuh"
#include "views.h"

namespace s3h::cuda::rendering {

constexpr int64_t kFar = int64_t{1} << 48;
constexpr int64_t kMostSide = (1 << 30) - 1;  // of an image

__device__ inline int min_of(int a, int b) { return a < b ? a : b; }

struct Arguments {
  ViewsProblem problem;
  const ByteImage* table;  // [images], or nullptr: images of one size
  const int32_t* head;     // [views]: a patch of the view, or -1
  const int32_t* next;     // [patches]
  void* out;
  int64_t tiles_across, tiles;  // of a view
  float scale[3], shift[3];
};

// A rectangle of pixels of the view.
struct alignas(16) Rect {
  int top, left, height, width;
};

__device__ inline Rect rect_of(const ViewsProblem& p, int64_t patch) {
  if (p.rect == nullptr)
    return {0, 0, static_cast<int>(p.height), static_cast<int>(p.width)};
  const int64_t* r = p.rect + 4 * patch;
  if (r[0] < 0 || r[1] < 0 || r[2] < 1 || r[3] < 1 || r[2] > p.height ||
      r[0] > p.height - r[2] || r[3] > p.width || r[1] > p.width - r[3])
    stop("patches.rect: a rectangle outside of the view");
  return {static_cast<int>(r[0]), static_cast<int>(r[1]),
          static_cast<int>(r[2]), static_cast<int>(r[3])};
}

__device__ inline bool meets(const Rect& a, const Rect& b) {
  return a.top < b.top + b.height && b.top < a.top + a.height &&
         a.left < b.left + b.width && b.left < a.left + a.width;
}

__device__ inline bool covers(const Rect& a, const Rect& b) {
  return a.top <= b.top && a.left <= b.left &&
         a.top + a.height >= b.top + b.height &&
         a.left + a.width >= b.left + b.width;
}

// The patch to render after `last`: the first one behind it that meets the
// tile, or the last one that covers it all. INT_MAX: none.
__device__ inline int patch_after(const Arguments& a, int64_t view, int last,
                                  const Rect& tile) {
  const ViewsProblem& p = a.problem;
  if (p.view == nullptr) {
    const bool meant = last < 0 && meets(rect_of(p, view), tile);
    return meant ? static_cast<int>(view) : INT_MAX;
  }
  int first = INT_MAX, whole = -1;
  for (int patch = a.head[view]; patch >= 0; patch = a.next[patch]) {
    if (patch <= last) continue;
    const Rect rect = rect_of(p, patch);
    if (covers(rect, tile)) whole = patch > whole ? patch : whole;
    if (meets(rect, tile)) first = patch < first ? patch : first;
  }
  return whole >= 0 ? whole : first;
}

// A patch with its image.
struct Job {
  const uint8_t* data;
  int height, width;  // of the image
  // Rows of the image around whose bytes whole words can be read.
  int inside_first, inside_end;
  int top, left;      // of the box, cut to where it is outside of the image
  int rows, columns;  // of the box
  bool flip;
  Rect rect;
};

__device__ inline Job job_of(const Arguments& a, int64_t patch) {
  const ViewsProblem& p = a.problem;
  const int64_t number = p.image[patch];
  if (number < 0 || number >= p.images)
    stop("patches.image: an image out of range");
  const int64_t* box = p.box + 4 * patch;
  if (box[2] < 1 || box[3] < 1 || box[2] > kLargestBoxSide ||
      box[3] > kLargestBoxSide || box[0] <= -kFar || box[0] >= kFar ||
      box[1] <= -kFar || box[1] >= kFar)
    stop("patches.box: sides out of 1 .. 65536, or far from the image");
  ByteImage image = p.first;
  if (a.table != nullptr)
    image = a.table[number];
  else
    image.data += number * image.height * image.width * p.channels;
  const auto near = [](int64_t place) {
    constexpr int64_t kOutside = kMostSide + 1;
    return static_cast<int>(place < -kOutside  ? -kOutside
                            : place > kOutside ? kOutside
                                               : place);
  };
  const auto height = static_cast<int>(image.height);
  const int64_t row_bytes = image.width * p.channels;
  const auto rows_of = [&](int64_t bytes) {
    return static_cast<int>((bytes + row_bytes - 1) / row_bytes);
  };
  return {image.data,
          height,
          static_cast<int>(image.width),
          rows_of(3),
          height - rows_of(16),
          near(box[0]),
          near(box[1]),
          static_cast<int>(box[2]),
          static_cast<int>(box[3]),
          p.flip != nullptr && p.flip[patch],
          rect_of(p, patch)};
}

}  // namespace s3h::cuda::rendering
