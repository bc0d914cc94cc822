#include "similarity_set.cuh"

namespace s3h::cuda {

const KernelSet& bf16_kernels() {
  static constexpr KernelSet set = kernel_set<Bf16>();
  return set;
}

}  // namespace s3h::cuda
