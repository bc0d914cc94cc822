// Treats denormal inputs and outputs as zeros on the calling thread while an
// object of this class lives, and restores the thread's floating-point state
// afterwards.
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

namespace s3h::cpu {

class FlushDenormals {
 public:
#if defined(__SSE2__)
  FlushDenormals() : before_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZeros = 0x0040;
    _mm_setcsr(before_ | kFlushToZero | kDenormalsAreZeros);
  }
  ~FlushDenormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#elif defined(__aarch64__)
  FlushDenormals() {
    constexpr uint64_t kFlushToZero = uint64_t{1} << 24;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before_));
    set(before_ | kFlushToZero);
  }
  ~FlushDenormals() { set(before_); }

 private:
  static void set(uint64_t state) {
    __asm__ volatile("msr fpcr, %0" : : "r"(state) : "memory");
  }
  uint64_t before_ = 0;
#else
  FlushDenormals() {}  // non-trivial: avoids an unused-object warning
#endif

 public:
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace s3h::cpu
