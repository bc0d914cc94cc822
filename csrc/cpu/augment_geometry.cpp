// Shear, translation and rotation with the sampling positions of Pillow's
// libImaging/Geometry.c, which decide at every border pixel:
//
//   nearest   an affine map in 16.16 fixed point from the centre of the first
//             pixel, stepped by addition; a pure translation in double instead
//   bicubic   the cubic with a = -1 about pixel centres in double, taps clamped
//             to the image, the result truncated
//
// A point outside the image gives the fill. Built without contraction into
// fused multiply-adds: that is how the results are bit-equal to Pillow's.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

#include "augment.h"

namespace s3h::cpu::augment {
namespace {

// x' = xx x + xy y + x0, y' = yx x + yy y + y0: from the result to the source.
struct Affine {
  double xx, xy, x0;
  double yx, yy, y0;
};

int64_t fixed(double value) {
  return static_cast<int64_t>(std::floor(value * 65536.0 + 0.5));
}

void copy_pixel(const uint8_t* from, int64_t channels, uint8_t* to) {
  for (int64_t c = 0; c < channels; ++c) to[c] = from[c];
}

void nearest(const uint8_t* from, const Shape& s, const Affine& map,
             uint8_t fill, uint8_t* to) {
  const int64_t row_bytes = s.width * s.channels;
  std::memset(to, fill, static_cast<size_t>(s.height * row_bytes));
  const int64_t xx = fixed(map.xx), xy = fixed(map.xy);
  const int64_t yx = fixed(map.yx), yy = fixed(map.yy);
  int64_t row_x = fixed(map.x0 + map.xx * 0.5 + map.xy * 0.5);
  int64_t row_y = fixed(map.y0 + map.yx * 0.5 + map.yy * 0.5);
  for (int64_t y = 0; y < s.height; ++y) {
    int64_t at_x = row_x, at_y = row_y;
    for (int64_t x = 0; x < s.width; ++x) {
      const int64_t from_x = at_x >> 16, from_y = at_y >> 16;
      if (from_x >= 0 && from_x < s.width && from_y >= 0 && from_y < s.height)
        copy_pixel(from + from_y * row_bytes + from_x * s.channels, s.channels,
                   to + y * row_bytes + x * s.channels);
      at_x += xx;
      at_y += yx;
    }
    row_x += xy;
    row_y += yy;
  }
}

// One output pixel of a cubic along one axis; `stride` bytes between its taps.
void cubic_pixel(const uint8_t* line, int64_t length, int64_t stride,
                 int64_t channels, double position, uint8_t* to) {
  position -= 0.5;
  const double whole = std::floor(position);
  const double d = position - whole;
  int64_t taps[4];
  for (int64_t t = 0; t < 4; ++t)
    taps[t] = stride * std::clamp<int64_t>(static_cast<int64_t>(whole) + t - 1,
                                           0, length - 1);
  for (int64_t c = 0; c < channels; ++c) {
    const double v1 = line[taps[0] + c], v2 = line[taps[1] + c];
    const double v3 = line[taps[2] + c], v4 = line[taps[3] + c];
    const double p2 = -v1 + v3;
    const double p3 = 2 * (v1 - v2) + v3 - v4;
    const double p4 = -v1 + v2 - v3 + v4;
    const double value = v2 + d * (p2 + d * (p3 + d * p4));
    to[c] = static_cast<uint8_t>(std::clamp(value, 0.0, 255.0));
  }
}

}  // namespace

void shear(const uint8_t* from, const Shape& s, bool vertical, bool cubic,
           double coefficient, uint8_t fill, uint8_t* to) {
  if (!cubic) {
    const Affine map = vertical ? Affine{1, 0, 0, coefficient, 1, 0}
                                : Affine{1, coefficient, 0, 0, 1, 0};
    nearest(from, s, map, fill, to);
    return;
  }
  const int64_t row_bytes = s.width * s.channels;
  // The other axis is mapped to its own pixel centres: nothing to interpolate.
  for (int64_t y = 0; y < s.height; ++y)
    for (int64_t x = 0; x < s.width; ++x) {
      const double along = static_cast<double>(vertical ? y : x) + 0.5;
      const double across = static_cast<double>(vertical ? x : y) + 0.5;
      const double position = vertical ? coefficient * across + along
                                       : along + coefficient * across;
      const int64_t length = vertical ? s.height : s.width;
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
  double position = pixels + 0.5;
  for (int64_t i = 0; i < length; ++i, position += 1.0) {
    const int64_t at =
        position < 0 ? -1 : static_cast<int64_t>(std::floor(position));
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
  // Pillow rounds the matrix to 15 decimals, so that a right angle is one.
  const auto rounded = [](double value) {
    return std::round(value * 1e15) / 1e15;
  };
  const double turn = std::fmod(degrees, 360.0);
  const double angle =
      -(turn < 0 ? turn + 360.0 : turn) * (std::numbers::pi / 180.0);
  const double cosine = rounded(std::cos(angle));
  const double sine = rounded(std::sin(angle));
  const double centre_x = static_cast<double>(s.width) / 2.0;
  const double centre_y = static_cast<double>(s.height) / 2.0;
  const Affine map{
      cosine, sine,   (cosine * -centre_x + sine * -centre_y) + centre_x,
      -sine,  cosine, (-sine * -centre_x + cosine * -centre_y) + centre_y};
  nearest(from, s, map, fill, to);
}

}  // namespace s3h::cpu::augment
