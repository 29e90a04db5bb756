// From pooled values to pictures.
#pragma once
#include <cstdint>

#include "planes.h"

namespace dynpool {

// The image [3, height, width] of weighted sums of Y, U and V, one plane after the other, whose weights add up to
// `total`. T: float or double.
template <class T>
struct PlaneSums {
  Colour colour;
  int64_t width = 0, height = 0;
  const T* sums = nullptr;
  T total = 0;
  T* rgb = nullptr;
};

// x [channels, pixels] -> out [channels, pixels] or, of three channels that are to be interleaved, [pixels, channels]:
// 255 (x - low) / (high - low), rounded to nearest, ties to even. False, and nothing written, unless all differences are
// finite and high - low > least_span ≥ 0.
struct Stretch {
  const float* x = nullptr;
  const PlaneSums<float>* sums = nullptr;  // instead of x, which is made of them line by line and never written
  int64_t channels = 0, pixels = 0;
  float least_span = 0;
  bool interleaved = false;
  uint8_t* out = nullptr;
};

namespace cpu {
void make_rgb(const PlaneSums<float>& p);
void make_rgb(const PlaneSums<double>& p);
bool stretch(const Stretch& s);
}  // namespace cpu

}  // namespace dynpool
