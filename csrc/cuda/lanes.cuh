// What the lanes of a warp find out together about a row.
#pragma once

#include "device.cuh"

namespace s3h::cuda {

template <typename Real>
__device__ inline Real infinity() {
  return static_cast<Real>(__builtin_huge_val());
}

template <typename Real>
__device__ constexpr Real epsilon() {
  return sizeof(Real) == 8 ? Real(0x1p-52) : Real(0x1p-23);
}

template <typename Real>
__device__ inline Real sum_of_lanes(Real x) {
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

template <typename Real>
__device__ inline Real greatest_of_lanes(Real x) {
  for (int mask = 16; mask > 0; mask /= 2) {
    const Real other = shuffle_xor(x, mask);
    x = other > x ? other : x;
  }
  return x;
}

// 1 / norm of a row, for all lanes of a warp: 0 for a row of zeros, NaN for one
// that holds a NaN or an infinity, or is too long for its inverse. `squares` is
// this lane's part of their sum, at(d) the row.
template <typename Real, typename At>
__device__ inline Real inverse_norm(Real squares, int64_t depth, const At& at) {
  squares = sum_of_lanes(squares);
  // Where the squares are ordinary numbers, with all their digits; else again,
  // of numbers that have ordinary ones.
  constexpr bool kDouble = sizeof(Real) == 8;
  constexpr Real kTiny = kDouble ? Real(0x1p-998) : Real(0x1p-102);
  Real scale = 1;
  if (!(squares > kTiny && squares < infinity<Real>())) {
    scale = squares <= kTiny ? (kDouble ? Real(0x1p600) : Real(0x1p100))
                             : (kDouble ? Real(0x1p-600) : Real(0x1p-100));
    squares = 0;
#pragma unroll 1
    for (int64_t d = thread_x() % 32; d < depth; d += 32) {
      const Real x = at(d) * scale;
      squares += x * x;
    }
    squares = sum_of_lanes(squares);
  }
  if (squares == 0) return 0;
  const Real inverse = 1 / root_of(squares) * scale;
  return squares < infinity<Real>() && inverse > 0 ? inverse
                                                   : infinity<Real>() * Real(0);
}

}  // namespace s3h::cuda
