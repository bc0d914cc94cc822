// Runs the prototype kernels on odd sizes with two threads and compares them
// with a direct double-precision loop. Meant for the sanitizers
// (tools/sanitize.sh): inputs are exact-size heap blocks, so that a read past
// the end is seen. Prints what it ran; exits with 1 at the first mismatch.
#include "../cpu/prototypes.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "../cpu/bfloat16.h"
#include "../cpu/dispatch.h"
#include "../cpu/float16.h"
#include "threads.h"

namespace {

using namespace s3h;
using namespace s3h::cpu;

template <typename T>
std::unique_ptr<T[]> block(int64_t size) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(size)]());
}

void require(bool holds, const char* what, int64_t at) {
  if (holds) return;
  std::fprintf(stderr, "%s at %lld is wrong\n", what,
               static_cast<long long>(at));
  std::exit(1);
}

// Values that every type holds exactly: quarters up to 2.
template <typename Element>
Element element(double value) {
  if constexpr (std::is_floating_point_v<Element>) {
    return static_cast<Element>(value);
  } else {
    const float narrow = static_cast<float>(value);
    uint32_t bits;
    std::memcpy(&bits, &narrow, sizeof bits);
    if constexpr (std::is_same_v<Element, Bfloat16>) {
      return static_cast<Element>(bits >> 16);
    } else {
      if (value == 0) return Element{};
      const uint32_t exponent = ((bits >> 23) & 0xff) - 127 + 15;
      return static_cast<Element>((bits >> 31) << 15 | exponent << 10 |
                                  ((bits >> 13) & 0x3ff));
    }
  }
}

template <typename T, typename Element>
void check(bool cosine, int64_t n, int64_t classes, int64_t depth) {
  std::mt19937 random(static_cast<unsigned>(n + depth));
  const auto draw = [&](int64_t many) {
    return static_cast<int64_t>(random() % static_cast<unsigned>(many));
  };
  const auto offsets = block<int64_t>(classes + 1);
  for (int64_t c = 0; c < classes; ++c) offsets[c + 1] = offsets[c] + 1 + c % 7;
  const int64_t rows = offsets[classes];
  const auto features = block<Element>(n * depth);
  const auto wide = block<double>(n * depth);
  const auto labels = block<int64_t>(n);
  for (int64_t i = 0; i < n; ++i) {
    // Half of the samples are of one class, which the threads share.
    labels[i] = draw(2) ? classes / 2 : draw(classes + 1) - 1;
    for (int64_t d = 0; d < depth; ++d) {
      wide[i * depth + d] = 0.25 * static_cast<double>(draw(17) - 8);
      features[i * depth + d] = element<Element>(wide[i * depth + d]);
    }
  }
  const auto prototypes = block<T>(rows * depth), masses = block<T>(rows);
  const auto sums = block<T>(rows * depth);
  for (int64_t r = 0; r < rows; ++r) {
    masses[r] = static_cast<T>(draw(3));
    for (int64_t d = 0; d < depth; ++d)
      prototypes[r * depth + d] = T(0.125) * static_cast<T>(draw(17) - 8);
  }
  const auto assignments = block<int64_t>(n);
  const auto batch = block<T>(rows * depth), counts = block<T>(rows);
  const auto distortions = block<T>(rows);
  const auto far = block<T>(classes), far_features = block<T>(classes * depth);
  accumulate_prototypes<T, Element>(
      {cosine, features.get(), labels.get(), prototypes.get(), masses.get(),
       offsets.get(), n, rows, classes, depth},
      kThreads,
      {assignments.get(), batch.get(), counts.get(), distortions.get(),
       far.get(), far_features.get()});

  const auto distance = [&](int64_t i, int64_t row) {
    double dot = 0, gap = 0, square = 0;
    for (int64_t d = 0; d < depth; ++d) {
      const double f = wide[i * depth + d], p = prototypes[row * depth + d];
      dot += f * p;
      gap += (f - p) * (f - p);
      square += f * f;
    }
    if (!cosine) return gap;
    return square > 0 ? 1 - dot / std::sqrt(square) : 1.0;
  };
  std::vector<double> right(static_cast<size_t>(rows * depth));
  std::vector<double> number(static_cast<size_t>(rows));
  std::vector<double> distortion(static_cast<size_t>(rows));
  for (int64_t i = 0; i < n; ++i) {
    const int64_t label = labels[i], row = assignments[i];
    if (label < 0) {
      require(row == -1, "an ignored sample", i);
      continue;
    }
    const bool own = offsets[label] <= row && row < offsets[label + 1];
    require(own && (masses[row] > 0 || row == offsets[label]), "a row", i);
    const double found = distance(i, row);
    for (int64_t r = offsets[label]; r < offsets[label + 1]; ++r)
      if (masses[r] > 0 || r == offsets[label])
        require(found <= distance(i, r) + 1e-4, "an assignment", i);
    require(found <= far[label] + 1e-4, "a farthest distance", label);
    double square = 0;
    for (int64_t d = 0; d < depth; ++d)
      square += wide[i * depth + d] * wide[i * depth + d];
    const double scale = !cosine ? 1 : square > 0 ? 1 / std::sqrt(square) : 0;
    for (int64_t d = 0; d < depth; ++d)
      right[static_cast<size_t>(row * depth + d)] +=
          scale * wide[i * depth + d];
    number[static_cast<size_t>(row)] += 1;
    distortion[static_cast<size_t>(row)] += found;
  }
  for (int64_t at = 0; at < rows * depth; ++at)
    require(std::abs(batch[at] - right[static_cast<size_t>(at)]) < 1e-3,
            "a sum", at);
  for (int64_t r = 0; r < rows; ++r)
    require(counts[r] == number[static_cast<size_t>(r)], "a count", r);
  for (int64_t r = 0; r < rows; ++r) {
    const double right_one = distortion[static_cast<size_t>(r)];
    require(std::abs(distortions[r] - right_one) < 1e-3 * (1 + right_one),
            "a distortion", r);
  }

  const auto copy = [](const std::unique_ptr<T[]>& from, int64_t size) {
    auto to = block<T>(size);
    std::copy_n(from.get(), size, to.get());
    return to;
  };
  const auto prototypes_too = copy(prototypes, rows * depth);
  const auto sums_too = copy(sums, rows * depth),
             masses_too = copy(masses, rows);
  const MovingAverage average{cosine, 0.9, 0.1};
  apply_prototypes<T>(
      {average, offsets.get(), rows, classes, depth, batch.get(), counts.get(),
       distortions.get(), far_features.get()},
      kThreads, {prototypes.get(), sums.get(), masses.get()});
  const auto assignments_too = block<int64_t>(n);
  update_prototypes<T, Element>(
      {average, features.get(), labels.get(), offsets.get(), n, rows, classes,
       depth},
      kThreads, {prototypes_too.get(), sums_too.get(), masses_too.get()},
      assignments_too.get());
  for (int64_t i = 0; i < n; ++i)
    require(assignments_too[i] == assignments[i], "an update's row", i);
  for (int64_t at = 0; at < rows * depth; ++at)
    require(prototypes_too[at] == prototypes[at] && sums_too[at] == sums[at],
            "an update", at);
  for (int64_t r = 0; r < rows; ++r)
    require(masses_too[r] == masses[r], "an update's mass", r);
  for (int64_t at = 0; at < rows * depth; ++at) {
    const int64_t row = at / depth;
    if (counts[row] == 0) continue;
    const double sum = sums[at];
    const double mean = prototypes[at] * static_cast<double>(masses[row]);
    if (!cosine)
      require(std::abs(mean - sum) < 1e-3 * (1 + std::abs(sum)), "a prototype",
              at);
    require(std::isfinite(prototypes[at]), "a prototype", at);
  }
}

}  // namespace

int main() {
  int cases = 0;
  const int64_t sizes[][3] = {
      {0, 3, 5}, {1, 1, 1}, {9, 4, 3}, {301, 11, 37}, {900, 13, 130}};
  for (const auto& [n, classes, depth] : sizes)
    for (bool cosine : {false, true}) {
      check<float, float>(cosine, n, classes, depth);
      check<float, Bfloat16>(cosine, n, classes, depth);
      check<float, Float16>(cosine, n, classes, depth);
      check<double, double>(cosine, n, classes, depth);
      ++cases;
    }
  std::printf("%d cases of prototypes at level %s\n", cases,
              level_name(dispatch_level()));
}
