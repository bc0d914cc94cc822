// What a launch takes and how it ended. No toolkit header is needed to read it.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace s3h::cuda {

// The same type as cudaStream_t; nullptr is the legacy default stream.
using Stream = CUstream_st*;

struct Grid {
  int64_t x = 1, y = 1, z = 1;
};

// Whether a device can take it. Its sides are cast to 32 bits afterwards.
inline bool fits(const Grid& grid) {
  return grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffff &&
         grid.y <= 65535 && grid.z <= 65535;
}

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
