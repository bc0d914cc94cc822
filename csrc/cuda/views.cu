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
        map<kChannels>(job, p.affine + int64_t{6} * patch, x - job.rect.left,
                       y - job.rect.top, static_cast<float>(255 * p.fill),
                       p.nearest, pixels[k]);
      if (p.colour != nullptr)
        colour<kChannels>(
            p.colour + int64_t{patch} * kChannels * (kChannels + 1), pixels[k]);
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
