#include "similarity_set.cuh"

namespace s3h::cuda {

const KernelSet& fp32_kernels() {
  static constexpr KernelSet set = kernel_set<Fp32<true>>();
  return set;
}

}  // namespace s3h::cuda
