// Small kernels with a defect each, which the executor has to find; "sound" has
// none. Each sums, for every thread, what its 64 neighbours put in shared
// memory.
//
//   planted DEFECT
//   planted grid | nan | atomics | accumulation
//                           what a device refuses, and what it keeps
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>

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
  kTwoShuffles,
  kTwoMasks,
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
  if (defect == Defect::kTwoShuffles) {
    if (i % 2 == 0)
      shuffle_xor(0.f, 2);
    else
      shuffle_xor(1.f, 2);
  }
  if (defect == Defect::kTwoMasks) shuffle_xor(0.f, i % 2 == 0 ? 2 : 4);
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

// Each of these NaNs, through each conversion, as a product reads it: of TF32
// without the lower 13 bits.
bool loses_a_nan() {
  const uint32_t nans[] = {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0x7f800001u};
  for (uint32_t bits : nans) {
    const float nan = bits_to_float(bits);
    const float read[] = {
        bits_to_float(to_tf32(nan) & ~0x1fffu),
        bits_to_float(pack_bf16(nan, 0.f) << 16),
        bits_to_float(pack_bf16(0.f, nan) & 0xffff0000u),
        unpack_fp16(static_cast<uint16_t>(pack_fp16(nan, 0.f))),
        unpack_fp16(static_cast<uint16_t>(pack_fp16(0.f, nan) >> 16))};
    for (float value : read)
      if (value == value) return true;
  }
  return false;
}

constexpr float kSubnormal = 0x1.8p-127f;

// What is added: normal numbers with a subnormal sum, and subnormal ones.
__global__ void add_small(float* in_global, float* in_shared) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  if (thread_x() != 0) return;
  for (float* to : {in_global, shared}) {
    to[0] = 0x1.8p-126f;
    atomic_add(to, -0x1p-126f);
    to[1] = -0.f;
    atomic_add(to + 1, -kSubnormal);
    to[2] = kSubnormal;
    atomic_add(to + 2, 1.f);
    atomic_add(to + 2, -1.f);
  }
  for (int i = 0; i < 3; ++i) in_shared[i] = shared[i];
}

bool flushes_wrongly() {
  float global[3], shared[3];
  launch(add_small, {1, 1, 1}, 32, 3 * sizeof(float), nullptr, global + 0,
         shared + 0);
  const bool flushed = global[0] == 0.f && global[1] == 0.f &&
                       std::signbit(global[1]) && global[2] == 0.f;
  const bool kept = shared[0] == 0x1p-127f && shared[1] == -kSubnormal;
  return !flushed || !kept;
}

enum class Operand { kBf16, kFp16, kTf32 };

// c + the sum of `depth` products x y, of matrices with equal elements.
__global__ void add_products(Operand operand, float c, float x, float y,
                             float* to) {
  float sum[4] = {c, c, c, c};
  const auto spread = [operand](float value) {
    return operand == Operand::kBf16   ? pack_bf16(value, value)
           : operand == Operand::kFp16 ? pack_fp16(value, value)
                                       : to_tf32(value);
  };
  const uint32_t a = spread(x), b = spread(y);
  if (operand == Operand::kBf16)
    mma_bf16(sum, {a, a, a, a}, b, b);
  else if (operand == Operand::kFp16)
    mma_fp16(sum, {a, a, a, a}, b, b);
  else
    mma_tf32(sum, {a, a, a, a}, b, b);
  for (int i = 0; i < 4; ++i) to[4 * thread_x() + i] = sum[i];
}

bool accumulates_wrongly() {
  struct Case {
    float x, sixteen, eight;  // the sums of as many products x 2^-12
  };
  // The last bit that is kept beside 1 is 2^-24; a result has 2^-23.
  const Case cases[] = {
      {0x1p-12f, 0x1p-20f, 0x1p-21f},
      {0x1.8p-12f, 0x1p-20f, 0x1p-21f},
      {0x1p-13f, 0.f, 0.f},
      {-0x1p-13f, 0.f, 0.f},
      {0x1.8p-11f, 0x1.8p-19f, 0x1.8p-20f},
  };
  for (const Operand operand : {Operand::kBf16, Operand::kFp16, Operand::kTf32})
    for (const Case& at : cases)
      for (const float start : {0.f, 1.f}) {
        float sums[128];
        launch(add_products, {1, 1, 1}, 32, 0, nullptr, operand, start, at.x,
               0x1p-12f, sums + 0);
        const bool wide = operand == Operand::kTf32;
        // Alone, the products are of one size, and none loses a bit.
        const float exact = (wide ? 8.f : 16.f) * at.x * 0x1p-12f;
        const float right =
            start == 0.f ? exact : 1.f + (wide ? at.eight : at.sixteen);
        for (const float sum : sums)
          if (sum != right) return true;
      }
  return false;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) return 2;
  const auto asked = [&](const char* name) {
    return std::strcmp(arguments[1], name) == 0;
  };
  if (asked("grid")) return takes_a_grid_that_is_too_large();
  if (asked("nan")) return loses_a_nan();
  if (asked("atomics")) return flushes_wrongly();
  if (asked("accumulation")) return accumulates_wrongly();
  const char* const names[] = {"sound",          "barrier",   "second-barrier",
                               "warp-barrier",   "wait",      "overrun",
                               "global-overrun", "divergent", "lanes",
                               "blocks",         "shuffles",  "masks"};
  int defect = -1;
  for (int i = 0; i < 12; ++i)
    if (asked(names[i])) defect = i;
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
