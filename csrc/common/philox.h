// Counter-based random numbers for host and device: Philox4x32-10 (Salmon et
// al., SC 2011) by address, as s3h_ext/ops/philox.py defines it.
//
//   key     = (seed, epoch)
//   counter = (index low 32 bits, index high 32 bits, view | stream << 24,
//              block)
//
// Block b holds the draws 4b .. 4b + 3, one per slot. A draw is a pure function
// of its address, independent of earlier draws, threads and batches.
//
// Everything in csrc/common has internal linkage: these headers are compiled
// into files with different instruction sets, and the linker must not pick
// one file's copy for all of them.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define S3H_COMMON __host__ __device__ static inline
#else
#define S3H_COMMON static inline
#endif

namespace s3h {

struct DrawAddress {
  uint32_t seed, epoch;
  uint64_t index;
  uint32_t view;    // only the low 24 bits are used
  uint32_t stream;  // only the low 8 bits are used
};

struct PhiloxWords {
  uint32_t word[4];
};

S3H_COMMON PhiloxWords philox4x32(PhiloxWords counter, uint32_t key0,
                                  uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53u} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57u} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return counter;
}

// The four words of one block of an address.
S3H_COMMON PhiloxWords philox_block(const DrawAddress& a, uint32_t block) {
  return philox4x32(
      {{static_cast<uint32_t>(a.index), static_cast<uint32_t>(a.index >> 32),
        (a.view & 0xFFFFFFu) | a.stream << 24, block}},
      a.seed, a.epoch);
}

// The upper 24 bits of a word as a uniform in [0, 1): exact in double and in
// float, never 1.
S3H_COMMON double unit_uniform(uint32_t word) {
  return static_cast<double>(word >> 8) * (1.0 / 16777216.0);
}

// Reads the slots of an address. Neighbouring slots share a block; the latest
// block is cached.
struct Draws {
  DrawAddress address;
  uint32_t first_block;  // added to every block number
  bool filled;
  uint32_t block;
  PhiloxWords words;
};

S3H_COMMON Draws draws_of(const DrawAddress& address,
                          uint32_t first_block = 0) {
  return {address, first_block, false, 0, {{0, 0, 0, 0}}};
}

S3H_COMMON double draw_uniform(Draws& draws, uint32_t slot) {
  const uint32_t block = slot / 4;
  if (!draws.filled || draws.block != block) {
    draws.words = philox_block(draws.address, draws.first_block + block);
    draws.block = block;
    draws.filled = true;
  }
  return unit_uniform(draws.words.word[slot % 4]);
}

}  // namespace s3h
