// The machine's own limits, measured beside every timing: multiply-adds a
// second from registers (float32; bfloat16 pairs where there are any, by the
// tile unit where there is one) and exponentials a second by the kernel's own
// method, data in registers. Prints: threads, GFLOP/s float32, GFLOP/s bfloat16
// (0: none), Gexp/s.
//
// Compiled by benchmarks/similarity.py with -O3 -march=native -pthread.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../csrc/cpu/vec.h"

#if defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include "../csrc/cpu/tile_unit.h"
#define S3H_TILES
#endif

namespace s3h::cpu {
using namespace S3H_LEVEL;
namespace {

constexpr int kRows = kLanes == 16 ? 8 : 4;
constexpr int kChains = kRows * 3;
constexpr int64_t kRounds = 4000000;

// Keeps the compiler from knowing a value.
S3H_INLINE void hide(Vec& v) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(v));
#else
  asm volatile("" : "+w"(v));
#endif
}

// Flops of one multiply_add chain step are counted by the caller.
template <bool Pairs>
void multiply_adds() {
  Vec acc[kRows][3];
  Vec a = broadcast(1e-9f), b = broadcast(0.999f);
  S3H_UNROLL for (int r = 0; r < kRows; ++r)
      S3H_UNROLL for (int c = 0; c < 3; ++c) acc[r][c] = broadcast(1.0f);
  hide(a);
  hide(b);
  for (int64_t i = 0; i < kRounds; ++i)
    S3H_UNROLL for (int r = 0; r < kRows; ++r)
        S3H_UNROLL for (int c = 0; c < 3; ++c) {
#if defined(__AVX512BF16__)
      if constexpr (Pairs)
        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], (__m512bh)a, (__m512bh)b);
      else
#endif
        acc[r][c] = a * b + acc[r][c];
      hide(acc[r][c]);
    }
}

#if defined(S3H_TILES)
constexpr int64_t kTileRounds = kRounds / 16;
constexpr double kTileFlops = 4 * 2.0 * kTileRows * kTileWords * kTileWords * 2;

// See csrc/cpu/dispatch.cpp.
bool tiles_granted() { return syscall(SYS_arch_prctl, 0x1023, 18) == 0; }

void tile_products() {
  shape_tiles();
  Tiles tiles;
  for_tiles<8>([&]<int Tile>() { tiles.zero<Tile>(); });
  for (int64_t i = 0; i < kTileRounds; ++i) {
    tiles.multiply_add<0, 4, 6>();
    tiles.multiply_add<1, 4, 7>();
    tiles.multiply_add<2, 5, 6>();
    tiles.multiply_add<3, 5, 7>();
  }
  release_tiles();
}
#endif

void exponentials() {
  constexpr int kIndependent = 8;
  Vec x[kIndependent];
  for (Vec& v : x) v = broadcast(0.3f);
  for (int64_t i = 0; i < kRounds; ++i)
    S3H_UNROLL for (int c = 0; c < kIndependent; ++c) {
      Vec y = x[c];
      hide(y);
      y = exp2_bounded(y);
      hide(y);
    }
}

// Calls a second of `work` on all threads, the best of 20.
template <typename Work>
double rate(int threads, const Work& work) {
  double best = 0;
  for (int trial = 0; trial < 20; ++trial) {
    std::vector<std::thread> pool;
    const auto start = std::chrono::steady_clock::now();
    for (int t = 0; t < threads; ++t) pool.emplace_back(work);
    for (std::thread& thread : pool) thread.join();
    const std::chrono::duration<double> took =
        std::chrono::steady_clock::now() - start;
    best = std::max(best, threads / took.count());
  }
  return best;
}

}  // namespace
}  // namespace s3h::cpu

int main(int argc, char** argv) {
  using namespace s3h::cpu;
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const double steps = 1e-9 * kRounds * kLanes;
  double pairs = 0;
#if defined(__AVX512BF16__)
  pairs = rate(threads, multiply_adds<true>) * steps * kChains * 4;
#endif
#if defined(S3H_TILES)
  if (tiles_granted())
    pairs = rate(threads, tile_products) * 1e-9 * kTileRounds * kTileFlops;
#endif
  std::printf("%d %.1f %.1f %.2f\n", threads,
              rate(threads, multiply_adds<false>) * steps * kChains * 2, pairs,
              rate(threads, exponentials) * steps * 8);
}
