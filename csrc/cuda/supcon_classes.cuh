// The classes of a supervised contrastive loss: which rows belong together, how
// many they are, and their sums.
//
// A block owns a key. Keys are the labels if these are below a bound of at most
// n. Otherwise the key of a class is its first row, and the blocks of all other
// rows end as soon as they have seen a row of their class before them.
#pragma once

#include "elements.cuh"

namespace s3h::cuda {

constexpr int kBlock = 256;
constexpr int kBlockWarps = kBlock / 32;
constexpr int kAhead = 4;  // loads under way per thread

// Which key a row has.
struct Keys {
  const int64_t* labels;
  int64_t* first;  // [n], by first row: -1 for none; else nullptr
  int64_t bound;   // of labels; negative: none
  int64_t count;   // of keys
};

__device__ inline bool is_class(const Keys& keys, int64_t label) {
  return label >= 0 && (keys.bound < 0 || label < keys.bound);
}

__device__ inline int64_t key_of(const Keys& keys, int64_t row) {
  if (keys.first != nullptr) return keys.first[row];
  const int64_t label = keys.labels[row];
  return is_class(keys, label) ? label : -1;
}

__device__ inline bool block_any(uint32_t* flags, bool value) {
  const bool any = warp_any(value);
  if (thread_x() % 32 == 0) flags[thread_x() / 32] = any ? 1 : 0;
  block_barrier();
  uint32_t found = 0;
  for (int w = 0; w < kBlockWarps; ++w) found |= flags[w];
  block_barrier();  // the next flags come to the same place
  return found != 0;
}

template <typename T>
struct ClassArguments {
  const T* rows;
  Keys keys;
  int64_t n, depth;
  RealOf<T>* sums;   // [keys, depth]
  int32_t* sizes;    // [keys]
  uint32_t* passed;  // set to 0, as is
  float* zeros;      // [zero_count]
  int64_t zero_count;
};

// Blocks: one per key, times chunks of 32 kWidth columns. Warps take 32 labels
// each in turn, lanes the columns of the rows that they find.
template <typename T, int kWidth>
__global__ void __launch_bounds__(kBlock) collect_classes(ClassArguments<T> a) {
  using Real = RealOf<T>;
  constexpr int kColumns = 32 * kWidth;
  auto* parts = reinterpret_cast<Real*>(shared_memory());  // [warps][columns]
  auto* words = reinterpret_cast<uint32_t*>(parts + kBlockWarps * kColumns);
  const int lane = thread_x() % 32, warp = thread_x() / 32;
  const int64_t key = block_x();
  const bool leads = block_y() == 0;
  if (leads) {
    const int64_t stride = static_cast<int64_t>(grid_x()) * kBlock;
    for (int64_t i = key * kBlock + thread_x(); i < a.zero_count; i += stride)
      a.zeros[i] = 0.f;
    if (key == 0 && thread_x() == 0) *a.passed = 0;
  }
  if (key >= a.keys.count) return;
  const bool by_row = a.keys.first != nullptr;
  const int64_t label = by_row ? a.keys.labels[key] : key;
  int64_t start = 0;
  if (by_row) {
    if (!is_class(a.keys, label)) {
      if (leads && thread_x() == 0) a.keys.first[key] = -1;
      return;
    }
    for (; start < key; start += kAhead * kBlock) {
      bool before = false;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        const int64_t j = start + k * kBlock + thread_x();
        before = before || (j < key && a.keys.labels[j] == label);
      }
      if (block_any(words, before)) return;
    }
    start = key / 32 * 32;
  }

  const int64_t column = static_cast<int64_t>(block_y()) * kColumns +
                         static_cast<int64_t>(lane) * kWidth;
  const bool reads = column < a.depth;
  Several<Real, kWidth> sum{};
  uint32_t size = 0;
  for (int64_t base = start + 32 * kAhead * warp; base < a.n;
       base += kAhead * kBlock) {
    int64_t labels[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t j = base + 32 * k + lane;
      labels[k] = j < a.n ? a.keys.labels[j] : -1;
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int64_t from = base + 32 * k;
      uint32_t same = warp_ballot(labels[k] == label);
      size += static_cast<uint32_t>(count_bits(same));
      if (by_row && leads && labels[k] == label)
        a.keys.first[from + lane] = key;
      while (same != 0) {
        Several<T, kWidth> row[kAhead];
        bool there[kAhead];
#pragma unroll
        for (int r = 0; r < kAhead; ++r) {
          there[r] = same != 0 && reads;
          const int bit = count_bits((same & (0u - same)) - 1);
          same &= same - 1;
          if (there[r])
            row[r] =
                load_several<kWidth>(a.rows + (from + bit) * a.depth + column);
        }
#pragma unroll
        for (int r = 0; r < kAhead; ++r)
          if (there[r])
            for (int e = 0; e < kWidth; ++e) sum.at[e] += widen(row[r].at[e]);
      }
    }
  }
  store_several(parts + warp * kColumns + lane * kWidth, sum);
  if (lane == 0) words[warp] = size;
  block_barrier();
  for (int c = thread_x(); c < kColumns; c += kBlock) {
    const int64_t d = static_cast<int64_t>(block_y()) * kColumns + c;
    if (d >= a.depth) continue;
    Real all = parts[c];
    for (int w = 1; w < kBlockWarps; ++w) all += parts[w * kColumns + c];
    a.sums[key * a.depth + d] = all;
  }
  if (!leads || thread_x() != 0) return;
  uint32_t all = 0;
  for (int w = 0; w < kBlockWarps; ++w) all += words[w];
  a.sizes[key] = static_cast<int32_t>(all);
}

}  // namespace s3h::cuda
