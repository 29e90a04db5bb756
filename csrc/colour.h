// Y, U, V of a pixel to R, G, B bytes, as planes.h defines them, for both devices: to the bit what FFmpeg's swscale makes of
// yuv420p, so that a file and its RGB frames pool to the same image.
#pragma once
#include <cmath>

#include "pixel.h"
#include "planes.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// High halves of products of 16 bits: (sample - black) << up by a factor of 13 bits after the point.
struct Factors {
  int up;                                        // of 8-bit samples 3
  int16_t black, middle;                         // shifted already
  int16_t y, rv, gu, gv, bu;

  explicit Factors(const Colour& c)
      : up(11 - c.depth), black(static_cast<int16_t>(c.black << 3)), middle(128 << 3), y(fixed(c.y)), rv(fixed(c.rv)),
        gu(fixed(c.gu)), gv(fixed(c.gv)), bu(fixed(c.bu)) {}
  static int16_t fixed(double factor) { return static_cast<int16_t>(std::floor(factor * (1 << 13) + 0.5)); }
};

DYNPOOL_HOST_DEVICE int16_t high_half(int16_t a, int16_t b) {
  return static_cast<int16_t>((static_cast<int32_t>(a) * b) >> 16);
}
DYNPOOL_HOST_DEVICE uint8_t clipped(int16_t value) {
  return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// What chroma adds to luma.
struct Chroma {
  int16_t r, g, b;
};

DYNPOOL_HOST_DEVICE Chroma chroma_of(const Factors& f, int u, int v) {
  const int16_t U = static_cast<int16_t>((u << f.up) - f.middle), V = static_cast<int16_t>((v << f.up) - f.middle);
  return {high_half(V, f.rv), static_cast<int16_t>(high_half(U, f.gu) + high_half(V, f.gv)), high_half(U, f.bu)};
}
DYNPOOL_HOST_DEVICE int16_t luma_of(const Factors& f, int y) {
  return high_half(static_cast<int16_t>((y << f.up) - f.black), f.y);
}
DYNPOOL_HOST_DEVICE uint8_t sum_as_byte(int16_t luma, int16_t chroma) { return clipped(static_cast<int16_t>(luma + chroma)); }

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
