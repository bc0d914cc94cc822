// The window of an antialiased bilinear resize, shared by host and device.
//
// Output pixel i of n weights the source pixels j of m by a triangle centred at
// (i + 1/2) m / n, of half-width max(m / n, 1), cut off at the source and
// normalised to sum to 1 there. If n == m, it is the pixel itself.
#pragma once

#include <cstdint>

#include "philox.h"

namespace s3h {

struct ResampleWindow {
  double centre;   // in source pixels whose centres are whole numbers
  double inverse;  // 1 / half-width
  int64_t first;   // first source pixel with a positive weight
  int64_t count;   // at least 1
};

// Weight of source pixel j, before normalisation.
S3H_COMMON double resample_weight(const ResampleWindow& window, int64_t j) {
  const double distance = static_cast<double>(j) - window.centre;
  return 1 - (distance < 0 ? -distance : distance) * window.inverse;
}

// 0 <= i < outputs, 0 < size.
S3H_COMMON ResampleWindow resample_window(int64_t i, int64_t outputs,
                                          int64_t size) {
  const double scale = static_cast<double>(size) / static_cast<double>(outputs);
  const double reach = scale > 1 ? scale : 1;
  ResampleWindow window{};
  window.centre = (static_cast<double>(i) + 0.5) * scale - 0.5;
  window.inverse = 1 / reach;
  // Rounded towards zero, too far out by at most one; then trimmed.
  int64_t first = static_cast<int64_t>(window.centre - reach);
  int64_t last = static_cast<int64_t>(window.centre + reach) + 1;
  if (first < 0) first = 0;
  if (last > size - 1) last = size - 1;
  while (first < last && !(resample_weight(window, first) > 0)) ++first;
  while (last > first && !(resample_weight(window, last) > 0)) --last;
  window.first = first;
  window.count = last - first + 1;
  return window;
}

}  // namespace s3h
