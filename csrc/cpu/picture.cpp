// Pictures of pooled values (csrc/picture.h).
#include "../picture.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "../pixel.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// out[i] = y[i] + chroma[i >> shift]
template <class T>
void add_chroma(const T* __restrict y, const T* __restrict chroma, int shift, int64_t n, T* __restrict out) {
  if (shift == 0) {
    for (int64_t i = 0; i < n; ++i) out[i] = y[i] + chroma[i];
    return;
  }
  for (int64_t i = 0; i < n / 2; ++i) {
    out[2 * i] = y[2 * i] + chroma[i];
    out[2 * i + 1] = y[2 * i + 1] + chroma[i];
  }
  if (n % 2) out[n - 1] = y[n - 1] + chroma[n / 2];
}

template <class T>
void make_rgb_of(const PlaneSums<T>& p) {
  const Colour& c = p.colour;
  const int64_t columns = (p.width + c.shift_x) >> c.shift_x, rows = (p.height + c.shift_y) >> c.shift_y;
  const int64_t size = p.width * p.height, step = c.chroma_step;
  const T *u = p.sums + size, *v = step == 2 ? u + 1 : u + rows * columns;
  const T y_factor = static_cast<T>(c.y), black = static_cast<T>(c.black) * p.total, middle = 128 * p.total;
  const T rv = static_cast<T>(c.rv), gu = static_cast<T>(c.gu), gv = static_cast<T>(c.gv), bu = static_cast<T>(c.bu);
  std::vector<T> luma(p.width), chroma(3 * columns);
  T *r = chroma.data(), *g = r + columns, *b = g + columns;
  for (int64_t line = 0; line < p.height; ++line) {
    const int64_t row = line >> c.shift_y, first = row * columns * step;
    if (row << c.shift_y == line) {
      for (int64_t i = 0; i < columns; ++i) {
        const T U = u[first + i * step] - middle, V = v[first + i * step] - middle;
        r[i] = rv * V;
        g[i] = gu * U + gv * V;
        b[i] = bu * U;
      }
    }
    const T* y = p.sums + line * p.width;
    for (int64_t i = 0; i < p.width; ++i) luma[i] = (y[i] - black) * y_factor;
    for (int channel = 0; channel < 3; ++channel) {
      T* out = p.rgb + channel * size + line * p.width;
      add_chroma(luma.data(), chroma.data() + channel * columns, c.shift_x, p.width, out);
    }
  }
}

uint8_t stretched(float x, float low, float span) {
  return static_cast<uint8_t>(static_cast<int>(std::rint((x - low) / span * 255)));
}

void interleave(const Stretch& s, float low, float span) {
  constexpr int64_t kBlock = 256;
  uint8_t planes[3][kBlock];
  for (int64_t first = 0; first < s.pixels; first += kBlock) {
    const int64_t n = std::min(kBlock, s.pixels - first);
    for (int64_t c = 0; c < 3; ++c) {
      const float* x = s.x + c * s.pixels + first;
      for (int64_t i = 0; i < n; ++i) planes[c][i] = stretched(x[i], low, span);
    }
    uint8_t* __restrict out = s.out + 3 * first;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t c = 0; c < 3; ++c) out[3 * i + c] = planes[c][i];
  }
}

}  // namespace

void make_rgb(const PlaneSums<float>& p) { make_rgb_of(p); }
void make_rgb(const PlaneSums<double>& p) { make_rgb_of(p); }

bool stretch(const Stretch& s) {
  const float* x = s.x;
  uint8_t* out = s.out;
  const int64_t n = s.channels * s.pixels;
  constexpr int64_t kLanes = 64;  // independent, so that they may be vectors
  float low[kLanes], high[kLanes], wrong[kLanes];
  for (int64_t k = 0; k < kLanes; ++k) {
    low[k] = high[k] = x[0];
    wrong[k] = 0;
  }
  for (int64_t i = 0; i < n; i += kLanes) {
    const float* from = n - i < kLanes ? x + (n < kLanes ? 0 : n - kLanes) : x + i;
    const int64_t count = n < kLanes ? n : kLanes;
    for (int64_t k = 0; k < count; ++k) {
      low[k] = from[k] < low[k] ? from[k] : low[k];
      high[k] = from[k] > high[k] ? from[k] : high[k];
      wrong[k] += from[k] - from[k];  // NaN of NaN and of infinity
    }
  }
  for (int64_t k = 1; k < kLanes; ++k) {
    low[0] = low[k] < low[0] ? low[k] : low[0];
    high[0] = high[k] > high[0] ? high[k] : high[0];
    wrong[0] += wrong[k];
  }
  const float least = low[0], span = high[0] - least;
  if (!std::isfinite(span + wrong[0]) || span <= s.least_span) return false;
  if (s.interleaved)
    interleave(s, least, span);
  else
    for (int64_t i = 0; i < n; ++i) out[i] = stretched(x[i], least, span);
  return true;
}

}  // namespace DYNPOOL_ISA
}  // namespace dynpool
