// How this library was built and what it runs on, for s3h_ext.info. C functions
// can be read without torch or a schema.
#include <exception>
#include <string>

#include "../cpu/dispatch.h"

#if defined(__clang__)
#define S3H_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define S3H_COMPILER "gcc " __VERSION__
#else
#define S3H_COMPILER "unknown compiler"
#endif

extern "C" {

const char* s3h_cpu_dispatch_level() {
  try {
    return s3h::cpu::level_name(s3h::cpu::dispatch_level());
  } catch (const std::exception& error) {
    static const std::string message = error.what();
    return message.c_str();
  }
}

const char* s3h_cpu_built_levels() { return S3H_CPU_LEVELS; }

const char* s3h_built_with() {
  return S3H_COMPILER ", torch " S3H_TORCH_VERSION;
}

// The build's CUDA options and their outcome.
const char* s3h_cuda_build() { return S3H_CUDA_NOTE; }

// The architectures that the CUDA library next to this one was compiled for.
const char* s3h_cuda_archs() { return S3H_CUDA_ARCHS; }
}
