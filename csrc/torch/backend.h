// The device of a library. Every file of operations is compiled once for each
// library and templated over this.
#pragma once

#if defined(USE_CUDA)
#include "cuda_backend.h"
#define S3H_DISPATCH_KEY CUDA
namespace s3h::stable {
using LibraryBackend = Cuda;
}
#else
#include "cpu_backend.h"
#define S3H_DISPATCH_KEY CPU
namespace s3h::stable {
using LibraryBackend = Cpu;
}
#endif
