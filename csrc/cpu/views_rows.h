// The inner loops of view rendering, one table of them per instruction set.
//
// A source row becomes a row of planes: floats [channels][plane], with plane a
// multiple of kPlaneStep and the first `width` the pixels of the patch. Values
// are grey levels, 0 .. 255, times the unit that the row was made with. The
// last step turns a weighted sum of such rows into finished pixels.
#pragma once

#include <cstdint>

#include "views.h"

namespace s3h::cpu {

constexpr int64_t kPlaneStep = 16;

// Unit of the horizontal weights: integers for windows of up to kMostWholeTaps
// pixels, so that 16-bit products are exact.
constexpr float kWeightUnit = 16384;
constexpr int64_t kMostWholeTaps = 64;

// Readable bytes of a source row: its pixels and this many bytes after the last
// tap's.
constexpr int64_t kRowSlack = 16;

struct RowTaps {
  int64_t width;  // outputs
  int64_t plane;
  int64_t taps;           // per output, padded with weights of 0: 2 or 4 n
  const int32_t* first;   // [width rounded up to 4] pixel of the first tap
  const float* weights;   // [width, taps]
  const uint32_t* pairs;  // or nullptr: weights as int16, see expand_pairs
};

struct RowFinish {
  int64_t width;
  int64_t plane;
  bool coloured;
  // coloured: out = clamp(colour * x, 0, 1) * scale + shift, the last column of
  // the matrix an offset; otherwise out = x * scale + shift.
  float colour[3][4];
  float scale[3];
  float shift[3];
};

struct RowKernels {
  // Whether `resize` reads pairs.
  bool pairs;
  void (*copy)(const uint8_t* row, int64_t width, bool flip, int64_t channels,
               int64_t plane, float* planes);
  void (*resize)(const RowTaps& taps, const uint8_t* row, int64_t channels,
                 float* planes);
  // out: [width, channels] of `type`.
  void (*finish)(const RowFinish& finish, const float* const* rows,
                 const float* weights, int64_t taps, int64_t channels,
                 ViewType type, void* out);
};

namespace baseline {
extern const RowKernels kRows;
}
#if defined(S3H_X86_LEVELS)
namespace avx2 {
extern const RowKernels kRows;
}
namespace avx512 {
extern const RowKernels kRows;
}
#endif

}  // namespace s3h::cpu
