// Small kernels with a defect each, which the executor has to find; "sound" has
// none. Each sums, for every thread, what its 64 neighbours put in shared
// memory.
//
//   planted DEFECT
//   planted grid | nan      what a device refuses, and what it keeps
#include <cstdio>
#include <cstring>

#include "cuda/device.cuh"

namespace {

using namespace s3h::cuda;

enum class Defect {
  kNone,
  kNoBarrier,
  kNoSecondBarrier,
  kNoWarpBarrier,
  kNoWait,
  kOverrun,
  kGlobalOverrun,
  kDivergent,
  kLanesApart,
  kBlocksRace,
};

constexpr int kCount = 64;

__global__ void sum_of_block(Defect defect, const float* from, float* to) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  const int i = thread_x();
  copy_async<4>(shared + i, from + i, true);
  copies_commit();
  if (defect != Defect::kNoWait) copies_wait<0>();
  if (defect == Defect::kDivergent && i == 5) return;
  if (defect == Defect::kDivergent && i >= 32) warp_barrier();
  if (defect == Defect::kLanesApart && i % 2 == 0) warp_any(true);
  if (defect == Defect::kNoWarpBarrier) {
    shuffle_xor(0.f, 1);
    to[i] = shared[i ^ 1];
    return;
  }
  if (defect != Defect::kNoBarrier) block_barrier();
  // What a neighbour needs once more, between two barriers that are there.
  if (defect == Defect::kNoSecondBarrier) {
    shared[i] = 1.f;
    to[i] = shared[(i + 1) % kCount];
    block_barrier();
    return;
  }
  float sum = 0.f;
  for (int j = 0; j < kCount; ++j) sum += shared[j];
  if (defect == Defect::kOverrun && i == 63) sum += shared[kCount];
  if (defect == Defect::kGlobalOverrun && i == 63) sum += from[kCount];
  const int block = defect == Defect::kBlocksRace ? 0 : block_x();
  // Another thread's place in each block, or the executor could not tell them.
  to[block * kCount + (i + block_x()) % kCount] = sum;
  if (defect == Defect::kDivergent && i < 32) warp_barrier();
}

// A grid whose lower 32 bits a device would take.
bool takes_a_grid_that_is_too_large() {
  const Grid grid{(int64_t{1} << 32) + 1, 1, 1};
  return launch(sum_of_block, grid, kCount, 0, nullptr, Defect::kNone,
                static_cast<const float*>(nullptr),
                static_cast<float*>(nullptr))
      .ok();
}

// Each of these NaNs, as TF32, whose lower 13 bits a product does not read.
bool loses_a_nan() {
  const uint32_t nans[] = {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0x7f800001u};
  for (uint32_t bits : nans) {
    const uint32_t read = to_tf32(bits_to_float(bits)) & ~0x1fffu;
    const float value = bits_to_float(read);
    if (value == value) return true;
  }
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  if (count == 2 && std::strcmp(arguments[1], "grid") == 0)
    return takes_a_grid_that_is_too_large();
  if (count == 2 && std::strcmp(arguments[1], "nan") == 0) return loses_a_nan();
  const char* const names[] = {
      "sound",   "barrier",        "second-barrier", "warp-barrier", "wait",
      "overrun", "global-overrun", "divergent",      "lanes",        "blocks"};
  int defect = -1;
  for (int i = 0; count == 2 && i < 10; ++i)
    if (std::strcmp(arguments[1], names[i]) == 0) defect = i;
  if (defect < 0) return 2;
  auto* from = new float[kCount];
  auto* to = new float[2 * kCount];
  for (int i = 0; i < kCount; ++i) from[i] = static_cast<float>(i);
  launch(sum_of_block, {2, 1, 1}, kCount, kCount * sizeof(float), nullptr,
         static_cast<Defect>(defect), static_cast<const float*>(from), to);
  int wrong = 0;
  for (int i = 0; i < 2 * kCount; ++i) wrong += to[i] != 2016.f;
  std::printf("%d wrong sums\n", wrong);
  delete[] from;
  delete[] to;
  return wrong == 0 ? 0 : 1;
}
