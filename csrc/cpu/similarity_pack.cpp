// A panel is the transpose of its rows, built from 4 x 4 blocks of 32-bit words
// in vectors of 4, which every CPU has; rows and words that do not fill a block
// are copied one by one.
#include "similarity_pack.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "bfloat16.h"
#include "shuffle.h"

namespace s3h::cpu {
namespace {

typedef float Four __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

void transpose(Words (&v)[4]) {
  const Words a = shuffle<0, 4, 1, 5>(v[0], v[1]),
              b = shuffle<2, 6, 3, 7>(v[0], v[1]);
  const Words c = shuffle<0, 4, 1, 5>(v[2], v[3]),
              d = shuffle<2, 6, 3, 7>(v[2], v[3]);
  v[0] = shuffle<0, 1, 4, 5>(a, c);
  v[1] = shuffle<2, 3, 6, 7>(a, c);
  v[2] = shuffle<0, 1, 4, 5>(b, d);
  v[3] = shuffle<2, 3, 6, 7>(b, d);
}

// A word is a float, or two neighbours in bfloat16.
template <typename Element>
constexpr int64_t kPerWord = std::is_same_v<Element, float> ? 1 : 2;

// Returns the packed word and adds the squares of its numbers.
template <typename Element>
Words packed(Words word, float scale, Four& squares) {
  if constexpr (std::is_same_v<Element, float>) {
    const Four value = (Four)word * scale;
    squares += value * value;
    return (Words)value;
  } else {
    const Four low = (Four)(word << 16), high = (Four)(word & 0xffff0000u);
    squares += low * low + high * high;
    return word;
  }
}

// Words [first, steps) of one row; the last one may be half a pair.
template <typename Element>
void pack_words(const Element* row, int64_t depth, int64_t first, int64_t steps,
                int64_t panel, float scale, Four& squares, float* to) {
  for (int64_t s = first; s < steps; ++s) {
    const int64_t at = s * kPerWord<Element>;
    const int64_t left = std::clamp<int64_t>(depth - at, 0, kPerWord<Element>);
    Words word{};
    std::memcpy(&word, row + std::min(at, depth),
                static_cast<size_t>(left) * sizeof(Element));
    word = packed<Element>(word, scale, squares);
    std::memcpy(to + s * panel, &word, sizeof(float));
  }
}

}  // namespace

template <typename Element>
float pack_panel(const Rows<Element>& from, int64_t panel, int64_t steps,
                 float scale, float* to) {
  const int64_t count = std::min(panel, from.count);
  const int64_t whole = from.depth / kPerWord<Element> / 4 * 4;
  float top = 0;
  const auto keep_longest = [&](Four squares) {
    const float square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
    keep_larger(top, square);
  };
  int64_t r = 0;
  for (; r + 4 <= count; r += 4) {
    const Element* rows[4];
    Four squares[4] = {};
    for (int64_t i = 0; i < 4; ++i) rows[i] = from.rows + (r + i) * from.depth;
    for (int64_t s = 0; s < whole; s += 4) {
      Words block[4];
      for (int64_t i = 0; i < 4; ++i) {
        std::memcpy(&block[i], rows[i] + s * kPerWord<Element>, sizeof(Words));
        block[i] = packed<Element>(block[i], scale, squares[i]);
      }
      transpose(block);
      for (int64_t i = 0; i < 4; ++i)
        std::memcpy(to + (s + i) * panel + r, &block[i], sizeof(Words));
    }
    for (int64_t i = 0; i < 4; ++i) {
      pack_words(rows[i], from.depth, whole, steps, panel, scale, squares[i],
                 to + r + i);
      keep_longest(squares[i]);
    }
  }
  for (; r < count; ++r) {
    Four squares{};
    pack_words(from.rows + r * from.depth, from.depth, 0, steps, panel, scale,
               squares, to + r);
    keep_longest(squares);
  }
  for (int64_t s = 0; s < steps && r < panel; ++s)
    std::fill(to + s * panel + r, to + (s + 1) * panel, 0.0f);
  return top;
}

template <typename Element>
void copy_row(const Rows<Element>& from, int64_t width, float* to) {
  if constexpr (std::is_same_v<Element, float>) {
    std::copy(from.rows, from.rows + from.depth, to);
  } else {
    const bool second = from.count > 1;
    for (int64_t d = 0; d < from.depth; ++d) {
      const Element pair[2] = {from.rows[d],
                               second ? from.rows[from.depth + d] : Element{}};
      std::memcpy(to + d, pair, sizeof(float));
    }
  }
  std::fill(to + from.depth, to + width, 0.0f);
}

#define S3H_INSTANTIATE(Element)                                             \
  template float pack_panel<Element>(const Rows<Element>&, int64_t, int64_t, \
                                     float, float*);                         \
  template void copy_row<Element>(const Rows<Element>&, int64_t, float*);
S3H_INSTANTIATE(float)
S3H_INSTANTIATE(Bfloat16)
#undef S3H_INSTANTIATE

}  // namespace s3h::cpu
