// Pictures of pooled values (csrc/picture.h).
#include "../picture.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <memory>
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

// The lines of an image, from the first on.
template <class T>
class RgbLines {
 public:
  explicit RgbLines(const PlaneSums<T>& p)
      : p_(p), columns_((p.width + p.colour.shift_x) >> p.colour.shift_x), luma_(p.width), chroma_(3 * columns_) {}

  void write(int64_t line, T* const (&rgb)[3]) {
    const Colour& c = p_.colour;
    const int64_t row = line >> c.shift_y;
    if (row << c.shift_y == line) weigh_chroma(row);
    const T* y = p_.sums + line * p_.width;
    const T factor = static_cast<T>(c.y), black = static_cast<T>(c.black) * p_.total;
    for (int64_t i = 0; i < p_.width; ++i) luma_[i] = (y[i] - black) * factor;
    for (int k = 0; k < 3; ++k) add_chroma(luma_.data(), chroma_.data() + k * columns_, c.shift_x, p_.width, rgb[k]);
  }

 private:
  void weigh_chroma(int64_t row) {
    const Colour& c = p_.colour;
    const int64_t rows = (p_.height + c.shift_y) >> c.shift_y, step = c.chroma_step;
    const T *planes = p_.sums + p_.width * p_.height, *u = planes + row * columns_ * step;
    const T* v = step == 2 ? u + 1 : u + rows * columns_;
    const T rv = static_cast<T>(c.rv), gu = static_cast<T>(c.gu), gv = static_cast<T>(c.gv), bu = static_cast<T>(c.bu);
    const T middle = 128 * p_.total;
    T *r = chroma_.data(), *g = r + columns_, *b = g + columns_;
    for (int64_t i = 0; i < columns_; ++i) {
      const T U = u[i * step] - middle, V = v[i * step] - middle;
      r[i] = rv * V;
      g[i] = gu * U + gv * V;
      b[i] = bu * U;
    }
  }

  const PlaneSums<T>& p_;
  const int64_t columns_;
  std::vector<T> luma_, chroma_;
};

template <class T>
void make_rgb_of(const PlaneSums<T>& p) {
  RgbLines<T> lines(p);
  const int64_t size = p.width * p.height;
  for (int64_t line = 0; line < p.height; ++line) {
    T* const first = p.rgb + line * p.width;
    lines.write(line, {first, first + size, first + 2 * size});
  }
}

// --- from [min, max] to [0, 255] ------------------------------------------------------------------------------------

// Images, some pixels of all channels at a time.
class Values {
 public:
  explicit Values(const Stretch& s) : x_(s.x), channels_(s.channels), pixels_(s.pixels) {}

  template <class Use>  // use(first, n, channel, n values)
  void each(const Use& use) {
    constexpr int64_t kAtOnce = 512;
    for (int64_t first = 0; first < pixels_; first += kAtOnce)
      for (int64_t c = 0; c < channels_; ++c)
        use(first, std::min(kAtOnce, pixels_ - first), c, x_ + c * pixels_ + first);
  }

 private:
  const float* x_;
  const int64_t channels_, pixels_;
};

class RgbOfSums {
 public:
  explicit RgbOfSums(const PlaneSums<float>& p) : lines_(p), width_(p.width), height_(p.height), rgb_(3 * width_) {}

  template <class Use>  // use(first, n, channel, n values)
  void each(const Use& use) {
    for (int64_t line = 0; line < height_; ++line) {
      lines_.write(line, {rgb_.data(), rgb_.data() + width_, rgb_.data() + 2 * width_});
      for (int64_t c = 0; c < 3; ++c) use(line * width_, width_, c, rgb_.data() + c * width_);
    }
  }

 private:
  RgbLines<float> lines_;
  const int64_t width_, height_;
  std::vector<float> rgb_;
};

void interleave(const uint8_t* __restrict planes, int64_t n, uint8_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i)
    for (int64_t c = 0; c < 3; ++c) out[3 * i + c] = planes[c * n + i];
}

class Range {
 public:
  void add(const float* x, int64_t n) {
    for (int64_t i = 0; i + kLanes <= n; i += kLanes) add_lanes(x + i, kLanes);
    n < kLanes ? add_lanes(x, n) : add_lanes(x + n - kLanes, kLanes);
  }
  float low() const { return *std::min_element(low_.begin(), low_.end()); }
  // NaN if any value is not finite.
  float span() const {
    return *std::max_element(high_.begin(), high_.end()) - low() + std::accumulate(wrong_.begin(), wrong_.end(), 0.f);
  }

 private:
  static constexpr int64_t kLanes = 64;  // independent, so that they may be vectors
  using Lanes = std::array<float, kLanes>;

  void add_lanes(const float* x, int64_t n) {
    for (int64_t k = 0; k < n; ++k) {
      low_[k] = x[k] < low_[k] ? x[k] : low_[k];
      high_[k] = x[k] > high_[k] ? x[k] : high_[k];
      wrong_[k] += x[k] - x[k];  // NaN of NaN and of infinity
    }
  }
  static Lanes filled(float value) {
    Lanes lanes;
    lanes.fill(value);
    return lanes;
  }

  Lanes low_ = filled(INFINITY), high_ = filled(-INFINITY), wrong_ = filled(0);
};

// A vector division takes 16 cycles; a product with the reciprocal, and with what that leaves, the same to the bit, 3.
template <bool divides>
void write_levels(const float* __restrict x, int64_t n, float low, float span, uint8_t* __restrict out) {
  const float inverse = 1 / span;
  for (int64_t i = 0; i < n; ++i) {
    const float above = x[i] - low, near = above * inverse;
    const float share = divides ? above / span : std::fma(std::fma(-near, span, above), inverse, near);
    out[i] = static_cast<uint8_t>(static_cast<int>(std::rint(share * 255)));
  }
}

bool divides([[maybe_unused]] float span) {
#ifdef __FMA__
  return span < 1e-30f || span > 1e30f;  // where a reciprocal or what is left might not be normal
#else
  return true;
#endif
}

template <class Image>
bool stretch_image(Image image, const Stretch& s) {
  Range range;
  image.each([&](int64_t, int64_t n, int64_t, const float* x) { range.add(x, n); });
  const float low = range.low(), span = range.span();
  if (!std::isfinite(span) || span <= s.least_span) return false;
  const auto levels = divides(span) ? write_levels<true> : write_levels<false>;
  std::unique_ptr<uint8_t[]> planes;
  int64_t room = 0;
  image.each([&](int64_t first, int64_t n, int64_t c, const float* x) {
    if (!s.interleaved) return levels(x, n, low, span, s.out + c * s.pixels + first);
    if (n > room) planes.reset(new uint8_t[3 * (room = n)]);
    levels(x, n, low, span, planes.get() + c * n);
    if (c == 2) interleave(planes.get(), n, s.out + 3 * first);
  });
  return true;
}

}  // namespace

void make_rgb(const PlaneSums<float>& p) { make_rgb_of(p); }
void make_rgb(const PlaneSums<double>& p) { make_rgb_of(p); }

bool stretch(const Stretch& s) {
  return s.sums ? stretch_image(RgbOfSums(*s.sums), s) : stretch_image(Values(s), s);
}

}  // namespace DYNPOOL_ISA
}  // namespace dynpool
