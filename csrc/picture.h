// From pooled values to pictures.
#pragma once
#include <cstdint>

#include "planes.h"

namespace dynpool {

// The image [3, height, width] of weighted sums of Y, U and V, one plane behind the other, whose weights add up to
// `total`. T: float or double.
template <class T>
struct PlaneSums {
  Colour colour;
  int64_t width = 0, height = 0;
  const T* sums = nullptr;
  T total = 0;
  T* rgb = nullptr;
};

namespace cpu {
void make_rgb(const PlaneSums<float>& p);
void make_rgb(const PlaneSums<double>& p);

// out[i] = 255 (x[i] - low) / (high - low), rounded to nearest, ties to even. False, and nothing written, unless all
// differences are finite and high - low > least_span ≥ 0.
bool stretch(const float* x, int64_t n, float least_span, uint8_t* out);
}  // namespace cpu

}  // namespace dynpool
