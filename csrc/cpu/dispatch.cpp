#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

namespace s3h::cpu {
namespace {

// The highest level that was built and that this CPU has.
Level highest() {
#if defined(S3H_X86_LEVELS)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) return Level::kAvx512Bf16;
  if (avx512) return Level::kAvx512;
  if (avx2) return Level::kAvx2;
#endif
  return Level::kBaseline;
}

// Whether products of bfloat16 are worth their instruction, which multiplies
// twice as many numbers as a float32 multiply-add. On AMD's Zen 4 and Zen 5 it
// comes as often as that; on Intel's Sapphire Rapids a quarter as often, where
// widening to float32 wins. A list of vendors and no measurement, so that one
// machine takes the same path, and gives the same bits, every time.
bool bfloat16_pays() {
#if defined(S3H_X86_LEVELS)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// What S3H_CPU_LEVEL asks for, if it does.
std::optional<Level> wanted_level() {
  const char* wanted = std::getenv("S3H_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') return std::nullopt;
  for (Level cap :
       {Level::kBaseline, Level::kAvx2, Level::kAvx512, Level::kAvx512Bf16})
    if (std::strcmp(wanted, level_name(cap)) == 0) return cap;
  throw std::invalid_argument(
      "S3H_CPU_LEVEL must be baseline, avx2, avx512 or avx512_bf16, got '" +
      std::string(wanted) + "'");
}

Level choose() {
  const Level level = highest();
  if (const auto cap = wanted_level()) return std::min(level, *cap);
  return level == Level::kAvx512Bf16 && !bfloat16_pays() ? Level::kAvx512
                                                         : level;
}

}  // namespace

const char* level_name(Level level) {
  switch (level) {
    case Level::kAvx512Bf16:
      return "avx512_bf16";
    case Level::kAvx512:
      return "avx512";
    case Level::kAvx2:
      return "avx2";
    case Level::kBaseline:
      break;
  }
  return "baseline";
}

Level dispatch_level() {
  static const Level level = choose();
  return level;
}

bool bfloat16_conversions() {
  static const bool there =
      std::min(highest(), wanted_level().value_or(Level::kAvx512Bf16)) ==
      Level::kAvx512Bf16;
  return there;
}

}  // namespace s3h::cpu
