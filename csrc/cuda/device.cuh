// Every intrinsic that a kernel here may use, and how one is launched. The same
// names exist for the host (python_tests/cuda_host), where g++ compiles the
// kernels and each CUDA thread is executed.
#pragma once

#ifndef __CUDACC__
#include <executor.h>

namespace s3h::cuda {
inline void forget_value(int&) {}
}  // namespace s3h::cuda
#else

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>

#include "status.h"

namespace s3h::cuda {

// ---------------------------------------------------------------- position

__device__ inline int thread_x() { return static_cast<int>(threadIdx.x); }
__device__ inline int block_x() { return static_cast<int>(blockIdx.x); }
__device__ inline int block_y() { return static_cast<int>(blockIdx.y); }
__device__ inline int block_z() { return static_cast<int>(blockIdx.z); }
__device__ inline int block_threads() { return static_cast<int>(blockDim.x); }
__device__ inline int grid_x() { return static_cast<int>(gridDim.x); }
__device__ inline int grid_y() { return static_cast<int>(gridDim.y); }

// The block's shared memory, of the size given at launch, aligned to 128.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// ------------------------------------------------------------ communication

__device__ inline void block_barrier() { __syncthreads(); }
__device__ inline void warp_barrier() { __syncwarp(); }
// Keeps the compiler from holding on to what it has read from memory: loads are
// cheaper than the registers that they would take up.
__device__ inline void forget_loads() { asm volatile("" ::: "memory"); }
// Keeps it from computing ahead of a loop what is made of this value.
__device__ inline void forget_value(int& value) {
  asm volatile("" : "+r"(value));
}
__device__ inline float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ inline double shuffle_xor(double value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
__device__ inline bool warp_any(bool value) {
  return __any_sync(0xffffffffu, value);
}
// Bit l: what lane l has.
__device__ inline uint32_t warp_ballot(bool value) {
  return __ballot_sync(0xffffffffu, value);
}
__device__ inline void atomic_add(float* to, float value) {
  atomicAdd(to, value);
}
// Whole numbers, whose order of arrival does not show in the result.
__device__ inline void atomic_max(uint64_t* to, uint64_t value) {
  atomicMax(reinterpret_cast<unsigned long long*>(to),
            static_cast<unsigned long long>(value));
}
__device__ inline void atomic_add(uint32_t* to, uint32_t value) {
  atomicAdd(to, value);
}
__device__ inline int32_t atomic_exchange(int32_t* to, int32_t value) {
  return atomicExch(to, value);
}
// Counts one more and returns the count before. What this thread has seen, such
// as all that its block wrote before a barrier, is seen by who counts after it.
__device__ inline uint32_t arrive(uint32_t* count) {
  __threadfence();
  const uint32_t before = atomicAdd(count, 1u);
  __threadfence();
  return before;
}
// What others may be changing by atomics meanwhile.
__device__ inline uint64_t read_shared_word(const uint64_t* from) {
  return *static_cast<const volatile uint64_t*>(from);
}
// What nobody writes while the kernel runs.
__device__ inline uint32_t read_only(const uint32_t* from) {
  return __ldg(from);
}
__device__ inline uint8_t read_only(const uint8_t* from) { return __ldg(from); }
// Ends the kernel with an error that the host finds at its next call, as an
// index out of range does in torch's own kernels.
[[noreturn]] __device__ inline void stop(const char* message) {
  printf("s3h_ext: %s\n", message);
  __trap();
}

// ------------------------------------------------- asynchronous copies, sm_80

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// kBytes to shared memory, zeros if not `valid` (`from` is then not read). Both
// ends aligned to kBytes. Only 16 byte copies bypass L1.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(
                     shared_address(to)),
                 "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
}
__device__ inline void copies_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ inline void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// -------------------------------------------------------------- tensor cores

// Four 8x8 matrices of 16 bit elements; lane l hands over row l % 8 of matrix
// l / 8, 16 bytes, and gets of each matrix row l / 4, elements 2 (l % 4) +
// 0, 1.
__device__ inline void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
      : "r"(shared_address(row))
      : "memory");
}
// The same of the transposed matrices.
__device__ inline void load_matrices_transposed(uint32_t (&out)[4],
                                                const void* row) {
  asm volatile(
      "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
      : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
      : "r"(shared_address(row))
      : "memory");
}

// c += a b, tile 16x8, accumulated in float32. With g = lane / 4, t = lane % 4:
//   c: (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1)
//   16 bit, depth 16: a: (g, 2t..), (g+8, 2t..), (g, 2t+8..), (g+8, 2t+8..)
//                     b: (2t.., g), (2t+8.., g)
//   TF32, depth 8: a: (g, t), (g+8, t), (g, t+4), (g+8, t+4); b: (t, g), (t+4,
//   g)
#define S3H_MMA(NAME, SHAPE_AND_TYPES)                                  \
  __device__ inline void NAME(float (&c)[4], const uint32_t (&a)[4],    \
                              uint32_t b0, uint32_t b1) {               \
    asm volatile("mma.sync.aligned." SHAPE_AND_TYPES                    \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "      \
                 "{%0, %1, %2, %3};"                                    \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])       \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), \
                   "r"(b1));                                            \
  }
S3H_MMA(mma_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
S3H_MMA(mma_fp16, "m16n8k16.row.col.f32.f16.f16.f32")
S3H_MMA(mma_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef S3H_MMA

// ---------------------------------------------------------------- arithmetic

// 2^x to 2 units in the last place; results below 2^-126 are 0.
__device__ inline float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
__device__ inline float log_of(float x) { return logf(x); }
__device__ inline double log_of(double x) { return log(x); }
__device__ inline double exp_of(double x) { return exp(x); }
__device__ inline float max_of(float a, float b) { return fmaxf(a, b); }
__device__ inline double max_of(double a, double b) { return fmax(a, b); }
__device__ inline float magnitude(float x) { return fabsf(x); }
// Rounded to the nearest, whatever the compiler's flags say.
__device__ inline float root_of(float x) { return __fsqrt_rn(x); }
__device__ inline double root_of(double x) { return __dsqrt_rn(x); }
// Never fused with what follows it.
__device__ inline float product_of(float a, float b) { return __fmul_rn(a, b); }
// a b + c with one rounding.
__device__ inline float fused(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
// In [0, 1]; NaN passes.
__device__ inline float within_unit(float x) {
  asm("max.NaN.f32 %0, %0, 0f00000000;" : "+f"(x));
  asm("min.NaN.f32 %0, %0, 0f3f800000;" : "+f"(x));
  return x;
}
// 32 of the 64 bits of `high`, `low`, from bit shift % 32 on.
__device__ inline uint32_t funnel_right(uint32_t low, uint32_t high,
                                        uint32_t shift) {
  return __funnelshift_r(low, high, shift);
}
__device__ inline uint32_t byte_of(uint32_t word, int number) {
  return __byte_perm(word, 0, 0x4440 + number);
}
__device__ inline int count_bits(uint32_t x) { return __popc(x); }
// 2^e for -126 <= e <= 127, and the exponent of a normal number.
__device__ inline float power_of_two(int e) {
  return __int_as_float((e + 127) << 23);
}
__device__ inline int exponent_of(float x) {
  return ((__float_as_int(x) >> 23) & 0xff) - 127;
}

// The bits of x rounded to TF32's 10 bits of mantissa.
__device__ inline uint32_t to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}
__device__ inline float bits_to_float(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ inline uint32_t float_to_bits(float x) { return __float_as_uint(x); }
__device__ inline uint64_t double_to_bits(double x) {
  return static_cast<uint64_t>(__double_as_longlong(x));
}

// Two numbers, the first in the low half.
__device__ inline uint32_t pack_bf16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
__device__ inline uint32_t pack_fp16(float low, float high) {
  uint32_t bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}
// The lower halves of two words side by side, and the upper ones.
__device__ inline uint32_t lower_halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x5410);
}
__device__ inline uint32_t upper_halves(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x7632);
}
__device__ inline float unpack_fp16(uint16_t bits) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
  return result;
}

// -------------------------------------------------------------------- host

inline Status status_of(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return {};
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInvalidPtx:
      cudaGetLastError();  // or the next caller would find it
      return {StatusCode::kNotCompiled, cudaGetErrorString(error)};
    default:
      cudaGetLastError();
      return {StatusCode::kCudaError, cudaGetErrorString(error)};
  }
}

inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&value, attribute, device) != cudaSuccess)
    cudaGetLastError();
  return value;
}
inline int multiprocessors() {
  return device_attribute(cudaDevAttrMultiProcessorCount);
}
// The most shared memory that a block may ask for.
inline size_t shared_memory_limit() {
  return static_cast<size_t>(
      device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin));
}

template <typename... Parameters>
Status launch(void (*kernel)(Parameters...), Grid grid, int threads,
              size_t shared_bytes, Stream stream, Parameters... arguments) {
  if (!fits(grid)) return {StatusCode::kCudaError, "invalid grid"};
  const auto entry = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > 48 * 1024) {
    // All that there is, not what this launch takes: another thread may be
    // about to launch the same kernel with more.
    cudaFuncAttributes own;
    cudaError_t error = cudaFuncGetAttributes(&own, entry);
    if (error == cudaSuccess)
      error = cudaFuncSetAttribute(
          entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
          static_cast<int>(shared_memory_limit() - own.sharedSizeBytes));
    if (error != cudaSuccess) return status_of(error);
  }
  void* pointers[] = {&arguments...};
  return status_of(cudaLaunchKernel(
      entry,
      dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y),
           static_cast<unsigned>(grid.z)),
      dim3(static_cast<unsigned>(threads)), pointers, shared_bytes, stream));
}

inline Status fill_zero(void* to, size_t bytes, Stream stream) {
  return status_of(cudaMemsetAsync(to, 0, bytes, stream));
}

}  // namespace s3h::cuda
#endif
