// Compiled once per instruction set, see level.h.
//
// A feature is read once for four prototypes, each with its own vectors of
// partial sums, so that four chains of multiply-adds overlap. The remainder of
// the depth is added element by element to the end of the same sum.
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "level.h"
#include "prototype_rows.h"

namespace s3h::cpu::S3H_LEVEL {
namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

#define S3H_INLINE inline __attribute__((always_inline))

template <typename T>
struct Lanes {
  typedef T Vec __attribute__((vector_size(kBytes)));
  static constexpr int64_t kCount = kBytes / static_cast<int64_t>(sizeof(T));

  static S3H_INLINE Vec load(const T* from) {
    Vec v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static S3H_INLINE void store(T* to, Vec v) { std::memcpy(to, &v, sizeof v); }
};

// The sum of the lanes, by halves.
#if defined(__AVX2__)
S3H_INLINE float lane_sum(__m256 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}

S3H_INLINE double lane_sum(__m256d v) {
  const __m128d x =
      _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1));
  return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
}
#else
template <typename Vec>
S3H_INLINE auto lane_sum(const Vec& v) {
  using T = std::remove_cvref_t<decltype(v[0])>;
  T lanes[Lanes<T>::kCount];
  Lanes<T>::store(lanes, v);
  for (int64_t half = Lanes<T>::kCount / 2; half > 0; half /= 2)
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}
#endif

#if defined(__AVX512F__)
S3H_INLINE float lane_sum(__m512 v) {
  __m256 halves[2];
  std::memcpy(halves, &v, sizeof v);
  return lane_sum(_mm256_add_ps(halves[0], halves[1]));
}

S3H_INLINE double lane_sum(__m512d v) {
  __m256d halves[2];
  std::memcpy(halves, &v, sizeof v);
  return lane_sum(_mm256_add_pd(halves[0], halves[1]));
}
#endif

// Dot products or squared distances between `feature` and kCount rows.
template <typename T, bool kDot, int kCount>
S3H_INLINE void compare(const T* feature, const T* rows, int64_t depth,
                        T (&out)[4]) {
  using L = Lanes<T>;
  typename L::Vec acc[kCount];
  for (int r = 0; r < kCount; ++r) acc[r] = typename L::Vec{};
  int64_t d = 0;
  for (; d + L::kCount <= depth; d += L::kCount) {
    const typename L::Vec f = L::load(feature + d);
    for (int r = 0; r < kCount; ++r) {
      const typename L::Vec p = L::load(rows + r * depth + d);
      if constexpr (kDot) {
        acc[r] += f * p;
      } else {
        const typename L::Vec difference = f - p;
        acc[r] += difference * difference;
      }
    }
  }
  for (int r = 0; r < kCount; ++r) out[r] = lane_sum(acc[r]);
  for (; d < depth; ++d)
    for (int r = 0; r < kCount; ++r) {
      const T p = rows[r * depth + d];
      const T difference = feature[d] - p;
      out[r] += kDot ? feature[d] * p : difference * difference;
    }
}

template <typename T, bool kDot>
S3H_INLINE Nearest<T> nearest_by(const T* feature, T scale, const T* rows,
                                 const T* masses, int64_t count,
                                 int64_t depth) {
  Nearest<T> best{-1, static_cast<T>(__builtin_inf())};
  for (int64_t row = 0; row < count; row += 4) {
    const int64_t left = count - row;
    const T* block = rows + row * depth;
    T values[4];
    if (left >= 4)
      compare<T, kDot, 4>(feature, block, depth, values);
    else if (left == 3)
      compare<T, kDot, 3>(feature, block, depth, values);
    else if (left == 2)
      compare<T, kDot, 2>(feature, block, depth, values);
    else
      compare<T, kDot, 1>(feature, block, depth, values);
    for (int64_t r = 0; r < (left < 4 ? left : 4); ++r) {
      const T distance = kDot ? 1 - scale * values[r] : values[r];
      const bool born = (row + r == 0) | (masses[row + r] > 0);
      // Without a branch, as it would be unpredictable.
      const bool nearer = born & (distance < best.distance);
      best.row = nearer ? row + r : best.row;
      best.distance = nearer ? distance : best.distance;
    }
  }
  return best;
}

template <typename T>
Nearest<T> nearest(const T* feature, T scale, const T* rows, const T* masses,
                   int64_t count, int64_t depth) {
  return scale < 0
             ? nearest_by<T, false>(feature, scale, rows, masses, count, depth)
             : nearest_by<T, true>(feature, scale, rows, masses, count, depth);
}

template <typename T>
T squares(const T* x, int64_t depth) {
  T out[4];
  compare<T, true, 1>(x, x, depth, out);
  return out[0];
}

// to[d] = body(d) in vectors, then element by element. Written out because a
// compiler would check each time whether the rows overlap.
template <typename T, typename Body>
S3H_INLINE void fill(T* to, int64_t depth, const Body& body) {
  using L = Lanes<T>;
  const auto load = [](const T* from) { return L::load(from); };
  const auto one = [](const T* from) { return *from; };
  int64_t d = 0;
  for (; d + L::kCount <= depth; d += L::kCount)
    L::store(to + d, body(d, load));
  for (; d < depth; ++d) to[d] = body(d, one);
}

template <typename T>
void add(const T* x, T scale, int64_t depth, T* to) {
  fill(to, depth,
       [=](int64_t d, auto at) { return at(to + d) + scale * at(x + d); });
}

template <typename T>
void decay(const T* batch, T momentum, int64_t depth, T* sum) {
  fill(sum, depth, [=](int64_t d, auto at) {
    return momentum * at(sum + d) + at(batch + d);
  });
}

template <typename T>
void scale_into(const T* x, T scale, int64_t depth, T* to) {
  fill(to, depth, [=](int64_t d, auto at) { return scale * at(x + d); });
}

template <typename T>
constexpr PrototypeRows<T> table() {
  return {nearest<T>, squares<T>, add<T>, decay<T>, scale_into<T>};
}

}  // namespace

const PrototypeRows<float> kFloatRows = table<float>();
const PrototypeRows<double> kDoubleRows = table<double>();

}  // namespace s3h::cpu::S3H_LEVEL
