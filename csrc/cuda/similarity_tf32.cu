#include "similarity_set.cuh"

namespace s3h::cuda {

const KernelSet& tf32_kernels() {
  static constexpr KernelSet set = kernel_set<Fp32<false>>();
  return set;
}

}  // namespace s3h::cuda
