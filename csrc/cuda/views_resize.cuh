// A warp's pixels of a patch that is resized into its rectangle: 32 columns, a
// lane each, of kRows rows. Nothing is staged: a warp goes down the rows of the
// image under its pixels, filters each along the columns and adds it to the
// rows of pixels that it has a part in. A lane takes the bytes of kTaps pixels
// from aligned words, those of several rows before it uses the first; its
// neighbours and the warp below read most of them again, out of L1.
//
// Weights are not stored: a tap's is one multiply-add of its distance to the
// window's centre, and the windows are worked out once per patch and block,
// with their sums, in double.
//
// A byte's bits, as a float, are the byte times 2^-149. Weights times 2^126 and
// sums times 2^23 make up for it without another rounding.
#pragma once

#include "../common/resample.h"
#include "views_pixels.cuh"

namespace s3h::cuda::rendering {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kRows = 4;                   // of pixels, one below the other
constexpr int kTileRows = kRows * kWarps;  // of a block
// A block has a window per thread: the last warp's are of the rows.
constexpr int kGroups = kWarps - 1;
constexpr int kTileColumns = 32 * kGroups;
constexpr int kAhead = 2;          // rows of the image loaded at a time
constexpr int kBand = 32 / kRows;  // rows of the image weighted at a time

constexpr float kWeightUnit = 0x1p126f;
constexpr float kSumUnit = 0x1p23f;

// The window of an output, in pixels of the box.
struct alignas(16) Window {
  int first;
  int count;     // 0: no output
  float centre;  // from `first`
  float factor;  // 1 / the sum of the weights
};

struct alignas(16) RowWeights {
  float of[kRows];
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

// In a unit, which `inverse` has too.
__device__ inline float weight_of(const Window& w, int tap, float inverse,
                                  float unit = 1.f) {
  return unit - magnitude(static_cast<float>(tap) - w.centre) * inverse;
}

// What a block knows of the patch that it renders.
struct Shared {
  Window windows[kBlock];  // of the tile's columns, then of its rows
  RowWeights weights[kWarps][kBand];
  int first[kWarps], end[kWarps];  // rows of the box for a warp
  // Finished pixels of a warp, until they leave in whole words.
  float rows[kWarps][kRows][32 * 3];
  alignas(16) float colour[12];  // of colour_factor
  float inverse_across, inverse_down;
  Rect tile;    // the block's
  Rect erased;  // of the view
  int64_t view;
  int ready;   // the patch that the rest is of
  bool alone;  // the tile shows nothing else
  bool plain;  // it covers the tile, all of it float32 and nothing erased
  Job job;
};

// The windows of the tile's columns and rows. All threads of the block.
__device__ inline void find_windows(Shared& shared) {
  const Rect tile = shared.tile;
  const Job& job = shared.job;
  const int t = thread_x();
  const bool is_row = t >= kTileColumns;
  const int outputs = is_row ? job.rect.height : job.rect.width;
  const int size = is_row ? job.rows : job.columns;
  const int own = is_row ? tile.top + t - kTileColumns : tile.left + t;
  const int at = own - (is_row ? job.rect.top : job.rect.left);
  const int end = is_row ? tile.top + tile.height : tile.left + tile.width;
  Window w{0, 0, 0.f, 0.f};
  if (at >= 0 && at < outputs && own < end)
    w = window_of(job.flip && !is_row ? outputs - 1 - at : at, outputs, size);
  shared.windows[t] = w;
  if (t == 0 || t == kTileColumns) {
    const float inverse =
        size > outputs ? static_cast<float>(static_cast<double>(outputs) /
                                            static_cast<double>(size))
                       : 1.f;
    (is_row ? shared.inverse_down : shared.inverse_across) = inverse;
  }
}

// The rows of the box under each warp's pixels, as far as they are in the
// image: black is left out. After find_windows and a barrier; all lanes of a
// warp.
__device__ inline void find_rows(Shared& shared) {
  const Job& job = shared.job;
  const int warp = thread_x() / 32;
  if (thread_x() % 32 == 0) {
    // Windows rise with their outputs.
    int first = INT_MAX, end = 0;
    for (int k = 0; k < kRows; ++k) {
      const Window w = shared.windows[kTileColumns + kRows * warp + k];
      if (w.count == 0) continue;
      first = min_of(first, w.first);
      end = w.first + w.count;
    }
    shared.first[warp] = first < -job.top ? -job.top : first;
    shared.end[warp] = min_of(end, job.height - job.top);
  }
  warp_barrier();
}

template <int kChannels>
using Pixels = float[kRows][kChannels];

// kTaps neighbouring pixels of every row, from a tap of the lane's window on.
template <int kChannels, int kTaps>
struct Taps {
  float weight[kTaps];  // 0: not of these taps, or outside of the image
  int column;           // of the first
};

template <int kChannels, int kTaps>
__device__ inline Taps<kChannels, kTaps> taps_of(const Shared& shared,
                                                 const Window& across,
                                                 int tap) {
  const Job& job = shared.job;
  // Moved into the image, where kTaps pixels can be read.
  const int begin = job.left + across.first + tap;
  int column = min_of(begin, job.width - kTaps);
  if (column < 0) column = 0;
  Taps<kChannels, kTaps> taps;
  const int known = min_of(across.count - tap, job.width - begin);
  const float inverse = shared.inverse_across * kWeightUnit;
#pragma unroll
  for (int t = 0; t < kTaps; ++t) {
    const int own = column - begin + t;
    taps.weight[t] = own >= 0 && own < min_of(kTaps, known)
                         ? weight_of(across, tap + own, inverse, kWeightUnit)
                         : 0.f;
  }
  taps.column = column;
  return taps;
}

// The bytes of the taps in kLoads rows, as words that begin at the first.
template <int kChannels, int kTaps, int kLoads>
struct Words {
  static constexpr int kBytes = kTaps * kChannels;
  static constexpr int kCount = (kBytes + 3 + 3) / 4;
  uint32_t at[kLoads][kCount], shift[kLoads];
};

// Loads `count` rows from `from` on. It is 0 for a single row, the aligned
// words around whose bytes are not all of the image.
template <int kChannels, int kTaps, int kLoads>
__device__ inline void load_rows(const Job& job,
                                 const Taps<kChannels, kTaps>& taps,
                                 const uint8_t* from, uint32_t row_bytes,
                                 int count,
                                 Words<kChannels, kTaps, kLoads>& words) {
  using Own = Words<kChannels, kTaps, kLoads>;
  from += taps.column * kChannels;
  if (count > 0) {
#pragma unroll
    for (int j = 0; j < kLoads; ++j, from += row_bytes) {
      if (j >= count) break;
      const auto address = reinterpret_cast<uintptr_t>(from);
      const auto* word =
          reinterpret_cast<const uint32_t*>(address & ~uintptr_t{3});
      words.shift[j] = static_cast<uint32_t>(address) * 8;
#pragma unroll
      for (int i = 0; i < Own::kCount; ++i)
        words.at[j][i] = read_only(word + i);
    }
  } else {
    const int known = (job.width - taps.column) * kChannels;
    words.shift[0] = 0;
    for (int i = 0; i < Own::kCount; ++i) words.at[0][i] = 0;
#pragma unroll
    for (int b = 0; b < Own::kBytes; ++b)
      if (b < known)
        words.at[0][b / 4] |= uint32_t{read_only(from + b)} << b % 4 * 8;
  }
}

// Adds the taps of loaded row j.
template <int kChannels, int kTaps, int kLoads>
__device__ inline void filter_row(const Taps<kChannels, kTaps>& taps,
                                  const Words<kChannels, kTaps, kLoads>& words,
                                  int j, float (&sum)[kChannels]) {
  using Own = Words<kChannels, kTaps, kLoads>;
  uint32_t bytes[Own::kCount];
#pragma unroll
  for (int i = 0; 4 * i < Own::kBytes; ++i)
    bytes[i] = funnel_right(words.at[j][i],
                            i + 1 < Own::kCount ? words.at[j][i + 1] : 0u,
                            words.shift[j]);
#pragma unroll
  for (int t = 0; t < kTaps; ++t)
    for (int c = 0; c < kChannels; ++c) {
      const int b = t * kChannels + c;
      sum[c] += taps.weight[t] * bits_to_float(byte_of(bytes[b / 4], b % 4));
    }
}

// Adds the rows [first, end) of the box, which are in the image. No lane's
// window has more than kTaps pixels; or, kMore, any has any number.
template <int kChannels, int kTaps, bool kMore>
__device__ inline void add_rows(Shared& shared, const Window& across, int first,
                                int end, int lane, int warp,
                                Pixels<kChannels>& pixels) {
  constexpr int kLoads = kMore ? 1 : kAhead;  // registers are short
  const Job& job = shared.job;
  Taps<kChannels, kTaps> taps;
  if constexpr (!kMore) taps = taps_of<kChannels, kTaps>(shared, across, 0);
  const float factor = across.factor * kSumUnit;
  const auto row_bytes = static_cast<uint32_t>(job.width) * kChannels;
  const uint8_t* from =
      job.data + (int64_t{job.top} + first) * static_cast<int64_t>(row_bytes);
  RowWeights* weights = shared.weights[warp];
  for (int band = first; band < end; band += kBand) {
    const Window down =
        shared.windows[kTileColumns + kRows * warp + lane % kRows];
    const int at = band + lane / kRows - down.first;
    warp_barrier();  // those before are read
    weights[lane / kRows].of[lane % kRows] =
        at >= 0 && at < down.count
            ? weight_of(down, at, shared.inverse_down) * down.factor
            : 0.f;
    warp_barrier();
    const int rows = min_of(kBand, end - band);
    const int inside_first = job.inside_first - job.top - band;
    const int inside_end = min_of(job.inside_end - job.top - band, rows);
    int row = 0;
    const auto add_row = [&](float (&sum)[kChannels]) {
      const RowWeights own = weights[row];
      for (int c = 0; c < kChannels; ++c) sum[c] *= factor;
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        for (int c = 0; c < kChannels; ++c) pixels[k][c] += own.of[k] * sum[c];
      ++row;
      from += row_bytes;
    };
    while (row < rows) {
      const int count =
          row >= inside_first && row < inside_end ? inside_end - row : 0;
      Words<kChannels, kTaps, kLoads> words;
      if constexpr (kMore) {
        float sum[kLoads][kChannels] = {};
        for (int tap = 0; warp_any(tap < across.count); tap += kTaps) {
          taps = taps_of<kChannels, kTaps>(shared, across, tap);
          load_rows(job, taps, from, row_bytes, count, words);
#pragma unroll
          for (int j = 0; j < kLoads; ++j) {
            if (j > 0 && j >= count) break;
            filter_row(taps, words, j, sum[j]);
          }
        }
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
          if (j > 0 && j >= count) break;
          add_row(sum[j]);
        }
      } else {
        load_rows(job, taps, from, row_bytes, count, words);
#pragma unroll
        for (int j = 0; j < kLoads; ++j) {
          if (j > 0 && j >= count) break;
          float sum[kChannels] = {};
          filter_row(taps, words, j, sum);
          add_row(sum);
        }
      }
    }
  }
}

// The warp's pixels in a group of 32 columns.
template <int kChannels>
__device__ inline void resize(Shared& shared, int group, int lane, int warp,
                              Pixels<kChannels>& pixels) {
  for (int k = 0; k < kRows; ++k)
    for (int c = 0; c < kChannels; ++c) pixels[k][c] = 0.f;
  const int first = shared.first[warp], end = shared.end[warp];
  if (first >= end) return;
  const Window across = shared.windows[group * 32 + lane];
  if (!warp_any(across.count > 3))
    add_rows<kChannels, 3, false>(shared, across, first, end, lane, warp,
                                  pixels);
  else if (!warp_any(across.count > 4))
    add_rows<kChannels, 4, false>(shared, across, first, end, lane, warp,
                                  pixels);
  else
    add_rows<kChannels, 4, true>(shared, across, first, end, lane, warp,
                                 pixels);
}

}  // namespace s3h::cuda::rendering
