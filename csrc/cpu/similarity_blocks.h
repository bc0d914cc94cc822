// The list of tiles and its division among threads, which depends only on sizes
// and the number of threads: same bits on every run.
#pragma once

#include <cstdint>
#include <vector>

namespace s3h::cpu {

// Panels [first, last).
struct Range {
  int64_t first;
  int64_t last;
};

struct Block {
  Range rows;
  Range columns;
};

// One list of tiles per task.
using Pieces = std::vector<std::vector<Block>>;

// Tiles on and above the diagonal of a square of `panels`, divided into pieces
// of equal cost. Diagonal tiles are single panels, because half of their work
// is redundant; one costs `diagonal_cost` of another tile's panel. Others have
// up to `block` panels of rows and `columns` of columns.
Pieces triangle(int64_t panels, int64_t block, int64_t columns, int64_t tasks,
                double diagonal_cost);

// All tiles of a rectangle; the rows (or the columns) are divided among the
// tasks, at multiples of `unit` panels.
Pieces rectangle(int64_t row_panels, int64_t column_panels, int64_t block,
                 int64_t tasks, int64_t unit, bool by_columns);

}  // namespace s3h::cpu
