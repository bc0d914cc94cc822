// Draws the source box of a view under a constraint. A pure function of
// (address, image size, constraint), the same bits on host and device;
// s3h_ext/ops/plain/view_boxes.py does the same in tensor operations.
//
// A constraint is a region of the image (a cell of an overlapping grid), a crop
// in that region, and bounds on the overlap with the sibling view. Slots of a
// view's draws:
//
//   1 top   2 left   9 cell of the grid, if it is drawn
//   12 + 2t, 13 + 2t   area and aspect ratio of try t of a resized crop
//
// (the others belong to flips and colours, s3h_ext/data/views/recipes.py). With
// bounds on the overlap, the whole draw is repeated until they hold; attempt a
// uses the blocks from a << 16, so attempt 0 is the draw without bounds.
#pragma once

#include <cstdint>

#include "exact.h"
#include "philox.h"
#include "view_box_problem.h"

namespace s3h {

constexpr int64_t kMaxSide = int64_t{1} << 24;
constexpr int64_t kMaxTries = 1000;
constexpr int64_t kMaxAttempts = 1000;
constexpr int64_t kMaxCells = 1024;

struct Box {
  int64_t top, left, height, width;
};

struct DrawnBox {
  Box box;
  bool fallback;  // no allowed try met the constraint
};

enum class CropKind { kWhole, kPadded, kResized, kCentre, kCount };

struct BoxConstraint {
  CropKind kind;
  // Region: cell of a rows x columns grid of overlapping regions, each
  // `height_share` x `width_share` of the image.
  int64_t rows, columns;
  double height_share, width_share;
  bool cell_drawn;  // else view % (rows * columns)
  // Resized crop: ranges of area over the region's area and of width / height;
  // the logarithms are of the square roots of the ratio's ends.
  double scale_low, scale_high, ratio_low, ratio_high, log_low, log_high;
  int64_t tries;
  int64_t padding;      // padded crop
  double centre_share;  // centre crop: side over the region's shorter side
  // Bounds on the intersection over union of an odd view with the preceding
  // even view; no bounds without attempts.
  double least_overlap, most_overlap;
  int64_t attempts;
};

// Whether `value` is in [low, high]; false for NaN.
S3H_COMMON bool within(double value, double low, double high) {
  return value >= low && value <= high;
}

// Reads an integer in [low, high].
S3H_COMMON bool read_whole(double value, double low, double high, int64_t* to) {
  if (!within(value, low, high)) return false;
  *to = static_cast<int64_t>(value);
  return static_cast<double>(*to) == value;
}

// The valid range of each number, for messages.
constexpr const char* kConstraintRanges[kConstraintNumbers] = {
    "a kind of crop",
    "1 <= rows <= 1024",
    "1 <= columns <= 1024",
    "0 < height share <= 1",
    "0 < width share <= 1",
    "pick 0 or 1",
    "0 < low scale",
    "low scale <= high scale <= 1",
    "0.1 <= low ratio",
    "low ratio <= high ratio <= 10",
    "a low logarithm of at least -1.2",
    "a high logarithm from the low one to 1.2",
    "1 <= tries <= 1000",
    "0 <= padding < 2**24",
    "0 < centre share <= 1",
    "0 <= least overlap",
    "least overlap <= most overlap <= 1",
    "0 <= attempts <= 1000"};

// Fills `to` from kConstraintNumbers numbers; returns the index of the first
// one out of range, or -1. NaN is always out of range.
S3H_COMMON int read_constraint(const double* from, BoxConstraint* to) {
  int64_t kind = 0, drawn = 0;
  const auto last_kind = static_cast<double>(CropKind::kCount) - 1;
  if (!read_whole(from[0], 0, last_kind, &kind)) return 0;
  if (!read_whole(from[1], 1, kMaxCells, &to->rows)) return 1;
  if (!read_whole(from[2], 1, kMaxCells, &to->columns)) return 2;
  if (!(from[3] > 0 && from[3] <= 1)) return 3;
  if (!(from[4] > 0 && from[4] <= 1)) return 4;
  if (!read_whole(from[5], 0, 1, &drawn)) return 5;
  if (!(from[6] > 0)) return 6;
  if (!within(from[7], from[6], 1)) return 7;
  if (!(from[8] >= 0.1)) return 8;
  if (!within(from[9], from[8], 10)) return 9;
  if (!(from[10] >= -1.2)) return 10;
  if (!within(from[11], from[10], 1.2)) return 11;
  if (!read_whole(from[12], 1, kMaxTries, &to->tries)) return 12;
  if (!read_whole(from[13], 0, kMaxSide - 1, &to->padding)) return 13;
  if (!(from[14] > 0 && from[14] <= 1)) return 14;
  if (!(from[15] >= 0)) return 15;
  if (!within(from[16], from[15], 1)) return 16;
  if (!read_whole(from[17], 0, kMaxAttempts, &to->attempts)) return 17;
  to->kind = static_cast<CropKind>(kind);
  to->height_share = from[3];
  to->width_share = from[4];
  to->cell_drawn = drawn != 0;
  to->scale_low = from[6];
  to->scale_high = from[7];
  to->ratio_low = from[8];
  to->ratio_high = from[9];
  to->log_low = from[10];
  to->log_high = from[11];
  to->centre_share = from[14];
  to->least_overlap = from[15];
  to->most_overlap = from[16];
  return -1;
}

namespace boxes {

enum Slot : uint32_t { kTop = 1, kLeft = 2, kCell = 9, kTries = 12 };
constexpr uint32_t kBlocksPerAttempt = 1u << 16;

S3H_COMMON int64_t share_of(double share, int64_t side) {
  const int64_t part =
      exact::round_up(exact::multiply(share, static_cast<double>(side)));
  return part < 1 ? 1 : part;
}

// Start of cell `number` of `count` equal cells along a side: the first at one
// end, the last at the other, a single one in the middle.
S3H_COMMON int64_t cell_start(int64_t free, int64_t number, int64_t count) {
  return count == 1 ? free / 2 : free * number / (count - 1);
}

S3H_COMMON Box region(const BoxConstraint& c, Draws& draws, int64_t height,
                      int64_t width) {
  const int64_t cells = c.rows * c.columns;
  int64_t cell = 0;
  if (cells > 1)
    cell = c.cell_drawn
               ? exact::pick(draw_uniform(draws, kCell), cells)
               : static_cast<int64_t>(draws.address.view & 0xFFFFFFu) % cells;
  const int64_t h = share_of(c.height_share, height);
  const int64_t w = share_of(c.width_share, width);
  return {cell_start(height - h, cell / c.columns, c.rows),
          cell_start(width - w, cell % c.columns, c.columns), h, w};
}

S3H_COMMON Box padded(const BoxConstraint& c, Draws& draws, const Box& in) {
  const int64_t shifts = 2 * c.padding + 1;
  const double top = draw_uniform(draws, kTop);
  const double left = draw_uniform(draws, kLeft);
  return {in.top + exact::pick(top, shifts) - c.padding,
          in.left + exact::pick(left, shifts) - c.padding, in.height, in.width};
}

S3H_COMMON Box centred(const Box& in, int64_t height, int64_t width) {
  return {in.top + (in.height - height) / 2, in.left + (in.width - width) / 2,
          height, width};
}

// The largest centred box whose ratio is in range.
S3H_COMMON Box nearest_ratio(const BoxConstraint& c, const Box& in) {
  const double height = static_cast<double>(in.height);
  const double width = static_cast<double>(in.width);
  int64_t h = in.height, w = in.width;
  if (width < exact::multiply(c.ratio_low, height))
    h = exact::round_even(exact::divide(width, c.ratio_low));
  else if (width > exact::multiply(c.ratio_high, height))
    w = exact::round_even(exact::multiply(height, c.ratio_high));
  return centred(in, h < 1 ? 1 : h, w < 1 ? 1 : w);
}

S3H_COMMON DrawnBox resized(const BoxConstraint& c, Draws& draws,
                            const Box& in) {
  const double pixels = static_cast<double>(in.height * in.width);
  const double scales = exact::add(c.scale_high, -c.scale_low);
  const double logs = exact::add(c.log_high, -c.log_low);
  for (int64_t t = 0; t < c.tries; ++t) {
    const uint32_t slot = kTries + 2 * static_cast<uint32_t>(t);
    const double area = draw_uniform(draws, slot);
    const double aspect = draw_uniform(draws, slot + 1);
    const double side = exact::square_root(exact::multiply(
        exact::add(exact::multiply(area, scales), c.scale_low), pixels));
    const double stretch = exact::exponential(
        exact::add(exact::multiply(aspect, logs), c.log_low));
    const int64_t w = exact::round_even(exact::multiply(side, stretch));
    const int64_t h = exact::round_even(exact::divide(side, stretch));
    if (w < 1 || w > in.width || h < 1 || h > in.height) continue;
    const double top = draw_uniform(draws, kTop);
    const double left = draw_uniform(draws, kLeft);
    return {{in.top + exact::pick(top, in.height - h + 1),
             in.left + exact::pick(left, in.width - w + 1), h, w},
            false};
  }
  return {nearest_ratio(c, in), true};
}

// One attempt, ignoring the sibling.
S3H_COMMON DrawnBox attempt(const BoxConstraint& c, const DrawAddress& address,
                            int64_t number, int64_t height, int64_t width) {
  Draws draws =
      draws_of(address, static_cast<uint32_t>(number) * kBlocksPerAttempt);
  const Box in = region(c, draws, height, width);
  switch (c.kind) {
    case CropKind::kPadded:
      return {padded(c, draws, in), false};
    case CropKind::kResized:
      return resized(c, draws, in);
    case CropKind::kCentre: {
      const int64_t side =
          share_of(c.centre_share, in.height < in.width ? in.height : in.width);
      return {centred(in, side, side), false};
    }
    default:
      return {in, false};
  }
}

S3H_COMMON int64_t common_length(int64_t a, int64_t a_size, int64_t b,
                                 int64_t b_size) {
  const int64_t first = a > b ? a : b;
  const int64_t a_end = a + a_size, b_end = b + b_size;
  const int64_t length = (a_end < b_end ? a_end : b_end) - first;
  return length > 0 ? length : 0;
}

}  // namespace boxes

// Intersection over union; one rounding, because areas are below 2^49.
S3H_COMMON double box_overlap(const Box& a, const Box& b) {
  const int64_t common =
      boxes::common_length(a.top, a.height, b.top, b.height) *
      boxes::common_length(a.left, a.width, b.left, b.width);
  const int64_t all = a.height * a.width + b.height * b.width - common;
  return exact::divide(static_cast<double>(common), static_cast<double>(all));
}

// Draws the box of a view of a height x width image, both in [1, kMaxSide).
//
// Fallbacks, flagged: if no try of a resized crop fits, the largest centred box
// of the region whose ratio is in range; if no attempt meets the bounds on the
// overlap, the attempt that comes nearest, the first in a tie.
S3H_COMMON DrawnBox draw_box(const BoxConstraint& c, const DrawAddress& address,
                             int64_t height, int64_t width) {
  const DrawnBox first = boxes::attempt(c, address, 0, height, width);
  if (c.attempts == 0 || (address.view & 1u) == 0) return first;
  DrawAddress even = address;
  even.view -= 1;
  const Box sibling = boxes::attempt(c, even, 0, height, width).box;
  DrawnBox best = {first.box, true};
  double best_miss = 2;
  for (int64_t a = 0; a < c.attempts; ++a) {
    const DrawnBox drawn =
        a == 0 ? first : boxes::attempt(c, address, a, height, width);
    const double overlap = box_overlap(drawn.box, sibling);
    double miss = 0;
    if (overlap < c.least_overlap)
      miss = exact::add(c.least_overlap, -overlap);
    else if (overlap > c.most_overlap)
      miss = exact::add(overlap, -c.most_overlap);
    if (miss == 0 && !drawn.fallback) return drawn;
    if (miss < best_miss) {
      best_miss = miss;
      best.box = drawn.box;
    }
  }
  return best;
}

}  // namespace s3h
