// How a launch ended. No toolkit header is needed to read it.
#pragma once

struct CUstream_st;

namespace s3h::cuda {

// The same type as cudaStream_t; nullptr is the legacy default stream.
using Stream = CUstream_st*;

enum class StatusCode {
  kOk,
  kNotCompiled,  // the library holds no code for the current device
  kCudaError,    // message says which
};

struct Status {
  StatusCode code = StatusCode::kOk;
  const char* message = "";  // static storage

  bool ok() const { return code == StatusCode::kOk; }
};

}  // namespace s3h::cuda
