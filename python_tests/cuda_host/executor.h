// Executes CUDA kernels on the host, for tests. The same names as
// csrc/cuda/device.cuh has for nvcc, so that g++ compiles the kernels
// unchanged.
//
// Every CUDA thread is a fiber; the fibers of a block take turns on one system
// thread and change only where they wait: at barriers and at instructions that
// a warp carries out together. To the thread sanitizer they are threads of
// their own, and the only order it is told of is that of barriers (shuffles,
// ldmatrix and mma are none) and of launches: blocks of one launch have no
// order. Who runs next is drawn from a seed.
//
// - cp.async poisons its place with NaN when issued and copies when waited for.
// - Shared memory is a heap block of the exact size, full of NaN: the address
//   sanitizer sees what lies outside.
// - A barrier that not all threads reach, and warps whose lanes meet at
//   different instructions, end the program with a message. Two instructions of
//   one kind differ if their places in the source do, and two shuffles if their
//   masks do; calls of one function that holds the instruction are not told
//   apart.
// - mma adds as an A100 does, the least accurate GPU that the kernels run on
//   (kKeptBits in instructions.cpp). TF32 operands lose the bits that the
//   hardware does not read.
// - Float atomics flush subnormal numbers to zero in global memory, not in
//   shared memory (PTX ISA, atom).
// - Conversions turn any NaN into the one of the PTX ISA, 0x7fff...
// Not modelled: memory models weaker than the above, the errors of exp2_fast,
// timing.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

#include "../../csrc/cuda/status.h"

#define __global__
#define __device__
#define __launch_bounds__(...)

namespace s3h::host {

struct Index {
  int x, y, z;
};

// A cp.async under way.
struct Copy {
  volatile uint32_t* to;
  const volatile uint32_t* from;
  int words;
  bool valid;
};

constexpr int kMaxCopies = 512;
constexpr int kMaxGroups = 16;

// What a CUDA thread may know of itself.
struct Thread {
  int index;
  int threads;
  Index block;
  Index grid;
  unsigned char* shared;
  size_t shared_bytes;
  Copy copies[kMaxCopies];
  int copy_count;
  int groups[kMaxGroups];  // copies that each open group ends before
  int group_count;
};

// What lanes of a warp can do together; all must do the same.
enum class Together {
  kBarrier,
  kShuffle,
  kAny,
  kBallot,
  kMatrices,
  kTransposed,
  kMma
};

using Place = std::source_location;

Thread& current();
void block_barrier();
// Hands over `in` and gets this lane's part of what `all`, called once with the
// 32 lanes' data, makes of it. Orders memory only for kBarrier.
void together(Together what, const Place& where, const void* in,
              size_t in_bytes, void* out, size_t out_bytes,
              void (*all)(const void* in, void* out));
[[noreturn]] void fail(const char* message);

struct Launch {
  Index grid;
  int threads;
  size_t shared_bytes;
  void (*body)(const void* arguments);
  const void* arguments;
};
void run(const Launch& launch);

// Settings of the tests.
extern int multiprocessor_count;
extern size_t shared_limit;
// What a device would be given to do so far: kernels, and memory to fill.
extern int64_t launch_count;

template <typename In, typename Out>
Out collect(Together what, const Place& where, const In& in,
            void (*all)(const In*, Out*)) {
  Out out;
  together(what, where, &in, sizeof in, &out, sizeof out,
           reinterpret_cast<void (*)(const void*, void*)>(all));
  return out;
}

// What lanes exchange is done in instructions.cpp: it is no access of a thread.
template <typename T>
struct Shuffle {
  T value;
  int mask;
};
void exchange(const Shuffle<float>* in, float* out);
void exchange(const Shuffle<double>* in, double* out);
void any_of(const int* in, int* out);
void ballot(const int* in, uint32_t* out);
void nothing(const int* in, int* out);

struct Fragments {
  uint32_t at[4];
};

// Reads a row of 8 elements, in the reading lane's name.
inline Fragments read_row(const void* row) {
  const Thread& self = current();
  const auto* bytes = static_cast<const unsigned char*>(row);
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0)
    fail("ldmatrix: a row is not aligned to 16 bytes");
  if (bytes < self.shared) fail("ldmatrix: a row is not in shared memory");
  const auto* words = static_cast<const volatile uint32_t*>(row);
  return {{words[0], words[1], words[2], words[3]}};
}

void spread_matrices(const Fragments* rows, Fragments* out);
void spread_transposed(const Fragments* rows, Fragments* out);

struct MmaOperands {
  float c[4];
  uint32_t a[4];
  uint32_t b[2];
};
struct MmaResult {
  float c[4];
};
void mma_bf16(const MmaOperands* in, MmaResult* out);
void mma_fp16(const MmaOperands* in, MmaResult* out);
void mma_tf32(const MmaOperands* in, MmaResult* out);

uint16_t to_bf16(float x);
uint16_t to_fp16(float x);
float from_fp16(uint16_t bits);

}  // namespace s3h::host

namespace s3h::cuda {

inline int thread_x() { return host::current().index; }
inline int block_x() { return host::current().block.x; }
inline int block_y() { return host::current().block.y; }
inline int block_z() { return host::current().block.z; }
inline int block_threads() { return host::current().threads; }
inline int grid_x() { return host::current().grid.x; }
inline int grid_y() { return host::current().grid.y; }
inline unsigned char* shared_memory() { return host::current().shared; }

inline void block_barrier() { host::block_barrier(); }
inline void warp_barrier(host::Place where = host::Place::current()) {
  host::collect<int, int>(host::Together::kBarrier, where, 0, host::nothing);
}
inline void forget_loads() {}
inline float shuffle_xor(float value, int mask,
                         host::Place where = host::Place::current()) {
  return host::collect<host::Shuffle<float>, float>(
      host::Together::kShuffle, where, {value, mask}, host::exchange);
}
inline double shuffle_xor(double value, int mask,
                          host::Place where = host::Place::current()) {
  return host::collect<host::Shuffle<double>, double>(
      host::Together::kShuffle, where, {value, mask}, host::exchange);
}
inline bool warp_any(bool value, host::Place where = host::Place::current()) {
  return host::collect<int, int>(host::Together::kAny, where, value,
                                 host::any_of) != 0;
}
inline uint32_t warp_ballot(bool value,
                            host::Place where = host::Place::current()) {
  return host::collect<int, uint32_t>(host::Together::kBallot, where, value,
                                      host::ballot);
}
inline void atomic_max(uint64_t* to, uint64_t value) {
  uint64_t before = __atomic_load_n(to, __ATOMIC_RELAXED);
  while (before < value &&
         !__atomic_compare_exchange_n(to, &before, value, false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}
inline void atomic_add(uint32_t* to, uint32_t value) {
  __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}
inline int32_t atomic_exchange(int32_t* to, int32_t value) {
  return __atomic_exchange_n(to, value, __ATOMIC_RELAXED);
}
inline uint32_t arrive(uint32_t* count) {
  return __atomic_fetch_add(count, 1u, __ATOMIC_ACQ_REL);
}
inline uint64_t read_shared_word(const uint64_t* from) {
  return __atomic_load_n(from, __ATOMIC_RELAXED);
}
inline uint32_t read_only(const uint32_t* from) { return *from; }
inline uint8_t read_only(const uint8_t* from) { return *from; }
[[noreturn]] inline void stop(const char* message) { host::fail(message); }
inline void atomic_add(float* to, float value) {
  const host::Thread& self = host::current();
  const auto* place = reinterpret_cast<const unsigned char*>(to);
  const bool shared =
      place >= self.shared && place < self.shared + self.shared_bytes;
  const auto kept = [shared](float x) {
    return shared || std::fabs(x) >= 0x1p-126f || std::isnan(x)
               ? x
               : std::copysign(0.f, x);
  };
  float before, after;
  __atomic_load(to, &before, __ATOMIC_RELAXED);
  do {
    after = kept(kept(before) + kept(value));
  } while (!__atomic_compare_exchange(to, &before, &after, false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
}

template <int kBytes>
inline void copy_async(void* to, const void* from, bool valid) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  host::Thread& self = host::current();
  if (reinterpret_cast<uintptr_t>(to) % kBytes != 0 ||
      (valid && reinterpret_cast<uintptr_t>(from) % kBytes != 0))
    host::fail("cp.async: an address is not aligned to its size");
  if (self.copy_count == host::kMaxCopies) host::fail("cp.async: too many");
  auto* words = static_cast<volatile uint32_t*>(to);
  // Whole volatile words: what the compiler cannot turn into a memcpy that the
  // thread sanitizer does not see.
  for (int i = 0; i < kBytes / 4; ++i) words[i] = 0xffffffffu;
  self.copies[self.copy_count++] = {
      words, static_cast<const volatile uint32_t*>(from), kBytes / 4, valid};
}
inline void copies_commit() {
  host::Thread& self = host::current();
  if (self.group_count == host::kMaxGroups) host::fail("cp.async: groups");
  self.groups[self.group_count++] = self.copy_count;
}
template <int kPending>
inline void copies_wait() {
  host::Thread& self = host::current();
  const int done = self.group_count - kPending;
  if (done <= 0) return;
  const int count = self.groups[done - 1];
  for (int i = 0; i < count; ++i) {
    const host::Copy& copy = self.copies[i];
    for (int w = 0; w < copy.words; ++w)
      copy.to[w] = copy.valid ? copy.from[w] : 0u;
  }
  for (int i = count; i < self.copy_count; ++i)
    self.copies[i - count] = self.copies[i];
  self.copy_count -= count;
  for (int i = done; i < self.group_count; ++i)
    self.groups[i - done] = self.groups[i] - count;
  self.group_count -= done;
}

inline void load_matrices(uint32_t (&out)[4], const void* row,
                          host::Place where = host::Place::current()) {
  const auto got = host::collect<host::Fragments, host::Fragments>(
      host::Together::kMatrices, where, host::read_row(row),
      host::spread_matrices);
  for (int i = 0; i < 4; ++i) out[i] = got.at[i];
}
inline void load_matrices_transposed(
    uint32_t (&out)[4], const void* row,
    host::Place where = host::Place::current()) {
  const auto got = host::collect<host::Fragments, host::Fragments>(
      host::Together::kTransposed, where, host::read_row(row),
      host::spread_transposed);
  for (int i = 0; i < 4; ++i) out[i] = got.at[i];
}

#define S3H_HOST_MMA(NAME)                                                    \
  inline void NAME(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,        \
                   uint32_t b1, host::Place where = host::Place::current()) { \
    const auto got = host::collect<host::MmaOperands, host::MmaResult>(       \
        host::Together::kMma, where,                                          \
        {{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}},       \
        host::NAME);                                                          \
    for (int i = 0; i < 4; ++i) c[i] = got.c[i];                              \
  }
S3H_HOST_MMA(mma_bf16)
S3H_HOST_MMA(mma_fp16)
S3H_HOST_MMA(mma_tf32)
#undef S3H_HOST_MMA

inline uint32_t float_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline uint64_t double_to_bits(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_to_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline float exp2_fast(float x) {
  const float result = std::exp2(x);
  return result < 0x1p-126f ? 0.f : result;
}
inline float log_of(float x) { return std::log(x); }
inline double log_of(double x) { return std::log(x); }
inline double exp_of(double x) { return std::exp(x); }
inline float max_of(float a, float b) { return std::fmax(a, b); }
inline double max_of(double a, double b) { return std::fmax(a, b); }
inline float within_unit(float x) {
  x = x < 0.f ? 0.f : x;
  return x > 1.f ? 1.f : x;
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> shift % 32);
}
inline uint32_t byte_of(uint32_t word, int number) {
  return word >> 8 * number & 0xff;
}
inline float magnitude(float x) { return std::fabs(x); }
inline float root_of(float x) { return std::sqrt(x); }
inline double root_of(double x) { return std::sqrt(x); }
// Through memory: a compiler may fuse what it sees.
inline float product_of(float a, float b) {
  volatile float product = a * b;
  return product;
}
inline float fused(float a, float b, float c) { return std::fma(a, b, c); }
inline int count_bits(uint32_t x) { return __builtin_popcount(x); }
inline float power_of_two(int e) {
  return bits_to_float(static_cast<uint32_t>(e + 127) << 23);
}
inline int exponent_of(float x) {
  return static_cast<int>((float_to_bits(x) >> 23) & 0xff) - 127;
}
inline uint32_t to_tf32(float x) {
  if (std::isnan(x)) return 0x7fffffffu;
  return (float_to_bits(x) + 0x1000u) & ~0x1fffu;
}
inline uint32_t pack_bf16(float low, float high) {
  return host::to_bf16(low) | static_cast<uint32_t>(host::to_bf16(high)) << 16;
}
inline uint32_t pack_fp16(float low, float high) {
  return host::to_fp16(low) | static_cast<uint32_t>(host::to_fp16(high)) << 16;
}
inline uint32_t lower_halves(uint32_t first, uint32_t second) {
  return (first & 0xffffu) | (second << 16);
}
inline uint32_t upper_halves(uint32_t first, uint32_t second) {
  return (first >> 16) | (second & 0xffff0000u);
}
inline float unpack_fp16(uint16_t bits) { return host::from_fp16(bits); }

template <typename... Parameters>
Status launch(void (*kernel)(Parameters...), Grid grid, int threads,
              size_t shared_bytes, Stream, Parameters... arguments) {
  if (shared_bytes > host::shared_limit)
    return {StatusCode::kCudaError, "too much shared memory"};
  if (!fits(grid)) return {StatusCode::kCudaError, "invalid grid"};
  ++host::launch_count;
  const auto body = [&] { kernel(arguments...); };
  host::run(
      {{static_cast<int>(grid.x), static_cast<int>(grid.y),
        static_cast<int>(grid.z)},
       threads,
       shared_bytes,
       [](const void* call) { (*static_cast<const decltype(body)*>(call))(); },
       &body});
  return {};
}

inline Status fill_zero(void* to, size_t bytes, Stream) {
  ++host::launch_count;
  std::memset(to, 0, bytes);
  return {};
}
inline int multiprocessors() { return host::multiprocessor_count; }
inline size_t shared_memory_limit() { return host::shared_limit; }

}  // namespace s3h::cuda
