// Sums of the rows of a matrix by key, on a GPU: sums_k = sum of w_i x_i over
// the rows i whose key is k. Rows with a key outside [0, keys) are not read.
// The same bits on every run. As in similarity.h nothing allocates or waits.
#pragma once

#include "scalar.h"
#include "status.h"

namespace s3h::cuda {

// Real: as in similarity.h.
struct RowsByKey {
  const void* rows;        // [count, depth] of the type
  const int64_t* row_key;  // [count]
  const void* weights;     // [count] Real, or nullptr: 1
  int64_t count;
  void* sums;    // [keys, depth] Real; all of it is written
  void* counts;  // [keys] Real, rows of each key; or nullptr
};

constexpr int kMostRowSets = 2;

size_t add_rows_workspace(Scalar type, int sets, int64_t most_rows,
                          int64_t keys, int64_t depth);

// `sets` of rows of one depth and one number of keys, in one launch or two.
// workspace: as large as for the largest count. Without elements (depth 0)
// nothing is written, counts neither.
Status add_rows(Scalar type, const RowsByKey* which, int sets, int64_t keys,
                int64_t depth, void* workspace, Stream stream);

}  // namespace s3h::cuda
