// The types of matrices.
#pragma once

namespace s3h::cuda {

// Real, the type of all vectors and of the arithmetic that is not on tensor
// cores, is double for kFloat64, else float.
enum class Scalar { kFloat32, kBFloat16, kFloat16, kFloat64 };

}  // namespace s3h::cuda
