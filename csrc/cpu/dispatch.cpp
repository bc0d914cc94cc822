#include "dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>

#if defined(S3H_X86_LEVELS)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace s3h::cpu {
namespace {

#if defined(S3H_X86_LEVELS)
// Whether the tile unit is available for bfloat16. Linux grants its 8 KiB of
// registers only to processes that request them.
bool tile_unit() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0 &&
         (d & kAmxTile) != 0 &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// The highest level that was built and that this CPU supports.
Level highest() {
#if defined(S3H_X86_LEVELS)
  __builtin_cpu_init();
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16"))
    return tile_unit() ? Level::kAmx : Level::kAvx512Bf16;
  if (avx512) return Level::kAvx512;
  if (avx2) return Level::kAvx2;
#endif
  return Level::kBaseline;
}

// Whether the bfloat16 product instruction pays, which multiplies twice as many
// numbers as a float32 multiply-add. On AMD's Zen 4 and Zen 5 it has the same
// throughput; on Intel's Sapphire Rapids a quarter of it, and widening to
// float32 wins. A list of vendors instead of a measurement, so that a machine
// always takes the same path and gives the same bits.
bool bfloat16_pays() {
#if defined(S3H_X86_LEVELS)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// The level requested by S3H_CPU_LEVEL, if it is set.
std::optional<Level> wanted_level() {
  const char* wanted = std::getenv("S3H_CPU_LEVEL");
  if (wanted == nullptr || *wanted == '\0') return std::nullopt;
  for (Level cap : {Level::kBaseline, Level::kAvx2, Level::kAvx512,
                    Level::kAmxEmulated, Level::kAvx512Bf16, Level::kAmx})
    if (std::strcmp(wanted, level_name(cap)) == 0) return cap;
  throw std::invalid_argument(
      "S3H_CPU_LEVEL must be baseline, avx2, avx512, amx_emulated, avx512_bf16 "
      "or amx, got '" +
      std::string(wanted) + "'");
}

Level choose() {
  const Level level = highest();
  const auto cap = wanted_level();
  if (!cap)
    return level == Level::kAvx512Bf16 && !bfloat16_pays() ? Level::kAvx512
                                                           : level;
  // The emulation only needs AVX-512.
  if (cap == Level::kAmxEmulated && level == Level::kAvx512) return *cap;
  return std::min(level, *cap);
}

}  // namespace

const char* level_name(Level level) {
  switch (level) {
    case Level::kAmx:
      return "amx";
    case Level::kAvx512Bf16:
      return "avx512_bf16";
    case Level::kAvx512:
      return "avx512";
    case Level::kAmxEmulated:
      return "amx_emulated";
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
      std::min(highest(), wanted_level().value_or(Level::kAmx)) >=
      Level::kAvx512Bf16;
  return there;
}

}  // namespace s3h::cpu
