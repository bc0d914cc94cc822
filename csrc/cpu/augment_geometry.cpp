// Shear, translation and rotation, with the source positions of
// csrc/common/augment_maps.h. Points outside the image give the fill.
#include <cstring>

#include "../common/augment_maps.h"
#include "augment.h"

namespace s3h::cpu::augment {
namespace {

void copy_pixel(const uint8_t* from, int64_t channels, uint8_t* to) {
  for (int64_t c = 0; c < channels; ++c) to[c] = from[c];
}

void nearest(const uint8_t* from, const Shape& s, const maps::Fixed& map,
             uint8_t fill, uint8_t* to) {
  const int64_t row_bytes = s.width * s.channels;
  std::memset(to, fill, static_cast<size_t>(s.height * row_bytes));
  int64_t row_x = map.x0, row_y = map.y0;
  for (int64_t y = 0; y < s.height; ++y) {
    int64_t at_x = row_x, at_y = row_y;
    for (int64_t x = 0; x < s.width; ++x) {
      const int64_t from_x = at_x >> 16, from_y = at_y >> 16;
      if (from_x >= 0 && from_x < s.width && from_y >= 0 && from_y < s.height)
        copy_pixel(from + from_y * row_bytes + from_x * s.channels, s.channels,
                   to + y * row_bytes + x * s.channels);
      at_x += map.xx;
      at_y += map.yx;
    }
    row_x += map.xy;
    row_y += map.yy;
  }
}

// One output pixel of a cubic along one axis; `stride` bytes between its taps.
void cubic_pixel(const uint8_t* line, int64_t length, int64_t stride,
                 int64_t channels, double position, uint8_t* to) {
  const maps::Taps taps = maps::taps_of(position, length);
  for (int64_t c = 0; c < channels; ++c) {
    const auto tap = [&](int t) {
      return static_cast<double>(line[stride * taps.at[t] + c]);
    };
    to[c] = maps::cubic(tap(0), tap(1), tap(2), tap(3), taps.d);
  }
}

}  // namespace

void shear(const uint8_t* from, const Shape& s, bool vertical, bool cubic,
           double coefficient, uint8_t fill, uint8_t* to) {
  if (!cubic) {
    nearest(from, s, maps::shear_map(vertical, coefficient), fill, to);
    return;
  }
  const int64_t row_bytes = s.width * s.channels;
  const int64_t length = vertical ? s.height : s.width;
  // The other axis maps to its own pixel centres: nothing to interpolate.
  for (int64_t y = 0; y < s.height; ++y)
    for (int64_t x = 0; x < s.width; ++x) {
      const double position =
          maps::shear_position(coefficient, vertical ? y : x, vertical ? x : y);
      uint8_t* pixel = to + y * row_bytes + x * s.channels;
      if (!(position >= 0 && position < static_cast<double>(length)))
        std::memset(pixel, fill, static_cast<size_t>(s.channels));
      else if (vertical)
        cubic_pixel(from + x * s.channels, length, row_bytes, s.channels,
                    position, pixel);
      else
        cubic_pixel(from + y * row_bytes, length, s.channels, s.channels,
                    position, pixel);
    }
}

void translate(const uint8_t* from, const Shape& s, bool vertical,
               double pixels, uint8_t fill, uint8_t* to) {
  const int64_t row_bytes = s.width * s.channels;
  std::memset(to, fill, static_cast<size_t>(s.height * row_bytes));
  const int64_t length = vertical ? s.height : s.width;
  const maps::Translation moved = maps::translation(pixels, length);
  for (int64_t i = 0; i < length; ++i) {
    const int64_t at = moved.first + i + (i >= moved.late ? 1 : 0);
    if (at < 0 || at >= length) continue;
    if (vertical)
      std::memcpy(to + i * row_bytes, from + at * row_bytes,
                  static_cast<size_t>(row_bytes));
    else
      for (int64_t y = 0; y < s.height; ++y)
        copy_pixel(from + y * row_bytes + at * s.channels, s.channels,
                   to + y * row_bytes + i * s.channels);
  }
}

void rotate(const uint8_t* from, const Shape& s, double degrees, uint8_t fill,
            uint8_t* to) {
  nearest(from, s, maps::rotation_map(degrees, s.height, s.width), fill, to);
}

}  // namespace s3h::cpu::augment
