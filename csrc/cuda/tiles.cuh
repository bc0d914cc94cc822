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
// float32 is split in three bfloat16 numbers, x = x0 + x1 + x2 to the last bit,
// with |x1| <= 2^-8 |x| and |x2| <= 2^-17 |x|. A product takes the six
// multiplications x_i y_j with i + j <= 2, as long as three of TF32, which
// knows 22 bits of a number; those left out are 2^-24 of the product, as a
// rounding of float32 is. Tensor cores cut off instead of rounding when they
// add, so x0 y0 leaves them after every 16 elements.
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
// In three bfloat16 numbers, or by one TF32 product.
template <bool kInParts>
struct Fp32 {
  using Stored = float;
  static constexpr int kRowFragments = 1;
  static constexpr int kColumns = 32;
  static constexpr bool kNarrow = false;
};

template <typename Type>
struct Tile {
  using Stored = typename Type::Stored;
  static constexpr bool kWide = sizeof(Stored) == 4;
  static constexpr bool kSplit = std::is_same_v<Type, Fp32<true>>;
  static constexpr int kRowFragments = Type::kRowFragments;
  static constexpr int kColumns = Type::kColumns;
  static constexpr int kWarpRows = 16 * kRowFragments;
  static constexpr int kRows = kWarps * kWarpRows;
  static constexpr int kColumnFragments = kColumns / 8;
  static constexpr int kOutputFragments = kChunk / 8;
  static constexpr int kPitch = kChunk * static_cast<int>(sizeof(Stored));
  static constexpr int kUnits = kPitch / 16;
  static constexpr int kPerUnit = 16 / static_cast<int>(sizeof(Stored));
  static constexpr int kStepUnits = kSplit ? 4 : 2;
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
    static_assert(kStride % 8 == 0);
    int thread = thread_x();
    forget_value(thread);
    const int row = static_cast<int>(static_cast<unsigned>(thread) / T::kUnits);
    const int64_t left = matrix.count - first;
    const auto* from = static_cast<const unsigned char*>(matrix.data) +
                       (first * T::kPitch + thread * 16);
    unsigned char* place =
        to + unit_offset<Type>(row, thread & (T::kUnits - 1));
    if (left >= kCount) {
#pragma unroll
      for (int r = 0; r < kCount; r += kStride)
        copy_async<16>(place + r * T::kPitch, from + r * T::kPitch, true);
    } else {
#pragma unroll 1
      for (int r = 0; r < kCount; r += kStride) {
        const bool there = row + r < left;
        copy_async<16>(place + r * T::kPitch,
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

// The parts of two numbers side by side.
__device__ inline void split(uint32_t x_bits, uint32_t y_bits, uint32_t& first,
                             uint32_t& second, uint32_t& third) {
  float x = bits_to_float(x_bits), y = bits_to_float(y_bits);
  const auto take = [&] {
    const uint32_t pair = pack_bf16(x, y);
    x -= bits_to_float(pair << 16);
    y -= bits_to_float(pair & 0xffff0000u);
    return pair;
  };
  first = take();
  second = take();
  third = pack_bf16(x, y);
}

// Operands of m16n8k16 in their parts.
struct LeftParts {
  uint32_t at[3][4];
  __device__ void set(int i, uint32_t x, uint32_t y) {
    split(x, y, at[0][i], at[1][i], at[2][i]);
  }
};
struct RightParts {
  uint32_t at[3][2];
  __device__ void set(int i, uint32_t x, uint32_t y) {
    split(x, y, at[0][i], at[1][i], at[2][i]);
  }
};

// A sum of products of numbers in parts; a b has the bits of b a.
struct PartSums {
  float large[4];     // first parts, rounded each time
  float small[2][4];  // cutting off costs nothing here

  __device__ void add(const LeftParts& a, const RightParts& b) {
    const auto multiply = [&](float (&c)[4], int i, int j) {
      mma_bf16(c, a.at[i], b.at[j][0], b.at[j][1]);
    };
    float product[4] = {};
    multiply(product, 1, 1);
    multiply(product, 0, 0);
    multiply(small[0], 0, 2);
    multiply(small[1], 2, 0);
    multiply(small[0], 0, 1);
    multiply(small[1], 1, 0);
#pragma unroll
    for (int i = 0; i < 4; ++i) large[i] += product[i];
  }
  __device__ float value(int i) const {
    return large[i] + (small[0][i] + small[1][i]);
  }
};

// c += a b for operands as they lie in memory.
template <typename Type>
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4],
                                uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Type, Bf16>)
    mma_bf16(c, a, b0, b1);
  else if constexpr (std::is_same_v<Type, Fp16>)
    mma_fp16(c, a, b0, b1);
  else {
    const auto rounded = [](uint32_t bits) {
      return to_tf32(bits_to_float(bits));
    };
    mma_tf32(c, {rounded(a[0]), rounded(a[1]), rounded(a[2]), rounded(a[3])},
             rounded(b0), rounded(b1));
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
  const int steps = (elements + T::kStepElements - 1) / T::kStepElements;
  if constexpr (T::kSplit) {
    // The order of the depth in the sum is free: slots 2t and 2t + 1 are
    // elements t of two units.
    PartSums sums[T::kColumnFragments] = {};
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      if (step >= steps) break;
      LeftParts a;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        uint32_t at[4];
        load_matrices(at, unit_address<Type>(
                              rows, row, 4 * step + 2 * half + (lane >> 4)));
        a.set(2 * half, at[0], at[2]);
        a.set(2 * half + 1, at[1], at[3]);
      }
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; ++n) {
        uint32_t at[4];
        load_matrices(at, unit_address<Type>(columns, 8 * n + (lane & 7),
                                             4 * step + (lane >> 3)));
        RightParts b;
        b.set(0, at[0], at[1]);
        b.set(1, at[2], at[3]);
        sums[n].add(a, b);
      }
    }
#pragma unroll
    for (int n = 0; n < T::kColumnFragments; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[0][n][i] += sums[n].value(i);
  } else {
    int row_at = unit_offset<Type>(row, lane >> 4);
    int column_at =
        unit_offset<Type>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
    forget_value(row_at);
    forget_value(column_at);
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      if (step >= steps) break;
      uint32_t a[T::kRowFragments][4];
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
        load_matrices(a[f], rows + (row_at ^ (32 * step)) + 16 * f * T::kPitch);
#pragma unroll
      for (int n = 0; n < T::kColumnFragments; n += 2) {
        uint32_t b[4];
        load_matrices(b,
                      columns + (column_at ^ (32 * step)) + 8 * n * T::kPitch);
#pragma unroll
        for (int f = 0; f < T::kRowFragments; ++f) {
          multiply<Type>(scores[f][n], a[f], b[0], b[1]);
          multiply<Type>(scores[f][n + 1], a[f], b[2], b[3]);
        }
      }
    }
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
    // The order of the columns in the sum is free too: a thread's two columns
    // of a fragment are those that the accumulators hold.
    const int g = lane >> 2, t = lane & 3;
    const auto column_at = [&](int n, int k, int e) {
      return reinterpret_cast<const uint32_t*>(unit_address<Type>(
          columns, 8 * k + 2 * t + e, 2 * n + (g >> 2)))[g & 3];
    };
    [[maybe_unused]] LeftParts parts[T::kColumnFragments / 2];
    if constexpr (T::kSplit) {
#pragma unroll
      for (int k = 0; k < T::kColumnFragments; ++k)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          parts[k / 2].set(k % 2 * 2 + h, float_to_bits(weights[0][k][2 * h]),
                           float_to_bits(weights[0][k][2 * h + 1]));
    }
#pragma unroll
    for (int n = 0; n < T::kOutputFragments; ++n) {
      if (8 * n >= elements) break;
      if constexpr (T::kSplit) {
        PartSums sums = {};
#pragma unroll
        for (int k = 0; k < T::kColumnFragments; k += 2) {
          RightParts b;
          b.set(0, column_at(n, k, 0), column_at(n, k, 1));
          b.set(1, column_at(n, k + 1, 0), column_at(n, k + 1, 1));
          sums.add(parts[k / 2], b);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) outputs[0][n][i] += sums.value(i);
      } else {
        float sums[4] = {};
#pragma unroll
        for (int k = 0; k < T::kColumnFragments; ++k) {
          const float (&w)[4] = weights[0][k];
          const uint32_t a[4] = {float_to_bits(w[0]), float_to_bits(w[2]),
                                 float_to_bits(w[1]), float_to_bits(w[3])};
          multiply<Type>(sums, a, column_at(n, k, 0), column_at(n, k, 1));
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) outputs[0][n][i] += sums[i];
      }
    }
  } else {
    int column_at = unit_offset<Type>(lane & 15, lane >> 4);
    forget_value(column_at);
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
            b, columns + (column_at ^ (16 * n)) + 8 * k * T::kPitch);
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
