// A block owns 224 columns x 32 rows of a view: a warp four of the rows, which
// it goes along by 32 columns, a lane each. For these it goes through the
// patches that touch them, in their order, and puts finished pixels into shared
// memory, where a later patch covers an earlier one; then they leave in whole
// words. What a patch asks for, its windows and its colours are worked out
// once, by the block, as long as the next group of columns shows the same
// patch. A patch that is all the tile shows is looked up once; one that covers
// it needs no checks per pixel.
//
//   words of bytes --columns--> registers --rows--> registers --> shared -->
//   view
//
// Numerics: float32 with float32 weights, grey levels as they are. A box of the
// size of its rectangle has windows of one pixel and weight 1: copied exactly.
// An affine map's points are in double. Colours are finished as on the CPU.
// Which patch is seen depends on its number alone: the list of a view's patches
// is put together by atomic exchanges in any order, and gone through in order.
#include <algorithm>
#include <climits>

#include "views_resize.cuh"

namespace s3h::cuda {
namespace {

using namespace rendering;

struct alignas(16) Word16 {
  uint32_t part[4];
};

constexpr int kListed = 64;  // images written per launch

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

// What the block has to know of a patch, into shared memory.
template <int kChannels, bool kAffine>
__device__ inline void prepare(const Arguments& a, int patch, Shared& shared) {
  constexpr int kMatrix = kChannels * (kChannels + 1);
  const float* matrix = a.problem.colour;
  int t = thread_x();
  forget_value(t);  // as in render
  block_barrier();  // the patch before is done with
  if (t == 0) {
    shared.job = job_of(a, patch);
    shared.ready = patch;
    const bool whole = covers(shared.job.rect, shared.tile);
    shared.alone =
        whole && patch_after(a, shared.view, patch, shared.tile) == INT_MAX;
    shared.plain = whole && a.problem.type == ViewType::kFloat &&
                   !meets(shared.erased, shared.tile);
  }
  if (matrix != nullptr && t < kMatrix)
    shared.colour[t] =
        colour_factor<kChannels>(matrix + int64_t{patch} * kMatrix, t);
  block_barrier();
  if constexpr (!kAffine) {
    find_windows(shared);
    block_barrier();
    find_rows(shared);
  }
}

// Rows of bytes from shared memory, in words.
template <typename Word>
__device__ inline void copy_rows(const float (&rows)[kRows][32 * 3], int count,
                                 int row_bytes, int lane, unsigned char* to,
                                 int64_t step) {
  // Of the longest words a row has at most one for each lane.
  constexpr int kSize = sizeof(Word);
#pragma unroll 1
  for (int i = lane; i < row_bytes / kSize; i += 32) {
#pragma unroll
    for (int k = 0; k < kRows; ++k)
      if (k < count)
        reinterpret_cast<Word*>(to + k * step)[i] =
            reinterpret_cast<const Word*>(rows[k])[i];
  }
}

// A finished pixel of the warp's row k, or 0 where the view is erased.
template <int kChannels>
__device__ inline void put(const Arguments& a, Shared& shared, int group,
                           int lane, int warp, int k,
                           const float (&pixel)[kChannels]) {
  float value[kChannels];
  for (int c = 0; c < kChannels; ++c)
    value[c] = pixel[c] * a.scale[c] + a.shift[c];
  if (a.problem.erase != nullptr) {
    const Rect tile = shared.tile, erased = shared.erased;
    const int down = tile.top + kRows * warp + k - erased.top;
    const int across = tile.left + 32 * group + lane - erased.left;
    if (down >= 0 && down < erased.height && across >= 0 &&
        across < erased.width)
      for (int c = 0; c < kChannels; ++c) value[c] = 0.f;
  }
  float* to = shared.rows[warp][k];
  const int at = lane * kChannels;
  if (a.problem.type == ViewType::kFloat)
    for (int c = 0; c < kChannels; ++c) to[at + c] = value[c];
  else
    for (int c = 0; c < kChannels; ++c)
      reinterpret_cast<uint16_t*>(to)[at + c] = static_cast<uint16_t>(
          a.problem.type == ViewType::kHalf ? pack_fp16(value[c], 0.f)
                                            : pack_bf16(value[c], 0.f));
}

// The part of a patch that the warp's pixels show.
template <int kChannels, bool kAffine>
__device__ inline void show(const Arguments& a, Shared& shared, int group,
                            int lane, int warp) {
  const ViewsProblem& p = a.problem;
  Pixels<kChannels> pixels;
  if constexpr (!kAffine) {
    resize<kChannels>(shared, group, lane, warp, pixels);
    forget_loads();
    if (p.colour != nullptr) colour(shared.colour, pixels);
    if (shared.plain) {
      float (&rows)[kRows][32 * 3] = shared.rows[warp];
      for (int k = 0; k < kRows; ++k)
        for (int c = 0; c < kChannels; ++c)
          rows[k][lane * kChannels + c] =
              pixels[k][c] * a.scale[c] + a.shift[c];
      return;
    }
  }
  const Job& job = shared.job;
  const int x = shared.tile.left + 32 * group + lane - job.rect.left;
  const int top = shared.tile.top + kRows * warp - job.rect.top;
#pragma unroll(kAffine ? 1 : kRows)
  for (int k = 0; k < kRows; ++k) {
    const int y = top + k;
    if (y < 0 || y >= job.rect.height || x < 0 || x >= job.rect.width) continue;
    if constexpr (kAffine) {
      float pixel[1][kChannels];
      map<kChannels>(job, p.affine + int64_t{6} * shared.ready, x, y,
                     static_cast<float>(255 * p.fill), p.nearest, pixel[0]);
      if (p.colour != nullptr) colour(shared.colour, pixel);
      put<kChannels>(a, shared, group, lane, warp, k, pixel[0]);
    } else {
      put<kChannels>(a, shared, group, lane, warp, k, pixels[k]);
    }
  }
}

// The warp's finished pixels: neighbouring lanes write neighbouring words.
template <int kChannels>
__device__ inline void write(const Arguments& a, const Shared& shared,
                             int group, int lane, int warp) {
  const ViewsProblem& p = a.problem;
  const Rect tile = shared.tile;
  int pixel_bytes = kChannels * (p.type == ViewType::kFloat ? 4 : 2);
  forget_value(pixel_bytes);  // as in render
  const int top = tile.top + kRows * warp, left = tile.left + 32 * group;
  const int64_t step = p.width * pixel_bytes;
  unsigned char* to =
      static_cast<unsigned char*>(a.out) +
      ((shared.view * p.height + top) * p.width + left) * pixel_bytes;
  const int count = min_of(kRows, static_cast<int>(p.height) - top);
  const int row_bytes = min_of(32, tile.width - 32 * group) * pixel_bytes;
  const float (&rows)[kRows][32 * 3] = shared.rows[warp];
  // Of 16-bit elements a row may start or end in the middle of a word.
  const auto ends = reinterpret_cast<uintptr_t>(to) |
                    static_cast<uintptr_t>(step) |
                    static_cast<uintptr_t>(row_bytes);
  if (ends % 16 == 0)
    copy_rows<Word16>(rows, count, row_bytes, lane, to, step);
  else if (ends % 4 == 0)
    copy_rows<uint32_t>(rows, count, row_bytes, lane, to, step);
  else
    copy_rows<uint16_t>(rows, count, row_bytes, lane, to, step);
}

template <int kChannels, bool kAffine>
// Three blocks a multiprocessor, and so 80 registers.
__global__ void __launch_bounds__(kBlock, 3) render(Arguments a) {
  const ViewsProblem& p = a.problem;
  auto& shared = *reinterpret_cast<Shared*>(shared_memory());
  if (thread_x() == 0) {
    const auto height = static_cast<int>(p.height);
    const auto width = static_cast<int>(p.width);
    const int64_t view = block_x() / a.tiles, number = block_x() % a.tiles;
    const int top = static_cast<int>(number / a.tiles_across) * kTileRows;
    const int left = static_cast<int>(number % a.tiles_across) * kTileColumns;
    shared.view = view;
    shared.ready = -1;
    shared.alone = false;
    shared.tile = {top, left, min_of(kTileRows, height - top),
                   min_of(kTileColumns, width - left)};
    shared.erased =
        p.erase != nullptr ? erased(p.erase + 4 * view, height, width) : Rect{};
  }
  block_barrier();
  for (int group = 0; 32 * group < shared.tile.width; ++group) {
    int lane = thread_x() % 32, warp = thread_x() / 32;
    // What follows from them, and is in shared memory, is cheaper again than
    // kept in registers.
    forget_value(lane);
    forget_value(warp);
    forget_loads();
    for (bool is_first = true;; is_first = false) {
      if (!shared.alone) {
        Rect part = shared.tile;
        part.left += 32 * group;
        part.width = min_of(32, part.width - 32 * group);
        const int last = is_first ? -1 : shared.ready;
        const int patch = patch_after(a, shared.view, last, part);
        const bool any = patch != INT_MAX;
        if (is_first && !(any && covers(rect_of(p, patch), part))) {
          int level = 0;
          forget_value(level);
          float black[kChannels];
          for (int c = 0; c < kChannels; ++c)
            black[c] = static_cast<float>(level);
#pragma unroll 1
          for (int k = 0; k < kRows; ++k)
            put<kChannels>(a, shared, group, lane, warp, k, black);
        }
        if (!any) break;
        if (patch != shared.ready)
          prepare<kChannels, kAffine>(a, patch, shared);
      }
      show<kChannels, kAffine>(a, shared, group, lane, warp);
      if (shared.alone) break;
    }
    warp_barrier();
    write<kChannels>(a, shared, group, lane, warp);
    warp_barrier();
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
  const auto too_large = [](const ByteImage& image) {
    return image.height > kMostSide || image.width > kMostSide;
  };
  if (p.list == nullptr ? too_large(p.first)
                        : std::any_of(p.list, p.list + p.images, too_large))
    return {StatusCode::kCudaError, "an image with a side of 2^30 or more"};
  if (p.patches > INT_MAX || p.height > INT_MAX / 2 || p.width > INT_MAX / 2)
    return {StatusCode::kCudaError,
            "more than 2^31 patches or pixels in a row"};
  Arguments a{};
  a.problem = p;
  a.out = out;
  a.tiles_across = blocks_of(p.width, kTileColumns);
  a.tiles = a.tiles_across * blocks_of(p.height, kTileRows);
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
