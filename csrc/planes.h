// Weighted sums of ψ of decoded frames, straight from the planes that the decoder wrote.
//
//   sums[k][i] += Σ_{t < count} weights[k, t] ψ(x[t, i])                  float32
//
// (of weights to 2^-16 of the largest and roots to 2^-13, where the processor multiplies bytes: cpu/byte_sums.h)
//
// or, with `mix`, into sums to which these sums of a few frames, rounded to float32, are but terms,
//
//   sums[r][i] += Σ_k mix[r, k] Σ_{t < count} weights[k, t] ψ(x[t, i])    float64
//
// or, without weights, largest[i] = max(largest[i], max_t x[t, i]). x is
//
//   - with `colour`, the bytes R, G, B of a frame Y, U, V: i runs over [3, height, width], planes as one writes them;
//   - else the bytes of the planes themselves, one plane after the other, without the padding of their lines.
//
// A frame is converted line by line, in the first-level cache: nothing of its size is ever written. Chroma is taken from
// the nearest sample, of an interlaced frame that of the same field: R = y (Y - black) + rv V, G = … + gu U + gv V, B = … + bu U, each product rounded down, and clipped
// to 0 … 255.
#pragma once
#include <cstdint>

#include "temporal_pool.h"

namespace dynpool {

constexpr int kMaxPlanes = 3;
constexpr int64_t kMaxFrames = 32;  // of one call

struct Plane {
  int64_t width = 0, height = 0;  // bytes of a line; lines
};

struct Colour {
  int depth = 8;                    // bits of a sample, up to 11, which fills two bytes above 8
  int shift_x = 0, shift_y = 0;     // binary logarithms of the luma samples a chroma sample serves: 0 or 1
  int chroma_step = 1;              // samples from one of U to the next: 2 where U and V alternate
  int black = 16;                   // Y of black, at 8 bits
  double y = 1, rv = 0, gu = 0, gv = 0, bu = 0;  // at 8 bits
};

// The line of chroma, of so many, that a line of luma has where a line of chroma serves two: of the even lines of a frame
// that is interlaced and those of the odd ones, each is a picture of its own.
DYNPOOL_HOST_DEVICE int64_t chroma_line(int64_t y, bool interlaced, int64_t lines) {
  const int64_t line = interlaced ? y / 4 * 2 + y % 2 : y / 2;
  return line < lines ? line : line < 2 ? 0 : line - 2;
}

struct PlanesParams {
  int64_t count = 0;                        // frames
  uint32_t interlaced = 0;                  // with colour and shift_y: bit t of frame t
  const uint8_t* const* planes = nullptr;   // [count, num_planes]
  const int64_t* strides = nullptr;         // [count, num_planes]: bytes from line to line
  int num_planes = 1;                       // with colour 3: Y, U, V, of which U and V may share memory
  Plane plane[kMaxPlanes];                  // with colour plane[0] says width and height in samples
  const Colour* colour = nullptr;
  Nonlinearity nonlinearity = Nonlinearity::identity;

  int64_t K = 1, R = 1;
  const float* weights = nullptr;      // [K, count]
  const double* mix = nullptr;         // [R, K]
  void* const* sums = nullptr;         // [K] float, or with mix [R] double
  const int* fresh = nullptr;          // [K]: sums that hold nothing yet, and are written, not added to; not with mix
  uint8_t* largest = nullptr;          // instead of weights, mix and sums
};

// The planes of frames, one after the other, without the padding of their lines.
struct PackedPlanes {
  Colour colour;
  int64_t count = 0, width = 0, height = 0;  // frames, at most kMaxFrames where some are interlaced; samples
  uint32_t interlaced = 0;                   // where shift_y is 1: bit t of frame t
  const uint8_t* planes = nullptr;           // [count, bytes of a frame]
  uint8_t* rgb = nullptr;                    // [count, 3, height, width]

  int64_t sample_size() const { return colour.depth == 8 ? 1 : 2; }
  int64_t chroma_width() const { return (width + colour.shift_x) >> colour.shift_x; }
  int64_t chroma_height() const { return (height + colour.shift_y) >> colour.shift_y; }
  int64_t samples() const { return width * height + 2 * chroma_width() * chroma_height(); }
};

namespace cpu {
void pool_planes(const PlanesParams& p, int num_threads);
// Packs the planes of p, which are not to be colours, into `to` [count, bytes of a frame].
void pack_planes(const PlanesParams& p, uint8_t* to);
}

namespace cuda {
void make_rgb(const PackedPlanes& p, int device, void* stream);
}

}  // namespace dynpool
