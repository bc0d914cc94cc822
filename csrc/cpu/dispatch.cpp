#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace s3h::cpu {
namespace {

Level detect() {
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

Level detect_capped() {
  Level level = detect();
  const char* wanted = std::getenv("S3H_CPU_LEVEL");
  if (wanted == nullptr) return level;
  for (Level cap : {Level::kBaseline, Level::kAvx2, Level::kAvx512})
    if (std::strcmp(wanted, level_name(cap)) == 0) level = std::min(level, cap);
  return level;
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
  static const Level level = detect_capped();
  return level;
}

}  // namespace s3h::cpu
