// Eight registers of 16 x 16 32-bit elements and their products, for files
// compiled with S3H_TILE_UNIT: AMX or, with S3H_TILE_UNIT_EMULATED, an
// emulation with the same bits.
//
// A left operand holds rows of 16 pairs of bfloat16; a right operand holds in
// row k the pairs (2k, 2k + 1) of 16 columns. A product adds to 16 x 16 floats
// the sum of its even terms plus the sum of its odd terms.
//
// The shape of the registers belongs to the thread and may be changed by other
// code, so a TileShape must be set before multiplying.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "vec.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileWords = 16;  // words in a row

#if defined(S3H_TILE_UNIT_EMULATED)

inline void shape_tiles() {}
inline void release_tiles() {}

// Inlining it would take minutes to compile.
#define S3H_APART __attribute__((noinline))

class Tiles {
 public:
  template <int To>
  S3H_APART void zero() {
    std::memset(tile_[To], 0, sizeof tile_[To]);
  }

  // Rows are `stride` words apart.
  template <int To>
  S3H_APART void load(const float* from, int64_t stride) {
    for (int r = 0; r < kTileRows; ++r)
      std::memcpy(tile_[To][r], from + r * stride, sizeof tile_[To][r]);
  }

  template <int From>
  S3H_APART void store(float* to, int64_t stride) const {
    for (int r = 0; r < kTileRows; ++r)
      std::memcpy(to + r * stride, tile_[From][r], sizeof tile_[From][r]);
  }

  template <int To, int Left, int Right>
  S3H_APART void multiply_add() {
    for (int r = 0; r < kTileRows; ++r) {
      Vec even{}, odd{};
      for (int k = 0; k < kTileWords; ++k) {
        const BitVec pair = (BitVec)broadcast(tile_[Left][r][k]);
        const BitVec pairs = (BitVec)cpu::S3H_LEVEL::load(tile_[Right][k]);
        even = (Vec)(pair << 16) * (Vec)(pairs << 16) + even;
        odd = (Vec)(pair & kHigh) * (Vec)(pairs & kHigh) + odd;
      }
      float* to = tile_[To][r];
      cpu::S3H_LEVEL::store(to, cpu::S3H_LEVEL::load(to) + (even + odd));
    }
  }

 private:
  static constexpr uint32_t kHigh = 0xffff0000;
  float tile_[8][kTileRows][kTileWords];
};

#undef S3H_APART

#else

// Palette 1 of the hardware: rows and bytes in a row of each register.
inline void shape_tiles() {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } shape{};
  shape.palette = 1;
  for (int i = 0; i < 8; ++i) {
    shape.row_bytes[i] = kTileWords * 4;
    shape.rows[i] = kTileRows;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(shape));
}

inline void release_tiles() { __asm__ volatile("tilerelease"); }

// Assembly, because the compilers' intrinsics accept no template argument as
// register number.
class Tiles {
 public:
  template <int To>
  S3H_INLINE void zero() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(To));
  }

  template <int To>
  S3H_INLINE void load(const float* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                     :
                     : "r"(from), "r"(stride * 4), "i"(To)
                     : "memory");
  }

  template <int From>
  S3H_INLINE void store(float* to, int64_t stride) const {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                     :
                     : "r"(to), "r"(stride * 4), "i"(From)
                     : "memory");
  }

  template <int To, int Left, int Right>
  S3H_INLINE void multiply_add() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                     :
                     : "i"(To), "i"(Left), "i"(Right));
  }
};

#endif

// Calls body.operator()<0>() to <Count - 1>, for constant register numbers.
template <int Count, typename Body>
S3H_INLINE void for_tiles(const Body& body) {
  [&]<int... Index>(std::integer_sequence<int, Index...>)
      __attribute__((always_inline)) {
        (body.template operator()<Index>(), ...);
      }(std::make_integer_sequence<int, Count>{});
}

}  // namespace
}  // namespace s3h::cpu::S3H_LEVEL
