// The instruction set of the kernels, decided once per process.
#pragma once

namespace s3h::cpu {

// kAmxEmulated: kAvx512 with the similarity kernels of kAmx and an emulated
// tile unit; for tests.
enum class Level {
  kBaseline = 0,
  kAvx2 = 1,
  kAvx512 = 2,
  kAmxEmulated = 3,
  kAvx512Bf16 = 4,
  kAmx = 5
};

// The best level that was built and that this CPU supports: the highest, but
// kAvx512Bf16 only if it is the fastest, and never kAmxEmulated. kAmx requests
// the tile unit from the system and is unavailable if that refuses. The
// environment variable S3H_CPU_LEVEL (baseline, avx2, avx512, amx_emulated,
// avx512_bf16, amx) sets an upper limit; any other value throws
// std::invalid_argument.
Level dispatch_level();

// Whether AVX512_BF16 can be used to round to bfloat16, which pays on every CPU
// that has it: the highest level, with or without products.
bool bfloat16_conversions();

const char* level_name(Level level);

}  // namespace s3h::cpu
