// A block owns a group of neighbouring keys, a part of the rows and a chunk of
// at most 256 columns. It goes over its rows' keys 1,024 at a time and lists
// those of its group, in the order of the rows, by a ballot per warp and a
// prefix sum over the warps. A row of the list is then read by as many threads
// as it has groups of kWidth elements (16 bytes), several rows at a time: slot
// s adds up rows s, s + slots, ... of the list in sums of its own in shared
// memory, which are added in the order of the slots at the end. Parts of the
// rows are added in their order by a second kernel.
//
// So that nothing is added by an atomic and the order is a function of the
// sizes and of the number of multiprocessors. Few keys: a key per block, rows
// in parts; many keys: many keys per block, or each block would read all keys
// for a few rows.
#include <algorithm>

#include "elements.cuh"
#include "rows_by_key.h"

namespace s3h::cuda {
namespace {

constexpr int kBlock = 256;
constexpr int kBlockWarps = kBlock / 32;
constexpr int kPerThread = 4;
constexpr int kTile = kBlock * kPerThread;  // keys read at a time
constexpr int kMostColumns = 256;
constexpr int kMostSlots = 32;
constexpr int kMostGroup = 1024;
constexpr size_t kSumBytes = 32 * 1024;
constexpr int kAhead = 4;  // rows under way per thread
// Below this many rows a second launch costs more than a longer first one.
constexpr int64_t kUnsplitRows = 4096;

struct Cut {
  int64_t keys, depth;
  int group;    // keys of a block
  int columns;  // of a chunk
  int chunks;
  int parts;
  int slots;
};

struct Sets {
  RowsByKey at[kMostRowSets];
};

// By selection: parameters that are indexed are copied to local memory.
__device__ inline RowsByKey chosen(const Sets& sets, int which) {
  return which == 0 ? sets.at[0] : sets.at[1];
}

// Where a part's results go: the caller's memory if there is one part.
template <typename Real>
struct Target {
  Real* sums;
  Real* counts;
};

template <typename Real>
__device__ inline Target<Real> target_of(const Cut& cut, const RowsByKey& set,
                                         Real* parts, int64_t number) {
  if (cut.parts == 1)
    return {static_cast<Real*>(set.sums), static_cast<Real*>(set.counts)};
  Real* start = parts + number * cut.keys * (cut.depth + 1);
  return {start,
          set.counts == nullptr ? nullptr : start + cut.keys * cut.depth};
}

template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock)
    sum_rows(Sets sets, Cut cut, RealOf<T>* parts) {
  using Real = RealOf<T>;
  const RowsByKey set = chosen(sets, block_z());
  const int part = block_y() / cut.chunks, chunk = block_y() % cut.chunks;
  const int64_t first_key = static_cast<int64_t>(block_x()) * cut.group;
  const int64_t first_column = static_cast<int64_t>(chunk) * cut.columns;
  const int columns = static_cast<int>(cut.depth - first_column < cut.columns
                                           ? cut.depth - first_column
                                           : cut.columns);
  // Parts are whole tiles.
  const int64_t tiles = (set.count + kTile - 1) / kTile;
  const int64_t begin = tiles * part / cut.parts * kTile;
  int64_t end = tiles * (part + 1) / cut.parts * kTile;
  if (end > set.count) end = set.count;

  auto* sums = reinterpret_cast<Real*>(shared_memory());
  const int slot_sums = cut.group * cut.columns;
  auto* list = reinterpret_cast<uint32_t*>(sums + cut.slots * slot_sums);
  uint32_t* found = list + kTile;  // [kPerThread][kBlockWarps]
  uint32_t* members = found + kPerThread * kBlockWarps;  // [slots][group]

  const int per_row = (cut.columns + kWidth - 1) / kWidth;
  const int slot = thread_x() / per_row;
  const int column = thread_x() % per_row * kWidth;
  const bool adds = slot < cut.slots && column < columns;
  const int lane = thread_x() % 32, warp = thread_x() / 32;
  for (int i = thread_x(); i < cut.slots * slot_sums; i += kBlock)
    sums[i] = Real(0);
  for (int i = thread_x(); i < cut.slots * cut.group; i += kBlock)
    members[i] = 0;

  for (int64_t base = begin; base < end; base += kTile) {
    uint32_t local[kPerThread], same[kPerThread];
    for (int k = 0; k < kPerThread; ++k) {
      const int64_t row = base + k * kBlock + thread_x();
      const int64_t key = row < end ? set.row_key[row] : -1;
      const bool own =
          key >= first_key && key < first_key + cut.group && key < cut.keys;
      local[k] = own ? static_cast<uint32_t>(key - first_key) : kMostGroup;
      same[k] = warp_ballot(own);
      if (lane == 0)
        found[k * kBlockWarps + warp] =
            static_cast<uint32_t>(count_bits(same[k]));
    }
    block_barrier();
    uint32_t before = 0;
    for (int k = 0; k < kPerThread; ++k)
      for (int w = 0; w < kBlockWarps; ++w) {
        if (w == warp && local[k] != kMostGroup)
          list[before + count_bits(same[k] & ((1u << lane) - 1))] =
              local[k] * kTile + static_cast<uint32_t>(k * kBlock + thread_x());
        before += found[k * kBlockWarps + w];
      }
    block_barrier();
    const int rows = static_cast<int>(before);
    for (int first = slot; adds && first < rows; first += kAhead * cut.slots) {
      Several<T, kWidth> row[kAhead];
      Real weight[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = first + a * cut.slots;
        if (at >= rows) break;
        const int64_t i = base + list[at] % kTile;
        row[a] = load_several<kWidth>(static_cast<const T*>(set.rows) +
                                      i * cut.depth + first_column + column);
        weight[a] = set.weights == nullptr
                        ? Real(1)
                        : static_cast<const Real*>(set.weights)[i];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int at = first + a * cut.slots;
        if (at >= rows) break;
        const int own = slot * cut.group + static_cast<int>(list[at] / kTile);
        Real* to = sums + own * cut.columns + column;
        auto sum = load_several<kWidth>(to);
        for (int e = 0; e < kWidth; ++e)
          sum.at[e] += weight[a] * widen(row[a].at[e]);
        store_several(to, sum);
        if (column == 0) ++members[own];
      }
    }
  }
  block_barrier();

  const Target<Real> target = target_of(
      cut, set, parts, static_cast<int64_t>(block_z()) * cut.parts + part);
  for (int i = thread_x(); i < slot_sums; i += kBlock) {
    const int64_t key = first_key + i / cut.columns;
    if (key >= cut.keys || i % cut.columns >= columns) continue;
    Real sum = sums[i];
    for (int s = 1; s < cut.slots; ++s) sum += sums[s * slot_sums + i];
    target.sums[key * cut.depth + first_column + i % cut.columns] = sum;
  }
  if (target.counts == nullptr || chunk > 0) return;
  for (int i = thread_x(); i < cut.group; i += kBlock) {
    uint32_t count = 0;
    for (int s = 0; s < cut.slots; ++s) count += members[s * cut.group + i];
    if (first_key + i < cut.keys)
      target.counts[first_key + i] = static_cast<Real>(count);
  }
}

// The sum of the parts, in their order; an element per thread.
template <typename Real>
__global__ void __launch_bounds__(kBlock)
    merge_parts(Sets sets, Cut cut, const Real* parts) {
  const RowsByKey set = chosen(sets, block_y());
  const int64_t in_sums = cut.keys * cut.depth, step = in_sums + cut.keys;
  const int64_t i = static_cast<int64_t>(block_x()) * kBlock + thread_x();
  if (i >= step || (i >= in_sums && set.counts == nullptr)) return;
  const Real* from = parts + block_y() * cut.parts * step + i;
  Real sum = from[0];
  for (int part = 1; part < cut.parts; ++part) sum += from[part * step];
  if (i < in_sums)
    static_cast<Real*>(set.sums)[i] = sum;
  else
    static_cast<Real*>(set.counts)[i - in_sums] = sum;
}

// `rows` of the largest set.
Cut cut_of(size_t real, int sets, int64_t rows, int64_t keys, int64_t depth) {
  Cut cut{};
  cut.keys = keys;
  cut.depth = depth;
  cut.columns = static_cast<int>(std::min<int64_t>(depth, kMostColumns));
  cut.chunks = static_cast<int>(ceil_divide(depth, cut.columns));
  const int64_t slots =
      2 * static_cast<int64_t>(std::max(1, multiprocessors()));
  const int64_t blocks = keys * cut.chunks * sets;
  const int64_t fit = static_cast<int64_t>(kSumBytes / (real * cut.columns));
  cut.group = static_cast<int>(std::min<int64_t>(
      {std::max<int64_t>(1, blocks / (2 * slots)), fit, kMostGroup, keys}));
  const int64_t in_row = ceil_divide(keys, cut.group) * cut.chunks * sets;
  cut.parts = static_cast<int>(std::clamp<int64_t>(
      slots / in_row, 1,
      std::max<int64_t>(1, ceil_divide(rows, kUnsplitRows))));
  return cut;
}

size_t parts_bytes(const Cut& cut, size_t real, int sets) {
  return cut.parts == 1 ? 0
                        : real * static_cast<size_t>(sets) * cut.parts *
                              cut.keys * (cut.depth + 1);
}

template <typename T, int kWidth>
Status launch_sum(const Sets& sets, Cut cut, int count, void* parts,
                  Stream stream) {
  using Real = RealOf<T>;
  const int per_row = static_cast<int>(ceil_divide(cut.columns, kWidth));
  const size_t slot_bytes =
      static_cast<size_t>(cut.group) * (cut.columns * sizeof(Real) + 4);
  cut.slots = static_cast<int>(std::clamp<size_t>(
      kSumBytes / slot_bytes, 1,
      static_cast<size_t>(std::min(kBlock / per_row, kMostSlots))));
  const size_t shared =
      slot_bytes * cut.slots + 4 * (kTile + kPerThread * kBlockWarps);
  const Grid grid{ceil_divide(cut.keys, cut.group),
                  static_cast<int64_t>(cut.parts) * cut.chunks, count};
  return launch(sum_rows<T, kWidth>, grid, kBlock, shared, stream, sets, cut,
                static_cast<Real*>(parts));
}

}  // namespace

size_t add_rows_workspace(Scalar type, int sets, int64_t most_rows,
                          int64_t keys, int64_t depth) {
  if (keys == 0 || depth == 0) return 0;
  const size_t real = real_size(type);
  return parts_bytes(cut_of(real, sets, most_rows, keys, depth), real, sets);
}

Status add_rows(Scalar type, const RowsByKey* which, int count, int64_t keys,
                int64_t depth, void* workspace, Stream stream) {
  if (keys == 0 || depth == 0 || count == 0) return {};
  Sets sets{};
  int64_t rows = 0;
  bool aligned = true;
  const int width = static_cast<int>(16 / element_size(type));
  for (int s = 0; s < count; ++s) {
    sets.at[s] = which[s];
    rows = std::max(rows, which[s].count);
    aligned = aligned && aligned_to(which[s].rows, 16);
  }
  aligned = aligned && depth % width == 0;
  const Cut cut = cut_of(real_size(type), count, rows, keys, depth);
  const Status status = with_element(type, [&]<typename T>() {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
    return aligned ? launch_sum<T, kWidth>(sets, cut, count, workspace, stream)
                   : launch_sum<T, 1>(sets, cut, count, workspace, stream);
  });
  if (!status.ok() || cut.parts == 1) return status;
  const Grid grid{ceil_divide(keys * (depth + 1), kBlock), count, 1};
  if (type == Scalar::kFloat64)
    return launch(merge_parts<double>, grid, kBlock, 0, stream, sets, cut,
                  static_cast<const double*>(workspace));
  return launch(merge_parts<float>, grid, kBlock, 0, stream, sets, cut,
                static_cast<const float*>(workspace));
}

}  // namespace s3h::cuda
