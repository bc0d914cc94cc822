// Which instruction set the kernels run on, decided once per process.
#pragma once

namespace s3h::cpu {

// kAmxEmulated: kAvx512 with the similarities of kAmx, whose tile unit is a
// program; for tests.
enum class Level {
  kBaseline = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAmxEmulated = 3,
  kAvx512Bf16 = 4,
  kAmx = 5
};

// The best level that was built and that this CPU has: the highest, but
// kAvx512Bf16 only where it is the fastest, and kAmxEmulated never. kAmx asks
// the system for the tile unit and is not there if that says no. The
// environment variable S3H_CPU_LEVEL (baseline, avx2, avx512, amx_emulated,
// avx512_bf16, amx) names another one, above which it does not go; anything
// else throws std::invalid_argument.
Level dispatch_level();

// Whether AVX512_BF16 is there to round to bfloat16, which pays on every CPU
// that has it: the highest level, products or not.
bool bfloat16_conversions();

const char* level_name(Level level);

}  // namespace s3h::cpu
