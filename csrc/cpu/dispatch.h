// Which instruction set the kernels run on, decided once per process.
#pragma once

namespace s3h::cpu {

enum class Level { kBaseline = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Bf16 = 3 };

// The best level that was built and that this CPU has: the highest, but
// kAvx512Bf16 only where it is the fastest. The environment variable
// S3H_CPU_LEVEL (baseline, avx2, avx512, avx512_bf16) names another one, above
// which it does not go; anything else throws std::invalid_argument.
Level dispatch_level();

// Whether AVX512_BF16 is there to round to bfloat16, which pays on every CPU
// that has it: the highest level, products or not.
bool bfloat16_conversions();

const char* level_name(Level level);

}  // namespace s3h::cpu
