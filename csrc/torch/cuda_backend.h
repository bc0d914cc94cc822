// Context for launching CUDA kernels.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <string>

#include "../cuda/scalar.h"
#include "../cuda/status.h"
#include "tensors.h"

namespace s3h::stable {

// Makes the tensors' device current while it lives: kernels, workspace sizes
// and errors refer to the current device.
class Cuda {
 public:
  static constexpr bool kCuda = true;

  explicit Cuda(const Device& device)
      : index_(checked_index(device)), guard_(index_) {}

  // Calls `launch` with a stream.
  template <typename Launch>
  void run(const char* operation, const Launch& launch) const {
    check(launch(stream()), operation);
  }

  // Calls `launch` with a stream, and device memory for the length of the call.
  // The memory is from torch's caching allocator: a graph that captures the
  // call keeps it in its own pool.
  template <typename Launch>
  void run(const char* operation, const Tensor& like, size_t bytes,
           const Launch& launch) const {
    const Tensor workspace =
        new_empty(like, {static_cast<int64_t>(bytes)}, ScalarType::Byte);
    check(launch(workspace.mutable_data_ptr(), stream()), operation);
  }

  // The matrix type of the similarity kernels.
  static ScalarType similarity_type(const Tensor& queries) {
    return queries.scalar_type();
  }

  // The matrix type of the class sums.
  static ScalarType class_sums_type(const Tensor& queries) {
    return queries.scalar_type();
  }

  static cuda::Scalar scalar(ScalarType type) {
    switch (type) {
      case ScalarType::Double:
        return cuda::Scalar::kFloat64;
      case ScalarType::BFloat16:
        return cuda::Scalar::kBFloat16;
      case ScalarType::Half:
        return cuda::Scalar::kFloat16;
      default:
        return cuda::Scalar::kFloat32;
    }
  }

 private:
  // torch's current stream on the device.
  cuda::Stream stream() const {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    return static_cast<cuda::Stream>(stream);
  }

  void check(const cuda::Status& status, const char* operation) const {
    if (status.ok()) return;
    if (status.code == cuda::StatusCode::kNotCompiled) {
      int major = 0, minor = 0;
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index_);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index_);
      const std::string arch =
          std::to_string(major) + "." + std::to_string(minor);
      STD_TORCH_CHECK(
          false, operation, ": this build of s3h_ext has no kernels for sm_",
          major, minor, ", only ", S3H_CUDA_ARCHS, ". Rebuild: ",
          major < 8 ? "S3H_CUDA=off" : "TORCH_CUDA_ARCH_LIST=" + arch,
          " pip install --no-build-isolation .");
    }
    STD_TORCH_CHECK(false, operation, ": ", status.message,
                    " (s3h_ext was built with CUDA ", CUDART_VERSION / 1000,
                    ".", CUDART_VERSION % 1000 / 10, ")");
  }

  static int32_t checked_index(const Device& device) {
    STD_TORCH_CHECK(device.type() == torch::headeronly::DeviceType::CUDA,
                    "the tensors must be on a CUDA device");
    return device.index();
  }

  int32_t index_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace s3h::stable
