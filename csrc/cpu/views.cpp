#include "views.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <vector>

#include "views_patch.h"

namespace s3h::cpu {
namespace {

struct Rect {
  int64_t top, left, height, width;
};

Rect patch_rect(const ViewsProblem& p, int64_t patch) {
  if (p.rect == nullptr) return {0, 0, p.height, p.width};
  const int64_t* r = p.rect + 4 * patch;
  return {r[0], r[1], r[2], r[3]};
}

bool overlap(const Rect& a, const Rect& b) {
  return a.top < b.top + b.height && b.top < a.top + a.height &&
         a.left < b.left + b.width && b.left < a.left + a.width;
}

// Whether the patches evidently cover their view: a single one does, or a few
// do as tiles.
bool covered(const ViewsProblem& p, const int64_t* patches, int64_t count) {
  constexpr int64_t kMostTiles = 16;
  const int64_t whole = p.height * p.width;
  int64_t area = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Rect rect = patch_rect(p, patches[i]);
    if (rect.height * rect.width == whole) return true;
    area += rect.height * rect.width;
  }
  if (area != whole || count > kMostTiles) return false;
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < i; ++j)
      if (overlap(patch_rect(p, patches[i]), patch_rect(p, patches[j])))
        return false;
  return true;
}

void erase(const ViewsProblem& p, const int64_t* rect, int64_t pixel_bytes,
           char* view) {
  // Rectangles may be anywhere: double cannot overflow.
  const auto limit = [](int64_t start, int64_t size, int64_t end) {
    const double stop = static_cast<double>(start) + static_cast<double>(size);
    return static_cast<int64_t>(
        std::clamp(stop, 0.0, static_cast<double>(end)));
  };
  const int64_t top = std::clamp<int64_t>(rect[0], 0, p.height);
  const int64_t left = std::clamp<int64_t>(rect[1], 0, p.width);
  const int64_t bottom = limit(rect[0], rect[2], p.height);
  const int64_t right = limit(rect[1], rect[3], p.width);
  // Zero is all zero bits in all three types.
  for (int64_t y = top; y < bottom && left < right; ++y)
    std::memset(view + (y * p.width + left) * pixel_bytes, 0,
                static_cast<size_t>((right - left) * pixel_bytes));
}

// Patches sorted by view, in their original order within a view.
struct ByView {
  std::vector<int64_t> order, start;

  explicit ByView(const ViewsProblem& p)
      : order(static_cast<size_t>(p.patches)),
        start(static_cast<size_t>(p.views) + 1) {
    // Without patches every pointer may be null.
    if (p.patches == 0) return;
    if (p.view == nullptr) {
      std::iota(order.begin(), order.end(), 0);
      std::iota(start.begin(), start.end(), 0);
      return;
    }
    for (int64_t i = 0; i < p.patches; ++i)
      ++start[static_cast<size_t>(p.view[i]) + 1];
    std::partial_sum(start.begin(), start.end(), start.begin());
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < p.patches; ++i)
      order[static_cast<size_t>(next[static_cast<size_t>(p.view[i])]++)] = i;
  }
};

}  // namespace

void render_views(const ViewsProblem& p, const Threads& threads, void* out) {
  if (p.views == 0) return;
  const ByView by_view(p);
  const int64_t pixel_bytes = p.channels * (p.type == ViewType::kFloat ? 4 : 2);
  const int64_t workers = std::min(threads.count, p.views);
  // The cost of views differs, so threads take a few at a time.
  const int64_t step = std::clamp<int64_t>(p.views / (8 * workers), 1, 16);
  std::atomic<int64_t> taken{0};
  threads.parallel_for(0, workers, [&](int64_t, int64_t) {
    PatchRenderer renderer(p);
    for (;;) {
      const int64_t begin = taken.fetch_add(step, std::memory_order_relaxed);
      const int64_t end = std::min(begin + step, p.views);
      if (begin >= end) return;
      for (int64_t v = begin; v < end; ++v) {
        char* view =
            static_cast<char*>(out) + v * p.height * p.width * pixel_bytes;
        const int64_t first = by_view.start[static_cast<size_t>(v)];
        const int64_t last = by_view.start[static_cast<size_t>(v) + 1];
        const int64_t* patches = by_view.order.data() + first;
        if (!covered(p, patches, last - first)) renderer.fill_black(view);
        for (int64_t i = 0; i < last - first; ++i)
          renderer.render(patches[i], view);
        if (p.erase != nullptr) erase(p, p.erase + 4 * v, pixel_bytes, view);
      }
    }
  });
}

}  // namespace s3h::cpu
