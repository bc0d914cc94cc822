// Tiles of a score matrix on tensor cores: how matrices of any depth come into
// shared memory. products.cuh multiplies them.
//
// A block of 4 warps has kRows rows, each warp 16 or 32 of them, and all of the
// kColumns columns. Depth is cut into chunks of 128 elements; a chunk in shared
// memory is [rows][128], and the 16 byte unit u of row r lies in place
// u ^ (r % 8), so that neither ldmatrix nor its transposed form, nor the 4 byte
// loads of the second TF32 product, meet in a bank.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.cuh"
#include "elements.cuh"
#include "similarity_arguments.h"

namespace s3h::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kChunk = 128;  // elements of depth
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLog2eRest = 1.4426950408889634 - kLog2e;
constexpr float kLn2 = 0.6931471805599453f;

// Not of a signed number, whose remainder takes more instructions.
__device__ inline int lane_index() { return thread_x() & 31; }
__device__ inline int warp_index() {
  return static_cast<int>(static_cast<unsigned>(thread_x()) / 32);
}

// What the element types differ in.
struct Bf16 {
  using Stored = uint16_t;
  static constexpr int kRowFragments = 2;
  static constexpr int kColumns = 64;
  static constexpr bool kNarrow = false;  // range of float32
};
struct Fp16 {
  using Stored = uint16_t;
  static constexpr int kRowFragments = 2;
  static constexpr int kColumns = 64;
  static constexpr bool kNarrow = true;
};
// In three bfloat16 numbers where these may be of any size, or by one TF32
// product.
template <bool kInParts>
struct Fp32 {
  using Stored = float;
  static constexpr int kRowFragments = 1;
  static constexpr int kColumns = 32;
  static constexpr bool kNarrow = false;
};
// In two float16 numbers: rows that are expected to be of unit length.
struct Fp32InPairs : Fp32<true> {
  static constexpr bool kNarrow = true;
};

// How an element type is multiplied where its numbers are bounded.
template <typename Type>
using BoundedOf =
    std::conditional_t<std::is_same_v<Type, Fp32<true>>, Fp32InPairs, Type>;

template <typename Type>
struct Tile {
  using Stored = typename Type::Stored;
  static constexpr bool kWide = sizeof(Stored) == 4;
  static constexpr bool kPairs = std::is_same_v<Type, Fp32InPairs>;
  static constexpr bool kSplit = std::is_same_v<Type, Fp32<true>>;
  // To float32's accuracy.
  static constexpr bool kExact = kPairs || kSplit;
  static constexpr int kRowFragments = Type::kRowFragments;
  static constexpr int kColumns = Type::kColumns;
  static constexpr int kWarpRows = 16 * kRowFragments;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kColumnFragments = kColumns / 8;
  static constexpr int kOutputFragments = kChunk / 8;
  static constexpr int kPitch = kChunk * static_cast<int>(sizeof(Stored));
  static constexpr int kUnits = kPitch / 16;
  static constexpr int kPerUnit = 16 / static_cast<int>(sizeof(Stored));
  static constexpr int kStepUnits = kExact ? 4 : 2;
  static constexpr int kStepElements = kStepUnits * kPerUnit;
  static constexpr int kSteps = kUnits / kStepUnits;  // of depth
  using Scores = float[kRowFragments][kColumnFragments][4];
  using Outputs = float[kRowFragments][kOutputFragments][4];
};

template <typename Type>
__device__ inline float to_float(typename Type::Stored x) {
  if constexpr (std::is_same_v<Type, Bf16>)
    return bits_to_float(static_cast<uint32_t>(x) << 16);
  else if constexpr (std::is_same_v<Type, Fp16>)
    return unpack_fp16(x);
  else
    return x;
}

template <typename Type>
__device__ inline uint32_t pack(float low, float high) {
  if constexpr (std::is_same_v<Type, Bf16>)
    return pack_bf16(low, high);
  else
    return pack_fp16(low, high);
}

template <typename Type>
__device__ inline typename Type::Stored from_float(float x) {
  if constexpr (sizeof(typename Type::Stored) == 4)
    return x;
  else
    return static_cast<uint16_t>(pack<Type>(x, 0.f) & 0xffffu);
}

// Elements of the chunk that exist.
__device__ inline int chunk_elements(int64_t depth, int chunk) {
  const int64_t left = depth - static_cast<int64_t>(chunk) * kChunk;
  return left < kChunk ? static_cast<int>(left) : kChunk;
}

// Where a unit lies in a tile. Another unit whose number differs in bits that
// this one's has not set lies at the same place but for these bits:
// unit_offset(row, unit + k) = unit_offset(row, unit) ^ (16 * k).
template <typename Type>
__device__ inline int unit_offset(int row, int unit) {
  return row * Tile<Type>::kPitch + ((unit ^ (row & 7)) * 16);
}

// Starts to load rows first, first + 1, ... of a chunk; zeros for what does not
// exist, up to the next whole step. Nothing reads beyond that.
template <typename Type, int kCount, bool kWhole>
__device__ inline void load_chunk(unsigned char* to, const Matrix& matrix,
                                  int64_t first, int chunk) {
  using T = Tile<Type>;
  constexpr int kStride = kThreads / T::kUnits;
  const int unit = thread_x() & (T::kUnits - 1);
  if constexpr (kWhole) {
    // Rows that are a multiple of 8 apart have their unit in the same place.
    static_assert(kStride % 4 == 0);
    const auto place_of = [&](int offset, int r) {
      return to + (offset ^ (r & 4) * 16) + r * T::kPitch;
    };
    int thread = thread_x();
    forget_value(thread);
    const int row = static_cast<int>(static_cast<unsigned>(thread) / T::kUnits);
    const int64_t left = matrix.count - first;
    const auto* from = static_cast<const unsigned char*>(matrix.data) +
                       (first * T::kPitch + thread * 16);
    const int place = unit_offset<Type>(row, thread & (T::kUnits - 1));
    if (left >= kCount) {
#pragma unroll
      for (int r = 0; r < kCount; r += kStride)
        copy_async<16>(place_of(place, r), from + r * T::kPitch, true);
    } else {
#pragma unroll 1
      for (int r = 0; r < kCount; r += kStride) {
        const bool there = row + r < left;
        copy_async<16>(place_of(place, r),
                       there ? from + r * T::kPitch : matrix.data, there);
      }
    }
    return;
  }
  const int elements = chunk_elements(matrix.depth, chunk);
  const int units =
      (elements + T::kStepElements - 1) / T::kStepElements * T::kStepUnits;
  if (unit >= units) return;
  const int element = unit * T::kPerUnit;
  const auto* column = static_cast<const typename T::Stored*>(matrix.data) +
                       static_cast<int64_t>(chunk) * kChunk + element;
#pragma unroll 2
  for (int r = thread_x() / T::kUnits; r < kCount; r += kStride) {
    unsigned char* place = to + r * T::kPitch + ((unit ^ (r & 7)) * 16);
    const bool there = first + r < matrix.count;
    const auto* from = column + (first + r) * matrix.depth;
    if (matrix.aligned) {
      const bool valid = there && element < elements;
      copy_async<16>(place, valid ? from : matrix.data, valid);
    } else {
      auto* slots = reinterpret_cast<typename T::Stored*>(place);
#pragma unroll 1
      for (int i = 0; i < T::kPerUnit; ++i)
        slots[i] =
            there && element + i < elements ? from[i] : typename T::Stored(0);
    }
  }
}

template <typename Type>
__device__ inline const unsigned char* unit_address(const unsigned char* tile,
                                                    int row, int unit) {
  return tile + row * Tile<Type>::kPitch + ((unit ^ (row & 7)) * 16);
}

// Two numbers in their pairs.
__device__ inline void split_in_pairs(float x, float y, uint32_t& first,
                                      uint32_t& rest) {
  const auto half = [](uint32_t bits) {
    return unpack_fp16(static_cast<uint16_t>(bits));
  };
  first = pack_fp16(x, y);
  rest = pack_fp16(x - half(first), y - half(first >> 16));
}

// float16 reaches from 2^-24 to 2^16; the numbers of a unit row times
// kPairScale fit in. Of one below 2^-18 some bits are lost, all in all less
// than 2^-25 of the row's largest, if that is no less than kLeastOfRow.
constexpr float kPairScale = 0x1p15f, kLeastOfRow = 0x1p-14f;
// From a unit of first halves to the other ones of its elements.
constexpr int kRest = 2 * kChunk;

// Turns a chunk in its place into pairs, element e of a row the halves e and
// kChunk + e: what each thread has loaded itself, a warp a row at a time.
// Returns false where a row is so short that it needs another treatment, for
// all of a warp. A number that is too large becomes one that is not finite.
template <typename Type, int kCount>
__device__ inline bool split_chunk(unsigned char* tile, int elements) {
  using T = Tile<Type>;
  constexpr int kBatch = 4;
  static_assert(T::kUnits == 32 && kCount % (kBatch * kWarps) == 0);
  const int units =
      (elements + T::kStepElements - 1) / T::kStepElements * T::kStepUnits;
  const int unit = lane_index();
  bool fits = true;
#pragma unroll
  for (int first = 0; first < kCount; first += kBatch * kWarps) {
    const auto row_of = [&](int i) {
      return first + i * kWarps + warp_index();
    };
    Several<float, 4> x[kBatch] = {};
    if (unit < units)
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        x[i] = load_several<4>(reinterpret_cast<const float*>(
            tile + unit_offset<Type>(row_of(i), unit)));
    warp_barrier();  // all of the rows is read
    bool all_long = true;
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const float (&y)[4] = x[i].at;
      Several<uint32_t, 2> first_half, rest;
#pragma unroll
      for (int k = 0; k < 2; ++k)
        split_in_pairs(y[2 * k] * kPairScale, y[2 * k + 1] * kPairScale,
                       first_half.at[k], rest.at[k]);
      if (unit < units) {
        unsigned char* to =
            tile + unit_offset<Type>(row_of(i), unit >> 1) + 8 * (unit & 1);
        store_several(reinterpret_cast<uint32_t*>(to), first_half);
        store_several(reinterpret_cast<uint32_t*>(to + kRest), rest);
      }
      // Bit 14: a half of at least 2, which is kLeastOfRow.
      static_assert(kLeastOfRow * kPairScale == 2.f);
      all_long = warp_any(((first_half.at[0] | first_half.at[1]) &
                           0x40004000u) != 0) &&
                 all_long;
    }
    if (!all_long) {
      // A row of zeros is as good as a long one.
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        float largest = 0.f;
#pragma unroll
        for (int k = 0; k < 4; ++k)
          largest = max_of(largest, magnitude(x[i].at[k]));
        const bool any = warp_any(largest > 0.f);
        fits = fits && (warp_any(largest >= kLeastOfRow) || !any);
      }
    }
  }
  return fits;
}

}  // namespace s3h::cuda
