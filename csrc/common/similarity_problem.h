// The arguments of a log-sum-exp over similarities; pointers are to the
// device's own memory, row-major and contiguous. In the symmetric case the
// queries are the keys and row i does not see key i.
#pragma once

#include <cstdint>

namespace s3h {

// T is the type of the vectors, Element that of the matrices; void if a kernel
// gets them in another way.
template <typename T, typename Element = T>
struct SimilarityProblem {
  bool symmetric;  // keys, key_labels and self_index are not read; m == n
  const Element* queries;  // [n, depth]
  const Element* keys;     // [m, depth]
  int64_t n;
  int64_t m;
  int64_t depth;
  double temperature;
  const T* key_bias;            // [m] or nullptr
  const int64_t* query_labels;  // [n] or nullptr
  const int64_t* key_labels;    // [m] or nullptr; negative: matches nothing
  const T* same_label_bias;     // [n] or nullptr: same_label_value for all
  double same_label_value;
  const int64_t* self_index;  // [n] or nullptr; out of [0, m): none
};

}  // namespace s3h
