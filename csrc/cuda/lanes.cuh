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
  // Where the squares are ordinary numbers, with all their digits.
  constexpr Real kTiny = sizeof(Real) == 8 ? Real(0x1p-998) : Real(0x1p-102);
  if (squares > kTiny && squares < infinity<Real>())
    return 1 / root_of(squares);
  double wide = 0;
  for (int64_t d = thread_x() % 32; d < depth; d += 32)
    wide += static_cast<double>(at(d)) * static_cast<double>(at(d));
  wide = sum_of_lanes(wide);
  if (wide == 0) return 0;
  const Real inverse = static_cast<Real>(1 / root_of(wide));
  return inverse > 0 ? inverse : infinity<Real>() * Real(0);
}

}  // namespace s3h::cuda
