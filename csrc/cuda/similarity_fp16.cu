#include "similarity_set.cuh"

namespace s3h::cuda {

const KernelSet& fp16_kernels() {
  static constexpr KernelSet set = kernel_set<Fp16>();
  return set;
}

}  // namespace s3h::cuda
