// A block owns 32 x 32 pixels of a view: a warp every eighth row, a lane a
// column. It goes through the patches that touch them, in their order, and
// keeps the pixels in registers; a patch's window is separable, so a band of 32
// source rows is first filtered along its columns into shared memory, straight
// from the bytes, and every pixel then adds its share of the band's rows. The
// band bounds shared memory whatever the scale is. Finished pixels are put
// together in shared memory and leave in whole words.
//
//   source bytes --columns--> band [32 rows][channels][32] --rows--> registers
//
// Weights are not stored: a tap's is one multiply-add of its distance to the
// window's centre, and the windows (32 columns, 32 rows) are worked out once
// per patch and tile, with their sums, in double. Neighbouring taps and rows
// are read again by neighbouring lanes and blocks, out of L1 and L2.
//
// Numerics: float32 with float32 weights, grey levels as they are. A box of the
// size of its rectangle has windows of one pixel and weight 1: copied exactly.
// An affine map's points are in double. Colours are finished as on the CPU.
// Which patch is seen depends on its number alone: the list of a view's patches
// is put together by atomic exchanges in any order, and gone through in order.
#include <algorithm>
#include <climits>

#include "../common/resample.h"
#include "device.cuh"
#include "views.h"

namespace s3h::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kWarps = kBlock / 32;
constexpr int kSide = 32;  // of a tile, and rows of a band
constexpr int kRowsPerThread = kSide / kWarps;
// Whole numbers below 2^23 in float: added to the bits of 2^23.
constexpr uint32_t kMagicBits = 0x4b000000u;
constexpr float kMagic = 8388608.f;
constexpr int64_t kFar = int64_t{1} << 48;
constexpr int kListed = 64;  // images written per launch

struct Arguments {
  ViewsProblem problem;
  const ByteImage* table;  // [images], or nullptr: images of one size
  const int32_t* head;     // [views]: a patch of the view, or -1
  const int32_t* next;     // [patches]
  void* out;
  int64_t tiles_across, tiles;  // of a view
  float scale[3], shift[3];
};

__device__ inline int64_t min_of(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ inline int min_of(int a, int b) { return a < b ? a : b; }

struct ListPart {
  ByteImage images[kListed];
};

__global__ void __launch_bounds__(kListed)
    write_list(ListPart part, int count, ByteImage* to) {
#pragma unroll
  for (int i = 0; i < kListed; ++i)
    if (i == thread_x() && i < count) to[i] = part.images[i];
}

__global__ void __launch_bounds__(kBlock)
    no_patches(int32_t* head, int64_t views) {
  const int64_t v = static_cast<int64_t>(block_x()) * kBlock + thread_x();
  if (v < views) head[v] = -1;
}

__global__ void __launch_bounds__(kBlock)
    link_patches(const int64_t* view, int64_t patches, int64_t views,
                 int32_t* head, int32_t* next) {
  const int64_t p = static_cast<int64_t>(block_x()) * kBlock + thread_x();
  if (p >= patches) return;
  const int64_t v = view[p];
  if (v < 0 || v >= views) stop("patches.view: a view out of range");
  next[p] = atomic_exchange(head + v, static_cast<int32_t>(p));
}

// A rectangle of pixels of the view.
struct Rect {
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
  ByteImage image;
  int64_t top, left;
  int rows, columns;  // the box
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
  return {image,
          box[0],
          box[1],
          static_cast<int>(box[2]),
          static_cast<int>(box[3]),
          p.flip != nullptr && p.flip[patch],
          rect_of(p, patch)};
}

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

__device__ inline float to_grey_level(uint8_t byte) {
  return bits_to_float(kMagicBits | byte) - kMagic;
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
  if (row >= 0 && row < job.image.height) {
    const int64_t start = job.left + w.first;
    const uint8_t* from =
        job.image.data + (row * job.image.width + start) * kChannels;
    // Taps inside of the image.
    const int begin =
        start < 0 ? static_cast<int>(min_of(-start, int64_t{w.count})) : 0;
    const int end =
        static_cast<int>(min_of(job.image.width - start, int64_t{w.count}));
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

// One pixel of a patch that is seen through an affine map.
template <int kChannels>
__device__ inline void map(const Job& job, const float* a, int x, int y,
                           float fill, bool nearest, float (&out)[kChannels]) {
  const double across = x + 0.5, down = y + 0.5;
  const double u = a[0] * across + (a[1] * down + a[2]);
  const double v = a[3] * across + (a[4] * down + a[5]);
  // False for NaN as well.
  if (!(u >= 0 && u < job.columns && v >= 0 && v < job.rows)) {
    for (int c = 0; c < kChannels; ++c) out[c] = fill;
    return;
  }
  const auto pixel = [&](int row_in, int column_in, float (&to)[kChannels]) {
    const int r = row_in < 0 ? 0 : row_in < job.rows ? row_in : job.rows - 1;
    int x_in = column_in < 0             ? 0
               : column_in < job.columns ? column_in
                                         : job.columns - 1;
    if (job.flip) x_in = job.columns - 1 - x_in;
    const int64_t row = job.top + r, column = job.left + x_in;
    const bool known = row >= 0 && row < job.image.height && column >= 0 &&
                       column < job.image.width;
    for (int c = 0; c < kChannels; ++c)
      to[c] =
          known
              ? to_grey_level(
                    job.image
                        .data[(row * job.image.width + column) * kChannels + c])
              : 0.f;
  };
  if (nearest) {
    pixel(static_cast<int>(v), static_cast<int>(u), out);
    return;
  }
  const int row = static_cast<int>(v + 0.5) - 1;
  const int column = static_cast<int>(u + 0.5) - 1;
  const auto lower_share = static_cast<float>(v - 0.5 - row);
  const auto right_share = static_cast<float>(u - 0.5 - column);
  float a00[kChannels], a01[kChannels], a10[kChannels], a11[kChannels];
  pixel(row, column, a00);
  pixel(row, column + 1, a01);
  pixel(row + 1, column, a10);
  pixel(row + 1, column + 1, a11);
  for (int c = 0; c < kChannels; ++c) {
    const float upper = a00[c] + right_share * (a01[c] - a00[c]);
    const float lower = a10[c] + right_share * (a11[c] - a10[c]);
    out[c] = upper + lower_share * (lower - upper);
  }
}

// Grey levels to pixels in [0, 1] through the colour matrix; NaN passes.
template <int kChannels>
__device__ inline void colour(const float* matrix, float (&pixel)[kChannels]) {
  float result[kChannels];
  for (int c = 0; c < kChannels; ++c) {
    const float* row = matrix + c * (kChannels + 1);
    float x = row[kChannels];
    for (int k = 0; k < kChannels; ++k) x += pixel[k] * (row[k] * (1 / 255.f));
    x = x < 0.f ? 0.f : x;
    result[c] = x > 1.f ? 1.f : x;
  }
  for (int c = 0; c < kChannels; ++c) pixel[c] = result[c];
}

// The pixels of the view that an erasing rectangle, which may be anywhere,
// takes away. Sums in double cannot overflow.
__device__ inline bool erased(const int64_t* rect, int y, int x) {
  const auto inside = [](int64_t start, int64_t size, int at) {
    return at >= start &&
           static_cast<double>(at) <
               static_cast<double>(start) + static_cast<double>(size);
  };
  return inside(rect[0], rect[2], y) && inside(rect[1], rect[3], x);
}

template <int kChannels, bool kAffine>
// Four blocks a multiprocessor, and so 64 registers.
__global__ void __launch_bounds__(kBlock, 4) render(Arguments a) {
  const ViewsProblem& p = a.problem;
  const int64_t view = block_x() / a.tiles, number = block_x() % a.tiles;
  const auto height = static_cast<int>(p.height);
  const auto width = static_cast<int>(p.width);
  Rect tile{static_cast<int>(number / a.tiles_across) * kSide,
            static_cast<int>(number % a.tiles_across) * kSide, 0, 0};
  tile.height = min_of(kSide, height - tile.top);
  tile.width = min_of(kSide, width - tile.left);
  const int lane = thread_x() % 32, warp = thread_x() / 32;
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());

  Pixels<kChannels> seen;  // normalised but for mean and std
  for (int k = 0; k < kRowsPerThread; ++k)
    for (int c = 0; c < kChannels; ++c) seen[k][c] = 0.f;
  const int x = tile.left + lane;
  for (int patch = patch_after(a, view, -1, tile); patch != INT_MAX;
       patch = patch_after(a, view, patch, tile)) {
    const Job job = job_of(a, patch);
    Pixels<kChannels> pixels;
    if constexpr (!kAffine) resize<kChannels>(job, tile, shared, pixels);
#pragma unroll
    for (int k = 0; k < kRowsPerThread; ++k) {
      const int y = tile.top + k * kWarps + warp;
      if (y < job.rect.top || y >= job.rect.top + job.rect.height ||
          x < job.rect.left || x >= job.rect.left + job.rect.width)
        continue;
      if constexpr (kAffine)
        map<kChannels>(job, p.affine + 6 * patch, x - job.rect.left,
                       y - job.rect.top, static_cast<float>(255 * p.fill),
                       p.nearest, pixels[k]);
      if (p.colour != nullptr)
        colour<kChannels>(p.colour + patch * kChannels * (kChannels + 1),
                          pixels[k]);
      for (int c = 0; c < kChannels; ++c) seen[k][c] = pixels[k][c];
    }
  }

  // Through shared memory, so that neighbouring lanes write neighbouring words.
  const bool wide = p.type == ViewType::kFloat;
  const int row_bytes = tile.width * kChannels * (wide ? 4 : 2);
  auto* rows = reinterpret_cast<unsigned char*>(shared.band);
  block_barrier();
#pragma unroll
  for (int k = 0; k < kRowsPerThread; ++k) {
    const int own = k * kWarps + warp;
    if (own >= tile.height || lane >= tile.width) continue;
    const bool gone =
        p.erase != nullptr && erased(p.erase + 4 * view, tile.top + own, x);
    for (int c = 0; c < kChannels; ++c) {
      const float value = gone ? 0.f : seen[k][c] * a.scale[c] + a.shift[c];
      unsigned char* to = rows + own * row_bytes;
      const int at = lane * kChannels + c;
      if (wide)
        reinterpret_cast<float*>(to)[at] = value;
      else
        reinterpret_cast<uint16_t*>(to)[at] = static_cast<uint16_t>(
            p.type == ViewType::kHalf ? pack_fp16(value, 0.f)
                                      : pack_bf16(value, 0.f));
    }
  }
  block_barrier();
  const int64_t pixel_bytes = kChannels * (wide ? 4 : 2);
  auto* out = static_cast<unsigned char*>(a.out);
  const int64_t start =
      ((view * height + tile.top) * width + tile.left) * pixel_bytes;
  const int64_t step = width * pixel_bytes;
  // Of 16-bit elements a row may start or end in the middle of a word.
  const bool words = start % 4 == 0 && step % 4 == 0 && row_bytes % 4 == 0;
  const int per_row = row_bytes / (words ? 4 : 2);
  for (int own = warp; own < tile.height; own += kWarps)
    for (int i = lane; i < per_row; i += 32) {
      unsigned char* to = out + start + own * step;
      const unsigned char* from = rows + own * row_bytes;
      if (words)
        reinterpret_cast<uint32_t*>(to)[i] =
            reinterpret_cast<const uint32_t*>(from)[i];
      else
        reinterpret_cast<uint16_t*>(to)[i] =
            reinterpret_cast<const uint16_t*>(from)[i];
    }
}

int64_t blocks_of(int64_t count, int64_t size) {
  return (count + size - 1) / size;
}

size_t list_bytes(const ViewsProblem& p) {
  return p.list == nullptr ? 0
                           : sizeof(ByteImage) * static_cast<size_t>(p.images);
}

// The list of images into device memory: as launch parameters, which a graph
// keeps and nobody waits for.
Status write_images(const ViewsProblem& p, ByteImage* table, Stream stream) {
  for (int64_t first = 0; first < p.images; first += kListed) {
    ListPart part{};
    const auto count =
        static_cast<int>(std::min<int64_t>(kListed, p.images - first));
    std::copy(p.list + first, p.list + first + count, part.images);
    const Status status = launch(write_list, {1, 1, 1}, kListed, 0, stream,
                                 part, count, table + first);
    if (!status.ok()) return status;
  }
  return {};
}

}  // namespace

size_t render_views_workspace(const ViewsProblem& p) {
  const size_t links =
      p.view == nullptr ? 0 : 4 * static_cast<size_t>(p.views + p.patches);
  return list_bytes(p) + links;
}

Status render_views(const ViewsProblem& p, void* workspace, void* out,
                    Stream stream) {
  if (p.views == 0) return {};
  if (p.patches > INT_MAX || p.height > INT_MAX / 2 || p.width > INT_MAX / 2)
    return {StatusCode::kCudaError,
            "more than 2^31 patches or pixels in a row"};
  Arguments a{};
  a.problem = p;
  a.out = out;
  a.tiles_across = blocks_of(p.width, kSide);
  a.tiles = a.tiles_across * blocks_of(p.height, kSide);
  for (int64_t c = 0; c < p.channels; ++c) {
    const double range = p.colour != nullptr ? 1 : 255;
    a.scale[c] = static_cast<float>(1 / (range * p.std[c]));
    a.shift[c] = static_cast<float>(-p.mean[c] / p.std[c]);
  }
  Status status;
  auto* work = static_cast<unsigned char*>(workspace);
  if (p.list != nullptr) {
    auto* table = reinterpret_cast<ByteImage*>(work);
    status = write_images(p, table, stream);
    a.table = table;
  }
  if (status.ok() && p.view != nullptr) {
    auto* head = reinterpret_cast<int32_t*>(work + list_bytes(p));
    auto* next = head + p.views;
    status = launch(no_patches, {blocks_of(p.views, kBlock), 1, 1}, kBlock, 0,
                    stream, head, p.views);
    if (status.ok() && p.patches > 0)
      status =
          launch(link_patches, {blocks_of(p.patches, kBlock), 1, 1}, kBlock, 0,
                 stream, p.view, p.patches, p.views, head, next);
    a.head = head;
    a.next = next;
  }
  if (!status.ok()) return status;
  const Grid grid{p.views * a.tiles, 1, 1};
  const bool grey = p.channels == 1, mapped = p.affine != nullptr;
  const auto kernel = grey ? (mapped ? render<1, true> : render<1, false>)
                           : (mapped ? render<3, true> : render<3, false>);
  return launch(kernel, grid, kBlock, sizeof(Shared), stream, a);
}

}  // namespace s3h::cuda
