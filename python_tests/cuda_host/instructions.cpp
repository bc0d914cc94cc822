// What the instructions of a warp make of its lanes' data; see executor.h. This
// file is compiled without the thread sanitizer, as executor.cpp is.
#include <algorithm>

#include "executor.h"

namespace s3h::host {

namespace {

template <typename T>
void exchange_values(const Shuffle<T>* in, T* out) {
  for (int i = 0; i < 32; ++i) {
    if (in[i].mask != in[0].mask)
      fail("the lanes of a warp met at shuffles of different masks");
    out[i] = in[i ^ in[i].mask].value;
  }
}

}  // namespace

void exchange(const Shuffle<float>* in, float* out) {
  exchange_values(in, out);
}

void exchange(const Shuffle<double>* in, double* out) {
  exchange_values(in, out);
}

void any_of(const int* in, int* out) {
  int any = 0;
  for (int i = 0; i < 32; ++i) any |= in[i];
  for (int i = 0; i < 32; ++i) out[i] = any;
}

void ballot(const int* in, uint32_t* out) {
  uint32_t bits = 0;
  for (int i = 0; i < 32; ++i) bits |= (in[i] != 0 ? 1u : 0u) << i;
  for (int i = 0; i < 32; ++i) out[i] = bits;
}

void nothing(const int*, int*) {}

void spread_matrices(const Fragments* rows, Fragments* out) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix)
      out[lane].at[matrix] = rows[8 * matrix + lane / 4].at[lane % 4];
}

void spread_transposed(const Fragments* rows, Fragments* out) {
  for (int lane = 0; lane < 32; ++lane)
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t halves[2];
      for (int i = 0; i < 2; ++i) {
        const int row = 2 * (lane % 4) + i, column = lane / 4;
        halves[i] =
            rows[8 * matrix + row].at[column / 2] >> (column % 2 * 16) & 0xffff;
      }
      out[lane].at[matrix] = halves[0] | halves[1] << 16;
    }
}

namespace {

float cut_off(double x) {
  const float near = static_cast<float>(x);
  if (std::isinf(near) || std::isnan(near)) return near;
  return std::fabs(near) > std::fabs(x) ? std::nextafter(near, 0.f) : near;
}

float from_bf16(uint16_t bits) {
  return cuda::bits_to_float(static_cast<uint32_t>(bits) << 16);
}

// How many bits tensor cores keep of each addend, counted from the leading bit
// of the largest: those of float32, and one more on an A100, two on an H100.
// The exponent of a product is the sum of its factors'. An A100 adds 8 products
// of 16-bit numbers or 4 of TF32 at a time to the accumulator, cutting off the
// sum each time; an H100 all of an instruction's at once. (Fasi et al. 2021,
// Numerical behavior of NVIDIA tensor cores; Khattak and Mikaitis 2025.)
constexpr int kKeptBits = 25;

// Of a normal number in double, as all of float's are.
int exponent_of(double x) {
  return static_cast<int>(cuda::double_to_bits(x) >> 52 & 0x7ff) - 1023;
}

float add_products(float c, const double* a, const double* b, int count) {
  double products[8];
  double plain = c;
  int top = c == 0 ? -1023 : exponent_of(c);
  for (int k = 0; k < count; ++k) {
    products[k] = a[k] * b[k];
    plain += products[k];
    if (products[k] != 0)
      top = std::max(top, exponent_of(a[k]) + exponent_of(b[k]));
  }
  if (top == -1023 || !std::isfinite(plain)) return static_cast<float>(plain);
  const double unit = std::ldexp(1.0, top - (kKeptBits - 1));
  const double inverse = 1 / unit;
  const auto kept = [inverse](double x) {
    return static_cast<int64_t>(x * inverse);
  };
  int64_t sum = kept(c);
  for (int k = 0; k < count; ++k) sum += kept(products[k]);
  return cut_off(static_cast<double>(sum) * unit);
}

// a: [16][depth], b: [8][depth]; c stays spread as the instruction has it.
void multiply(const double (&a)[16][16], const double (&b)[8][16], int depth,
              const MmaOperands* in, MmaResult* out) {
  const int at_once = depth / 2;
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i / 2) * 8, column = 2 * (lane % 4) + i % 2;
      float sum = in[lane].c[i];
      for (int k = 0; k < depth; k += at_once)
        sum = add_products(sum, a[row] + k, b[column] + k, at_once);
      out[lane].c[i] = sum;
    }
}

void multiply_16(const MmaOperands* in, MmaResult* out,
                 float (*value)(uint16_t)) {
  double a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto part = [half, value](uint32_t bits) {
        return value(static_cast<uint16_t>(bits >> (16 * half)));
      };
      for (int i = 0; i < 4; ++i)
        a[g + i % 2 * 8][2 * t + half + i / 2 * 8] = part(in[lane].a[i]);
      for (int i = 0; i < 2; ++i)
        b[g][2 * t + half + i * 8] = part(in[lane].b[i]);
    }
  }
  multiply(a, b, 16, in, out);
}

}  // namespace

void mma_bf16(const MmaOperands* in, MmaResult* out) {
  multiply_16(in, out, from_bf16);
}

void mma_fp16(const MmaOperands* in, MmaResult* out) {
  multiply_16(in, out, from_fp16);
}

void mma_tf32(const MmaOperands* in, MmaResult* out) {
  double a[16][16], b[8][16];
  const auto value = [](uint32_t bits) {
    return cuda::bits_to_float(bits & ~0x1fffu);
  };
  for (int lane = 0; lane < 32; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      a[g + i % 2 * 8][t + i / 2 * 4] = value(in[lane].a[i]);
    for (int i = 0; i < 2; ++i) b[g][t + i * 4] = value(in[lane].b[i]);
  }
  multiply(a, b, 8, in, out);
}

uint16_t to_bf16(float x) {
  const uint32_t bits = cuda::float_to_bits(x);
  if (std::isnan(x)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t to_fp16(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float size = std::fabs(x);
  if (std::isnan(x)) return 0x7fff;
  if (size >= 65520.f) return sign | 0x7c00;
  if (size < 0x1p-14f)  // subnormal: a multiple of 2^-24, ties to even
    return sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));
  const uint32_t bits = cuda::float_to_bits(size) - (112u << 23);
  return sign | static_cast<uint16_t>((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

float from_fp16(uint16_t bits) {
  const int exponent = bits >> 10 & 31;
  const int mantissa = bits & 1023;
  float size;
  if (exponent == 31)
    size = mantissa == 0 ? INFINITY : NAN;
  else if (exponent == 0)
    size = static_cast<float>(mantissa) * 0x1p-24f;
  else
    size = std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  return (bits & 0x8000) != 0 ? -size : size;
}

}  // namespace s3h::host
