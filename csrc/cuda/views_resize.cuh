// The pixels of a tile in a patch that is resized into its rectangle.
//
// Weights are not stored: a tap's is one multiply-add of its distance to the
// window's centre, and the windows (32 columns, 32 rows) are worked out once
// per patch and tile, with their sums, in double. Neighbouring taps and rows
// are read again by neighbouring lanes and blocks, out of L1 and L2.
#pragma once

#include "../common/resample.h"
#include "views_pixels.cuh"

namespace s3h::cuda::rendering {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kSide = 32;  // of a tile, and rows of a band
constexpr int kRowsPerThread = kSide / kWarps;

__device__ inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int min_of(int a, int b) { return a < b ? a : b; }

// The window of an output, in pixels of the box.
struct Window {
  int first;
  int count;     // 0: no output
  float centre;  // from `first`
  float factor;  // 1 / the sum of the weights
};

__device__ inline Window window_of(int i, int outputs, int size) {
  const ResampleWindow w = resample_window(i, outputs, size);
  // The weights left and right of the centre are arithmetic series.
  const double centre = w.centre - static_cast<double>(w.first);
  const auto count = static_cast<double>(w.count);
  double left = static_cast<double>(static_cast<int64_t>(centre + 1));
  if (centre < 0) left = 0;
  if (left > count) left = count;
  const double right = count - left;
  const double sum =
      left * (1 - (centre - (left - 1) / 2) * w.inverse) +
      right * (1 - ((left + count - 1) / 2 - centre) * w.inverse);
  return {static_cast<int>(w.first), static_cast<int>(w.count),
          static_cast<float>(centre), static_cast<float>(1 / sum)};
}

__device__ inline float weight_of(const Window& w, int tap, float inverse) {
  return 1.f - magnitude(static_cast<float>(tap) - w.centre) * inverse;
}

struct Shared {
  float band[kSide * 3 * kSide];  // [row][channel][column]; finished pixels
  Window across[kSide], down[kSide];
};

// Sums of a source row's pixels under a window; black outside of the image.
template <int kChannels>
__device__ inline void filter_row(const Job& job, int64_t row, const Window& w,
                                  float inverse, float (&out)[kChannels]) {
  float sum[kChannels] = {};
  const int64_t start = job.left + w.first, right = job.image.width - start;
  if (row >= 0 && row < job.image.height && right > 0 && start > -w.count) {
    const uint8_t* from =
        job.image.data + (row * job.image.width + start) * kChannels;
    // Taps inside of the image.
    const int begin = start < 0 ? static_cast<int>(-start) : 0;
    const int end = static_cast<int>(min_of(right, int64_t{w.count}));
#pragma unroll 4
    for (int t = begin; t < end; ++t) {
      const float weight = weight_of(w, t, inverse);
      for (int c = 0; c < kChannels; ++c)
        sum[c] += weight * to_grey_level(from[t * kChannels + c]);
    }
  }
  for (int c = 0; c < kChannels; ++c) out[c] = sum[c] * w.factor;
}

template <int kChannels>
using Pixels = float[kRowsPerThread][kChannels];

// The thread's pixels of a patch that is resized into its rectangle. All
// threads of the block.
template <int kChannels>
__device__ inline void resize(const Job& job, const Rect& tile, Shared& shared,
                              Pixels<kChannels>& pixels) {
  const int lane = thread_x() % 32, warp = thread_x() / 32;
  const auto inverse = [](int size, int outputs) {
    return size > outputs ? static_cast<float>(static_cast<double>(outputs) /
                                               static_cast<double>(size))
                          : 1.f;
  };
  const float inverse_across = inverse(job.columns, job.rect.width);
  const float inverse_down = inverse(job.rows, job.rect.height);
  // Those that read the windows and the band of a patch before are done.
  block_barrier();
  if (warp < 2) {
    Window w{0, 0, 0.f, 0.f};
    if (warp == 0) {
      const int x = tile.left + lane - job.rect.left;
      if (x >= 0 && x < job.rect.width)
        w = window_of(job.flip ? job.rect.width - 1 - x : x, job.rect.width,
                      job.columns);
      shared.across[lane] = w;
    } else {
      const int y = tile.top + lane - job.rect.top;
      if (y >= 0 && y < job.rect.height && lane < tile.height)
        w = window_of(y, job.rect.height, job.rows);
      shared.down[lane] = w;
    }
  }
  block_barrier();
  // Windows rise with their outputs.
  const int top = job.rect.top > tile.top ? job.rect.top - tile.top : 0;
  const int bottom =
      min_of(job.rect.top + job.rect.height - tile.top, tile.height) - 1;
  const int first = shared.down[top].first;
  const int end = shared.down[bottom].first + shared.down[bottom].count;
  const Window across = shared.across[lane];
  for (int k = 0; k < kRowsPerThread; ++k)
    for (int c = 0; c < kChannels; ++c) pixels[k][c] = 0.f;
  for (int start = first; start < end; start += kSide) {
    const int stop_at = end - start < kSide ? end : start + kSide;
    for (int row = start + warp; row < stop_at; row += kWarps) {
      float sum[kChannels];
      filter_row<kChannels>(job, job.top + row, across, inverse_across, sum);
      for (int c = 0; c < kChannels; ++c)
        shared.band[((row - start) * kChannels + c) * kSide + lane] = sum[c];
    }
    block_barrier();
#pragma unroll
    for (int k = 0; k < kRowsPerThread; ++k) {
      const Window down = shared.down[k * kWarps + warp];
      const int from = down.first > start ? down.first : start;
      const int to =
          down.first + down.count < stop_at ? down.first + down.count : stop_at;
      for (int row = from; row < to; ++row) {
        const float weight =
            weight_of(down, row - down.first, inverse_down) * down.factor;
        for (int c = 0; c < kChannels; ++c)
          pixels[k][c] +=
              weight *
              shared.band[((row - start) * kChannels + c) * kSide + lane];
      }
    }
    block_barrier();
  }
}

}  // namespace s3h::cuda::rendering
