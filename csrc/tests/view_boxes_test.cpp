// Draws boxes under every kind of constraint from exact-size heap blocks, at
// once and in pieces by two threads, and checks that both agree and that boxes
// lie where they must. Meant for the sanitizers (tools/sanitize.sh).
#include "../cpu/view_boxes.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "blocks.h"
#include "threads.h"

namespace {

using s3h::ViewBoxProblem;

constexpr int64_t kLargest = (int64_t{1} << 24) - 1;

void require(bool holds, const char* what, int64_t row) {
  if (holds) return;
  std::fprintf(stderr, "%s does not hold at row %lld\n", what,
               static_cast<long long>(row));
  std::exit(1);
}

// kind, rows, columns, shares, pick, scale, ratio, logarithms, tries, padding,
// centre share, overlap, attempts
std::vector<double> constraint(double kind, double rows, double padding,
                               double attempts) {
  return {kind,
          rows,
          2,
          0.8,
          0.8,
          0,
          0.2,
          1,
          0.75,
          4. / 3,
          -0.14384103622589045,
          0.14384103622589042,
          10,
          padding,
          0.875,
          0.1,
          0.3,
          attempts};
}

void check(const std::vector<double>& numbers, bool inside) {
  const std::vector<int64_t> sides{1, 2, 3, 32, 47, 224, 5000, kLargest};
  std::vector<int64_t> all_sizes, all_indices, all_views;
  for (int64_t height : sides)
    for (int64_t width : sides)
      for (int64_t view = 0; view < 8; ++view) {
        all_sizes.push_back(height);
        all_sizes.push_back(width);
        all_indices.push_back(view * 0x100000001 + height);
        all_views.push_back(view);
      }
  const auto count = static_cast<int64_t>(all_views.size());
  const auto sizes = exact(all_sizes), indices = exact(all_indices);
  const auto views = exact(all_views);
  const auto values = exact(numbers);
  const ViewBoxProblem problem{count,
                               sizes.get(),
                               2,
                               indices.get(),
                               views.get(),
                               1,
                               values.get(),
                               static_cast<int64_t>(numbers.size()),
                               7,
                               11,
                               3};
  require(s3h::cpu::check_view_boxes(problem).argument == nullptr, "no fault",
          -1);
  const auto boxes = exact(std::vector<int64_t>(all_views.size() * 4));
  const auto again = exact(std::vector<int64_t>(all_views.size() * 4));
  const std::unique_ptr<bool[]> flags(new bool[all_views.size()]);
  const std::unique_ptr<bool[]> flags_again(new bool[all_views.size()]);
  s3h::cpu::draw_view_boxes(problem, 0, count, boxes.get(), flags.get());
  kThreads.parallel_for(0, count, [&](int64_t begin, int64_t end) {
    s3h::cpu::draw_view_boxes(problem, begin, end, again.get(),
                              flags_again.get());
  });
  for (int64_t i = 0; i < count; ++i) {
    const int64_t* box = boxes.get() + 4 * i;
    require(std::equal(box, box + 4, again.get() + 4 * i) &&
                flags[static_cast<size_t>(i)] ==
                    flags_again[static_cast<size_t>(i)],
            "threads agree", i);
    require(box[2] >= 1 && box[3] >= 1 && box[2] <= sizes[2 * i] &&
                box[3] <= sizes[2 * i + 1],
            "side in range", i);
    if (inside)
      require(box[0] >= 0 && box[1] >= 0 && box[0] + box[2] <= sizes[2 * i] &&
                  box[1] + box[3] <= sizes[2 * i + 1],
              "box in image", i);
  }
}

void check_faults() {
  const auto numbers = constraint(2, 2, 4, 0);
  const int64_t size[] = {32, 32}, none[] = {0, 32}, index = 0, bad = -1;
  const int64_t view = 0, far = int64_t{1} << 24;
  const ViewBoxProblem good{1,  size, 2, &index, &view, 1, numbers.data(),
                            18, 0,    0, 0};
  const auto faulty = [](const ViewBoxProblem& problem) {
    return s3h::cpu::check_view_boxes(problem).argument != nullptr;
  };
  require(!faulty(good), "a sound problem passes", -1);
  ViewBoxProblem p = good;
  p.sizes = none;
  require(faulty(p), "an empty image is a fault", 0);
  p = good;
  p.sample_index = &bad;
  require(faulty(p), "a negative index is a fault", 0);
  p = good;
  p.view = &far;
  require(faulty(p), "a large view is a fault", 0);
  p = good;
  p.seed = -1;
  require(faulty(p), "a negative seed is a fault", 0);
  p = good;
  p.constraint_numbers = 17;
  require(faulty(p), "a short constraint is a fault", 0);
  for (size_t n = 0; n < numbers.size(); ++n) {
    auto changed = numbers;
    changed[n] = 0.0 / 0.0 * (static_cast<double>(n) + 1);
    p = good;
    p.constraint = changed.data();
    require(faulty(p), "NaN in a constraint is a fault",
            static_cast<int64_t>(n));
  }
}

}  // namespace

int main() {
  int cases = 0;
  for (double kind : {0., 1., 2., 3.})
    for (double rows : {1., 2.})
      for (double padding : {0., 4., static_cast<double>(kLargest)})
        for (double attempts : {0., 20.}) {
          check(constraint(kind, rows, padding, attempts), kind != 1);
          ++cases;
        }
  check_faults();
  std::printf("%d cases of view boxes\n", cases);
}
