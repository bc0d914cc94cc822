// Source positions of the pixels of a sheared, translated or rotated image, as
// in Pillow's libImaging/Geometry.c; tiny differences would show at every
// border pixel.
//
//   nearest   an affine map in 16.16 fixed point from the centre of the first
//             pixel; a pure translation in double instead
//   bicubic   the cubic with a = -1 about pixel centres in double, the result
//             truncated
//
// One rounding per operation: the same positions on host and device.
#pragma once

#include <cstdint>

#include "exact.h"

namespace s3h::maps {

// Pixel (x, y) comes from ((x0 + xx x + xy y) >> 16, (y0 + yx x + yy y) >> 16).
struct Fixed {
  int64_t xx, xy, x0;
  int64_t yx, yy, y0;
};

S3H_COMMON int64_t fixed(double value) {
  return exact::round_down(exact::add(exact::multiply(value, 65536.0), 0.5));
}

// x' = xx x + xy y + x0, y' = yx x + yy y + y0.
S3H_COMMON Fixed fixed_map(double xx, double xy, double x0, double yx,
                           double yy, double y0) {
  const auto start = [](double offset, double a, double b) {
    return fixed(exact::add(exact::add(offset, exact::multiply(a, 0.5)),
                            exact::multiply(b, 0.5)));
  };
  return {fixed(xx), fixed(xy), start(x0, xx, xy),
          fixed(yx), fixed(yy), start(y0, yx, yy)};
}

S3H_COMMON Fixed shear_map(bool vertical, double coefficient) {
  return vertical ? fixed_map(1, 0, 0, coefficient, 1, 0)
                  : fixed_map(1, coefficient, 0, 0, 1, 0);
}

// |degrees| <= 2^20, counter-clockwise about the centre.
S3H_COMMON Fixed rotation_map(double degrees, int64_t height, int64_t width) {
  const auto whole =
      static_cast<double>(exact::round_down(exact::divide(degrees, 360.0)));
  // The remainder, 0 .. 360: exact unless it is too small to matter.
  const double rest = exact::add(degrees, -exact::multiply(whole, 360.0));
  constexpr double kRadian = 3.14159265358979323846 / 180.0;
  const exact::Turn turn = exact::turn(exact::multiply(rest, kRadian));
  // Pillow rounds the matrix to 15 decimals, so that right angles are exact.
  const auto rounded = [](double value) {
    return exact::divide(exact::round_away(exact::multiply(value, 1e15)), 1e15);
  };
  const double cosine = rounded(turn.cosine), sine = rounded(-turn.sine);
  const double x = exact::multiply(static_cast<double>(width), 0.5);
  const double y = exact::multiply(static_cast<double>(height), 0.5);
  const auto centred = [x, y](double a, double b, double centre) {
    return exact::add(
        exact::add(exact::multiply(a, -x), exact::multiply(b, -y)), centre);
  };
  return fixed_map(cosine, sine, centred(cosine, sine, x), -sine, cosine,
                   centred(-sine, cosine, y));
}

// Pixel i comes from first + i; from `late` on, from one pixel further.
struct Translation {
  int64_t first, late;
};

// For a line of `length`. Pillow starts at pixels + 0.5 and adds 1 per pixel;
// the sum is rounded when it passes 0 or a power of two, which loses a fraction
// just below 1. |pixels| <= 2^20.
S3H_COMMON Translation translation(double pixels, int64_t length) {
  double position = exact::add(pixels, 0.5), power = 1;
  const int64_t first = exact::round_down(position);
  for (int64_t at = 0; at < length;) {
    if (exact::round_down(position) != first + at) return {first, at};
    int64_t steps = 0;  // without rounding
    if (position < -1) {
      steps = -exact::round_down(position) - 1;
    } else if (position >= 1) {
      while (power <= position) power *= 2;
      steps = -exact::round_down(exact::add(position, -power)) - 1;
    }
    position =
        exact::add(exact::add(position, static_cast<double>(steps)), 1.0);
    at += steps + 1;
  }
  return {first, length};
}

// Source position of a pixel in an interpolated shear, along the sheared axis;
// `across` is the other one.
S3H_COMMON double shear_position(double coefficient, int64_t along,
                                 int64_t across) {
  return exact::add(
      exact::multiply(coefficient,
                      exact::add(static_cast<double>(across), 0.5)),
      exact::add(static_cast<double>(along), 0.5));
}

// The four pixels of a line between which a position is interpolated.
struct Taps {
  int64_t at[4];
  double d;  // distance from the second one
};

S3H_COMMON Taps taps_of(double position, int64_t length) {
  position = exact::add(position, -0.5);
  const int64_t whole = exact::round_down(position);
  Taps taps{};
  for (int64_t t = 0; t < 4; ++t) {
    const int64_t at = whole + t - 1;
    taps.at[t] = at < 0 ? 0 : at >= length ? length - 1 : at;
  }
  taps.d = exact::add(position, -static_cast<double>(whole));
  return taps;
}

S3H_COMMON uint8_t cubic(double v1, double v2, double v3, double v4, double d) {
  // Sums of bytes are exact.
  const double p2 = v3 - v1;
  const double p3 = 2 * (v1 - v2) + v3 - v4;
  const double p4 = v2 - v1 - v3 + v4;
  double value = exact::add(p3, exact::multiply(d, p4));
  value = exact::add(p2, exact::multiply(d, value));
  value = exact::add(v2, exact::multiply(d, value));
  return static_cast<uint8_t>(value < 0.0     ? 0.0
                              : value > 255.0 ? 255.0
                                              : value);
}

}  // namespace s3h::maps
