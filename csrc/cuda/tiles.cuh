// Tiles of a score matrix on tensor cores: how matrices of any depth come into
// shared memory, and the two products a warp forms with them,
//
//   scores:  S[rows, columns] += R[rows, chunk] . C[columns, chunk]^T
//   outputs: O[rows, chunk] += G[rows, columns] . C[columns, chunk]
//
// A block of 4 warps has kRows rows, each warp 16 or 32 of them, and all of the
// kColumns columns. Depth is cut into chunks of 128 elements; a chunk in shared
// memory is [rows][128], and the 16 byte unit u of row r lies in place
// u ^ (r % 8), so that neither ldmatrix nor its transposed form, nor the 4 byte
// loads of the second TF32 product, meet in a bank. Accumulators stay in
// registers, and those of the first product are the left operand of the second
// where they are.
//
// float32 is split in two TF32 numbers, x = high + low to 22 bits, and a
// product takes three multiplications; the fourth, low . low, is at most 2^-22
// of the product, where a rounding of float32 is 2^-24. Tensor cores cut off
// instead of rounding when they add, so long sums in float32 are taken out of
// them after every tile.
#pragma once

#include <cstdint>
#include <type_traits>

#include "device.cuh"
#include "similarity_arguments.h"

namespace s3h::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kChunk = 128;  // elements of depth
constexpr float kLog2e = 1.4426950408889634f;

__device__ inline int lane_index() { return thread_x() % 32; }
__device__ inline int warp_index() { return thread_x() / 32; }

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
template <bool kSplitInTwo>
struct Fp32 {
  using Stored = float;
  static constexpr int kRowFragments = 1;
  static constexpr int kColumns = 32;
  static constexpr bool kNarrow = false;
  static constexpr bool kSplit = kSplitInTwo;
};

template <typename Type>
struct Tile {
  using Stored = typename Type::Stored;
  static constexpr bool kWide = sizeof(Stored) == 4;
  static constexpr int kRowFragments = Type::kRowFragments;
  static constexpr int kColumns = Type::kColumns;
  static constexpr int kWarpRows = 16 * kRowFragments;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kColumnFragments = kColumns / 8;
  static constexpr int kOutputFragments = kChunk / 8;
  static constexpr int kPitch = kChunk * static_cast<int>(sizeof(Stored));
  static constexpr int kUnits = kPitch / 16;
  static constexpr int kPerUnit = 16 / static_cast<int>(sizeof(Stored));
  static constexpr int kSteps = kUnits / 2;  // of depth, 32 bytes each
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

// Starts to load rows first, first + 1, ... of a chunk; zeros for what does not
// exist, up to the next multiple of 32 bytes. Nothing reads beyond that.
template <typename Type, int kCount>
__device__ inline void load_chunk(unsigned char* to, const Matrix& matrix,
                                  int64_t first, int chunk) {
  using T = Tile<Type>;
  constexpr int kStride = kThreads / T::kUnits;
  const int unit = thread_x() % T::kUnits;
  const int elements = chunk_elements(matrix.depth, chunk);
  const int units = (elements + 2 * T::kPerUnit - 1) / (2 * T::kPerUnit) * 2;
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

// high + low = x to 22 bits, both TF32.
__device__ inline void split_tf32(uint32_t bits, uint32_t& high,
                                  uint32_t& low) {
  const float x = bits_to_float(bits);
  high = to_tf32(x);
  low = to_tf32(x - bits_to_float(high));
}

// c += a b for operands as they lie in memory.
template <typename Type>
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4],
                                uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Type, Bf16>)
    mma_bf16(c, a, b0, b1);
  else
    mma_fp16(c, a, b0, b1);
}

// The same of float32; the small products go to `rest`, where cutting off costs
// nothing.
template <typename Type>
__device__ inline void multiply(float (&c)[4], float (&rest)[4],
                                const uint32_t (&a)[4], uint32_t b0,
                                uint32_t b1) {
  uint32_t high[4], low[4], b0_high, b0_low, b1_high, b1_low;
#pragma unroll
  for (int i = 0; i < 4; ++i) split_tf32(a[i], high[i], low[i]);
  split_tf32(b0, b0_high, b0_low);
  split_tf32(b1, b1_high, b1_low);
  mma_tf32(c, high, b0_high, b1_high);
  if constexpr (Type::kSplit) {
    mma_tf32(rest, low, b0_high, b1_high);
    mma_tf32(rest, high, b0_low, b1_low);
  }
}

// Scores += the warp's rows of `rows` . columns, over the chunk's elements.
template <typename Type>
__device__ inline void multiply_scores(typename Tile<Type>::Scores& scores,
                                       const unsigned char* rows,
                                       const unsigned char* columns,
                                       int elements) {
  using T = Tile<Type>;
  const int lane = lane_index();
  const int row = warp_index() * T::kWarpRows + (lane & 15);
  const int column = (lane & 7) + ((lane >> 4) << 3);
  const int steps = (elements + 2 * T::kPerUnit - 1) / (2 * T::kPerUnit);
  [[maybe_unused]] typename T::Scores sums = {}, rest = {};
#pragma unroll
  for (int step = 0; step < T::kSteps; ++step) {
    if (step >= steps) break;
    uint32_t a[T::kRowFragments][4];
#pragma unroll
    for (int f = 0; f < T::kRowFragments; ++f)
      load_matrices(
          a[f], unit_address<Type>(rows, row + 16 * f, 2 * step + (lane >> 4)));
#pragma unroll
    for (int n = 0; n < T::kColumnFragments; n += 2) {
      uint32_t b[4];
      load_matrices(b, unit_address<Type>(columns, column + 8 * n,
                                          2 * step + ((lane >> 3) & 1)));
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f) {
        if constexpr (T::kWide) {
          multiply<Type>(sums[f][n], rest[f][n], a[f], b[0], b[1]);
          multiply<Type>(sums[f][n + 1], rest[f][n + 1], a[f], b[2], b[3]);
        } else {
          multiply<Type>(scores[f][n], a[f], b[0], b[1]);
          multiply<Type>(scores[f][n + 1], a[f], b[2], b[3]);
        }
      }
    }
  }
  if constexpr (T::kWide) {
#pragma unroll
    for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          scores[f][n][i] += sums[f][n][i] + rest[f][n][i];
  }
}

// Outputs += weights . columns, over the chunk's elements.
template <typename Type>
__device__ inline void multiply_outputs(
    typename Tile<Type>::Outputs& outputs,
    const typename Tile<Type>::Scores& weights, const unsigned char* columns,
    int elements) {
  using T = Tile<Type>;
  const int lane = lane_index();
  if constexpr (T::kWide) {
    // The order of the columns in the sum is free: slot t is column 2t, slot
    // t + 4 column 2t + 1, which is where the accumulators hold them.
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int n = 0; n < T::kOutputFragments; ++n) {
      if (8 * n >= elements) break;
      float sums[T::kRowFragments][4] = {}, rest[T::kRowFragments][4] = {};
      const int unit = 2 * n + (g >> 2);
#pragma unroll
      for (int k = 0; k < T::kColumnFragments; ++k) {
        const int column = 8 * k + 2 * t;
        const auto* even = reinterpret_cast<const uint32_t*>(
            unit_address<Type>(columns, column, unit));
        const auto* odd = reinterpret_cast<const uint32_t*>(
            unit_address<Type>(columns, column + 1, unit));
#pragma unroll
        for (int f = 0; f < T::kRowFragments; ++f) {
          const float (&w)[4] = weights[f][k];
          const uint32_t a[4] = {float_to_bits(w[0]), float_to_bits(w[2]),
                                 float_to_bits(w[1]), float_to_bits(w[3])};
          multiply<Type>(sums[f], rest[f], a, even[g & 3], odd[g & 3]);
        }
      }
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
        for (int i = 0; i < 4; ++i) outputs[f][n][i] += sums[f][i] + rest[f][i];
    }
  } else {
#pragma unroll
    for (int k = 0; k < T::kColumnFragments; k += 2) {
      uint32_t a[T::kRowFragments][4];
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float (&w)[4] = weights[f][k + i];
          a[f][2 * i] = pack<Type>(w[0], w[1]);
          a[f][2 * i + 1] = pack<Type>(w[2], w[3]);
        }
#pragma unroll
      for (int n = 0; n < T::kOutputFragments; n += 2) {
        if (8 * n >= elements) break;
        uint32_t b[4];
        load_matrices_transposed(
            b,
            unit_address<Type>(columns, 8 * k + (lane & 15), n + (lane >> 4)));
#pragma unroll
        for (int f = 0; f < T::kRowFragments; ++f) {
          multiply<Type>(outputs[f][n], a[f], b[0], b[1]);
          multiply<Type>(outputs[f][n + 1], a[f], b[2], b[3]);
        }
      }
    }
  }
}

}  // namespace s3h::cuda
