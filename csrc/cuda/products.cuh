// The two products that a warp forms with tiles in shared memory,
//
//   scores:  S[rows, columns] += R[rows, chunk] . C[columns, chunk]^T
//   outputs: O[rows, chunk] += G[rows, columns] . C[columns, chunk]
//
// Accumulators stay in registers, and those of the first product are the left
// operand of the second where they are.
//
// float32 of any size is split in three bfloat16 numbers, x = x0 + x1 + x2 to
// the last bit, with |x1| <= 2^-8 |x| and |x2| <= 2^-17 |x|. A product takes
// the six multiplications x_i y_j with i + j <= 2; those left out are 2^-24 of
// the product, as a rounding of float32 is.
//
// Of rows that are expected to be of unit length, two float16 numbers are
// enough, x = x0 + x1 to 2^-23 |x| (three quarters of all x to the last bit):
// three multiplications x_i y_j with i + j <= 1 leave out 2^-22 of the product
// at most, with either sign.
//
// Tensor cores cut off instead of rounding when they add, so x0 y0 leaves them
// after every 16 elements.
#pragma once

#include "tiles.cuh"

namespace s3h::cuda {

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

// multiply_scores of pairs. x0 y1 and x1 y0 of an element lie side by side in
// the depth of one multiplication: a b has the bits of b a.
template <typename Type>
  requires Tile<Type>::kPairs
__device__ inline void multiply_scores(typename Tile<Type>::Scores& scores,
                                       const unsigned char* rows,
                                       const unsigned char* columns,
                                       int elements) {
  using T = Tile<Type>;
  const int lane = lane_index();
  const int steps = (elements + T::kStepElements - 1) / T::kStepElements;
  int row_at =
      unit_offset<Type>(warp_index() * T::kWarpRows + (lane & 15), lane >> 4);
  int column_at =
      unit_offset<Type>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  forget_value(row_at);
  forget_value(column_at);
  // Of all steps, the compiler would load more ahead than registers hold.
#pragma unroll 4
  for (int step = 0; step < T::kSteps; ++step) {
    if (step >= steps) break;
    uint32_t first[4], rest[4], both[2][4];
    load_matrices(first, rows + (row_at ^ (32 * step)));
    load_matrices(rest, rows + (row_at ^ (32 * step + kRest)));
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        both[h][i] = lower_halves(first[2 * h + i], rest[2 * h + i]);
        both[h][2 + i] = upper_halves(first[2 * h + i], rest[2 * h + i]);
      }
#pragma unroll
    for (int n = 0; n < T::kColumnFragments; n += 2) {
      uint32_t b[4], c[4];
      const unsigned char* from = columns + 8 * n * T::kPitch;
      load_matrices(b, from + (column_at ^ (32 * step)));
      load_matrices(c, from + (column_at ^ (32 * step + kRest)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float product[4] = {};
#pragma unroll
        for (int h = 0; h < 2; ++h)
          mma_fp16(product, both[h], lower_halves(c[2 * i + h], b[2 * i + h]),
                   upper_halves(c[2 * i + h], b[2 * i + h]));
        mma_fp16(product, first, b[2 * i], b[2 * i + 1]);
#pragma unroll
        for (int k = 0; k < 4; ++k) scores[0][n + i][k] += product[k];
      }
    }
  }
}

// multiply_outputs of pairs.
template <typename Type>
  requires Tile<Type>::kPairs
__device__ inline void multiply_outputs(
    typename Tile<Type>::Outputs& outputs,
    const typename Tile<Type>::Scores& weights, const unsigned char* columns,
    int elements) {
  using T = Tile<Type>;
  const int lane = lane_index();
  constexpr int kPairs = T::kColumnFragments / 2;
  uint32_t first[kPairs][4], rest[kPairs][4];
#pragma unroll
  for (int k = 0; k < kPairs; ++k)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* w = &weights[0][2 * k + i / 2][2 * (i % 2)];
      split_in_pairs(w[0], w[1], first[k][i], rest[k][i]);
    }
  int column_at = unit_offset<Type>(lane & 15, lane >> 4);
  forget_value(column_at);
#pragma unroll
  for (int n = 0; n < T::kOutputFragments; n += 2) {
    if (8 * n >= elements) break;
    float products[2][kPairs][4] = {};
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      uint32_t b[4], c[4];
      const unsigned char* from = columns + 16 * k * T::kPitch;
      load_matrices_transposed(b, from + (column_at ^ (16 * n)));
      load_matrices_transposed(c, from + (column_at ^ (16 * n + kRest)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float (&product)[4] = products[i][k];
        mma_fp16(product, first[k], c[2 * i], c[2 * i + 1]);
        mma_fp16(product, rest[k], b[2 * i], b[2 * i + 1]);
        mma_fp16(product, first[k], b[2 * i], b[2 * i + 1]);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float sum = products[i][0][j];
#pragma unroll
        for (int k = 1; k < kPairs; ++k) sum += products[i][k][j];
        outputs[0][n + i][j] += sum;
      }
  }
}

// Scores += the warp's rows of `rows` . columns, over the chunk's elements.
template <typename Type>
  requires(!Tile<Type>::kPairs)
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

// The warp's rows of a whole chunk of 16-bit elements, in registers.
template <typename Type>
struct LeftRows {
  using T = Tile<Type>;
  uint32_t at[T::kSteps][T::kRowFragments][4];

  __device__ void load(const unsigned char* rows) {
    const int row = warp_index() * T::kWarpRows + (lane_index() & 15);
    const int row_at = unit_offset<Type>(row, lane_index() >> 4);
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step)
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f)
        load_matrices(at[step][f],
                      rows + (row_at ^ (32 * step)) + 16 * f * T::kPitch);
  }
};

// multiply_scores with them, to the same bits; column by column, so that the
// first scores are there early.
template <typename Type>
__device__ inline void multiply_scores(typename Tile<Type>::Scores& scores,
                                       const LeftRows<Type>& rows,
                                       const unsigned char* columns) {
  using T = Tile<Type>;
  const int lane = lane_index();
  int column_at =
      unit_offset<Type>((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1);
  forget_value(column_at);
#pragma unroll
  for (int n = 0; n < T::kColumnFragments; n += 2)
#pragma unroll
    for (int step = 0; step < T::kSteps; ++step) {
      uint32_t b[4];
      load_matrices(b, columns + (column_at ^ (32 * step)) + 8 * n * T::kPitch);
#pragma unroll
      for (int f = 0; f < T::kRowFragments; ++f) {
        multiply<Type>(scores[f][n], rows.at[step][f], b[0], b[1]);
        multiply<Type>(scores[f][n + 1], rows.at[step][f], b[2], b[3]);
      }
    }
}

// Outputs += weights . columns, over the chunk's elements.
template <typename Type>
  requires(!Tile<Type>::kPairs)
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
