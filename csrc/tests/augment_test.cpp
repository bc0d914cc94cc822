// Applies every operation, alone and in lists, to exact-size heap blocks of odd
// shapes, at once and in pieces by two threads, and checks that both agree.
// Compares the cosine and sine of rotations with the library's. Meant for the
// sanitizers (tools/sanitize.sh).
#include "../cpu/augment.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "../common/exact.h"
#include "threads.h"

namespace {

using s3h::AugmentProblem;
using s3h::kLargest;
using s3h::Operation;

constexpr int64_t kImages = 3, kSteps = 3;

template <typename T, typename Draw>
std::unique_ptr<T[]> drawn(int64_t count, const Draw& draw) {
  std::unique_ptr<T[]> to(new T[static_cast<size_t>(count)]);
  for (int64_t i = 0; i < count; ++i) to[static_cast<size_t>(i)] = draw();
  return to;
}

void check(int64_t height, int64_t width, int64_t channels, bool far) {
  std::mt19937 random(7);
  const auto pick = [&random](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  constexpr int64_t kinds = static_cast<int64_t>(Operation::kCount);
  constexpr int64_t views = 40 * kinds;
  const int64_t bytes = height * width * channels;
  const int64_t reach = far ? kLargest : 2 * std::max(height, width);
  const auto images = drawn<uint8_t>(
      kImages * bytes, [&] { return static_cast<uint8_t>(pick(0, 255)); });
  const auto operations =
      drawn<int64_t>(views * kSteps, [&] { return pick(0, kinds - 1); });
  const auto magnitudes = drawn<double>(views * kSteps, [&] {
    const double whole = static_cast<double>(pick(-reach, reach));
    return far ? whole : whole / 7;
  });
  // These have a range, which callers check before the kernel.
  for (int64_t i = 0; i < views * kSteps; ++i) {
    const auto at = static_cast<size_t>(i);
    const auto operation = static_cast<Operation>(operations[at]);
    if (operation == Operation::kPosterize)
      magnitudes[at] = static_cast<double>(i % 9);
    if (operation == Operation::kBlur)
      magnitudes[at] = static_cast<double>(i % 65);
  }
  const auto source =
      drawn<int64_t>(views, [&] { return pick(0, kImages - 1); });
  const auto corners =
      drawn<int64_t>(2 * views, [&] { return pick(-reach, reach); });
  const auto flips = drawn<bool>(views, [&] { return pick(0, 1) == 1; });
  const auto holes =
      drawn<int64_t>(4 * views, [&] { return pick(-reach, reach); });
  for (const bool plain : {true, false}) {
    const AugmentProblem problem{images.get(),
                                 kImages,
                                 height,
                                 width,
                                 channels,
                                 views,
                                 kSteps,
                                 operations.get(),
                                 magnitudes.get(),
                                 source.get(),
                                 plain ? nullptr : corners.get(),
                                 plain ? nullptr : flips.get(),
                                 plain ? nullptr : holes.get(),
                                 128};
    const auto whole = drawn<uint8_t>(views * bytes, [] { return uint8_t{1}; });
    const auto parts = drawn<uint8_t>(views * bytes, [] { return uint8_t{2}; });
    s3h::cpu::augment_images(problem, kOneThread, whole.get());
    s3h::cpu::augment_images(problem, kThreads, parts.get());
    if (!std::equal(whole.get(), whole.get() + views * bytes, parts.get())) {
      std::fprintf(stderr, "threads differ at %lld x %lld x %lld\n",
                   static_cast<long long>(height),
                   static_cast<long long>(width),
                   static_cast<long long>(channels));
      std::exit(1);
    }
  }
}

void check_turns() {
  constexpr int kAngles = 100000;
  for (int i = 0; i <= kAngles; ++i) {
    const double x = i * (6.283185307179586 / kAngles);
    const s3h::exact::Turn turn = s3h::exact::turn(x);
    if (std::abs(turn.cosine - std::cos(x)) <= 0x1p-52 &&
        std::abs(turn.sine - std::sin(x)) <= 0x1p-52)
      continue;
    std::fprintf(stderr, "cosine or sine of %.17g is wrong\n", x);
    std::exit(1);
  }
}

}  // namespace

int main() {
  check_turns();
  for (const int64_t channels : {1, 3})
    for (const bool far : {false, true}) {
      check(1, 1, channels, far);
      check(2, 5, channels, far);
      check(1, 9, channels, far);
      check(7, 3, channels, far);
      check(17, 12, channels, far);
      check(0, 4, channels, far);
    }
  std::puts("augment: all shapes agree");
  return 0;
}
