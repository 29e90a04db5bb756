// Pooling of decoded frames (csrc/planes.h): lines of Y, U, V to lines of R, G, B bytes, and ψ and the sums by the loops
// that pool uint8 tensors.
#pragma once
#include <algorithm>
#include <vector>

#include "../planes.h"
#include "byte_sums.h"
#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

// Samples of a line at a time. Sixteen frames of two lines as RGB fit the first-level cache.
constexpr int64_t kSpan = 1024, kColourSpan = 320;
constexpr int64_t kMostLines = 2;  // of luma beside one of chroma

// A line of `width` samples in spans of like length.
int64_t span_of(int64_t width, int64_t most) {
  const int64_t spans = (width + most - 1) / most;
  return ((width + spans - 1) / spans + kBlock - 1) / kBlock * kBlock;
}

// --- colour --------------------------------------------------------------------------------------------------------

// High halves of products of 16 bits, (sample - black) << up by a factor of 13 bits behind the point: to the bit what
// FFmpeg's swscale makes of yuv420p, so that a file and its RGB frames pool to the same image.
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

// What the chroma samples of a line add to luma.
struct ChromaLine {
  int16_t r[kColourSpan], g[kColourSpan], b[kColourSpan];
};

template <class Sample, int step>
void fill_chroma(const Factors& f, const Sample* u, const Sample* v, int64_t n, ChromaLine& line) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const int16_t U = static_cast<int16_t>((u[i * step] << f.up) - f.middle);
    const int16_t V = static_cast<int16_t>((v[i * step] << f.up) - f.middle);
    line.r[i] = high_half(V, f.rv);
    line.g[i] = static_cast<int16_t>(high_half(U, f.gu) + high_half(V, f.gv));
    line.b[i] = high_half(U, f.bu);
  }
}

// n luma samples to bytes R, G and B, `pitch` apart; a chroma sample serves 1 << shift of them.
template <class Sample, int shift>
void colour_line(const Factors& f, const Sample* Y, int64_t n, const ChromaLine& chroma, uint8_t* rgb, int64_t pitch) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const int16_t y = high_half(static_cast<int16_t>((Y[i] << f.up) - f.black), f.y);
    rgb[i] = clipped(static_cast<int16_t>(y + chroma.r[i >> shift]));
    rgb[i + pitch] = clipped(static_cast<int16_t>(y + chroma.g[i >> shift]));
    rgb[i + 2 * pitch] = clipped(static_cast<int16_t>(y + chroma.b[i >> shift]));
  }
}

#ifdef __AVX2__
inline uint16_t pair_of_bytes(int low, int high) { return static_cast<uint16_t>((low & 0xff) | (high & 0xff) << 8); }

// `colour_lines` of bytes with halved chroma for whole vectors; returns how many samples those are. Unpacking works within
// 128-bit lanes, on luma and chroma alike, and packing undoes it.
template <int lines>
inline __attribute__((always_inline)) int64_t colour_vectors(const Factors& f, const uint8_t* const* Y, const uint8_t* u,
                                                             const uint8_t* v, int64_t n, uint8_t* rgb, int64_t pitch) {
  constexpr int64_t kBytes = sizeof(Words);
  // 8 Y - 8 black and 8 U - 1024 as sums of two products of bytes.
  const Words one = word(0x0101), luma_factors = word(pair_of_bytes(8, -f.black));
  const Words middle = word(128 << 8), chroma_factors = word(pair_of_bytes(8, -8));
  const Words rv = word(f.rv), gu = word(f.gu), gv = word(f.gv), bu = word(f.bu);
  const Words factor = word(f.y);
  int64_t i = 0;
  for (; i + kBytes <= n; i += kBytes) {
    const Words U = byte_products(either(words_of(u + i / 2), middle), chroma_factors);
    const Words V = byte_products(either(words_of(v + i / 2), middle), chroma_factors);
    const Words r = high_half(V, rv), g = sum(high_half(U, gu), high_half(V, gv)), b = high_half(U, bu);
    const Words low[] = {twice_low(r), twice_low(g), twice_low(b)};
    const Words high[] = {twice_high(r), twice_high(g), twice_high(b)};
#pragma GCC unroll 2
    for (int y = 0; y < lines; ++y) {
      const Words luma = load_words(Y[y] + i);
      const Words y_low = high_half(byte_products(low_bytes(luma, one), luma_factors), factor);
      const Words y_high = high_half(byte_products(high_bytes(luma, one), luma_factors), factor);
#pragma GCC unroll 3
      for (int c = 0; c < 3; ++c)
        store_words(rgb + (3 * y + c) * pitch + i, clipped(sum(y_low, low[c]), sum(y_high, high[c])));
    }
  }
  return i;
}
#endif

// n samples of `lines` lines Y beside one of U and V, as bytes R, G, B of the first, R, G, B of the second.
template <class Sample, int step, int shift>
inline __attribute__((always_inline)) void colour_lines(const Factors& f, const Sample* const* Y, int64_t lines, const Sample* u, const Sample* v, int64_t n,
                  uint8_t* rgb, int64_t pitch) {
  int64_t i = 0;
#ifdef __AVX2__
  if constexpr (sizeof(Sample) == 1 && step == 1 && shift == 1)
    i = lines == 1 ? colour_vectors<1>(f, Y, u, v, n, rgb, pitch) : colour_vectors<2>(f, Y, u, v, n, rgb, pitch);
#endif
  if (i == n) return;
  ChromaLine chroma;
  fill_chroma<Sample, step>(f, u + (i >> shift) * step, v + (i >> shift) * step, (n - i + shift) >> shift, chroma);
  for (int64_t y = 0; y < lines; ++y)
    colour_line<Sample, shift>(f, Y[y] + i, n - i, chroma, rgb + 3 * y * pitch + i, pitch);
}

// --- sums ----------------------------------------------------------------------------------------------------------

// Bytes of all frames, in runs that are `pitch` apart and join what is pooled each at its own place.
struct Runs {
  const uint8_t* x[kMaxFrames];
  int64_t count, pitch, n;  // runs; whole blocks from one to the next; bytes of one
  int64_t offset[3 * kMostLines];

  int64_t bytes() const { return (count - 1) * pitch + n; }
};

class PlanesPool {
 public:
  explicit PlanesPool(const PlanesParams& p)
      : p_(p), pixels_(new TilePixels<float>), local_(new float[p.K * kLocal]) {
#ifdef DYNPOOL_BYTE_SUMS
    for (int64_t k = 0; !p.largest && k < p.K; ++k) digits_.emplace_back(p.weights + k * p.count, p.count);
#endif
  }

  void add(Runs& runs) {
    if (p_.largest) return add_largest(runs);
    p_.nonlinearity == Nonlinearity::sqrt ? weigh<Nonlinearity::sqrt>(runs) : weigh<Nonlinearity::identity>(runs);
  }

 private:
  static constexpr int64_t kLocal = std::max(kSpan, 3 * kMostLines * kColourSpan);

  template <Nonlinearity psi>
  void weigh(Runs& runs) {
#ifdef DYNPOOL_BYTE_SUMS
    if (!p_.mix) {
      for (int64_t t = p_.count; t % kQuad; ++t) runs.x[t] = runs.x[0];
      for (int64_t k = 0; k < p_.K; ++k)
        for (int64_t i = 0; i < runs.count; ++i)
          sum_bytes<psi>(static_cast<float*>(p_.sums[k]) + runs.offset[i], runs.x, i * runs.pitch, digits_[k], runs.n);
      return;
    }
#endif
    for (int64_t k = 0; k < p_.K; ++k) {
      const float* a = p_.weights + k * p_.count;
      int64_t first = 0, end = p_.count;  // of a window not all frames count
      while (first < end && a[first] == 0) ++first;
      while (first < end && a[end - 1] == 0) --end;
      float* local = local_.get() + k * kLocal;
      clear(local, runs.bytes());
      accumulate<psi, false>(local, Scattered<uint8_t>{runs.x + first}, a + first, end - first, *pixels_, runs.bytes());
      if (!p_.mix) add_runs(static_cast<float*>(p_.sums[k]), local, 1.f, runs);
    }
    for (int64_t r = 0; p_.mix && r < p_.R; ++r)
      for (int64_t k = 0; k < p_.K; ++k)
        if (const double m = p_.mix[r * p_.K + k])
          add_runs(static_cast<double*>(p_.sums[r]), local_.get() + k * kLocal, m, runs);
  }
  template <class Sum>
  static void add_runs(Sum* sum, const float* local, Sum m, const Runs& runs) {
    for (int64_t i = 0; i < runs.count; ++i) add_run(sum + runs.offset[i], local + i * runs.pitch, m, runs.n);
  }
  template <class Sum>
  static void add_run(Sum* __restrict sum, const float* __restrict local, Sum m, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] += m * static_cast<Sum>(local[i]);
  }
  void add_largest(const Runs& runs) {
    for (int64_t t = 0; t < p_.count; ++t) {
      for (int64_t r = 0; r < runs.count; ++r) {
        const uint8_t* __restrict frame = runs.x[t] + r * runs.pitch;
        uint8_t* __restrict largest = p_.largest + runs.offset[r];
        for (int64_t i = 0; i < runs.n; ++i) largest[i] = largest[i] < frame[i] ? frame[i] : largest[i];
      }
    }
  }

  const PlanesParams& p_;
  std::unique_ptr<TilePixels<float>> pixels_;
  std::unique_ptr<float[]> local_;  // [K, kLocal]
#ifdef DYNPOOL_BYTE_SUMS
  std::vector<DigitWeights> digits_;
#endif
};

// Lines of many frames are too short for the hardware to see a stream: what the next step reads is asked for here.
inline void prefetch(const void* line, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(line) + i);
}

// --- tasks ---------------------------------------------------------------------------------------------------------

// Lines [begin, end) of all planes, one plane after the other.
void pool_raw(const PlanesParams& p, int64_t begin, int64_t end, PlanesPool& pool) {
  int64_t line = 0, offset = 0;
  for (int i = 0; i < p.num_planes; ++i) {
    const Plane plane = p.plane[i];
    const int64_t from = begin > line ? begin - line : 0;
    const int64_t to = end - line < plane.height ? end - line : plane.height;
    const int64_t span = span_of(plane.width, kSpan);
    for (int64_t row = from; row < to; ++row) {
      for (int64_t x0 = 0; x0 < plane.width; x0 += span) {
        const int64_t n = plane.width - x0 < span ? plane.width - x0 : span;
        Runs runs{{}, 1, span, n, {offset + row * plane.width + x0}};
        for (int64_t t = 0; t < p.count; ++t) {
          const int64_t stride = p.strides[t * p.num_planes + i];
          runs.x[t] = p.planes[t * p.num_planes + i] + row * stride + x0;
          if (row + 1 < to) prefetch(runs.x[t] + stride, n);
        }
        pool.add(runs);
      }
    }
    line += plane.height;
    offset += plane.width * plane.height;
  }
}

// Lines of chroma [begin, end), each with the one or two lines of luma that it serves.
template <class Sample, int step, int shift>
void pool_colour(const PlanesParams& p, int64_t begin, int64_t end, PlanesPool& pool) {
  struct Lines {
    const Sample *y[kMostLines], *u, *v;
  };
  const Colour& c = *p.colour;
  const Factors factors(c);
  const int64_t width = p.plane[0].width, height = p.plane[0].height, lines = int64_t{1} << c.shift_y;
  const int64_t span = span_of(width, kColourSpan), size = 3 * lines * span;
  const std::unique_ptr<uint8_t[]> rgb(new uint8_t[p.count * size]());
  const auto lines_at = [&](int64_t t, int64_t row) {
    const auto line = [&](int plane, int64_t number) {
      return reinterpret_cast<const Sample*>(p.planes[3 * t + plane] + number * p.strides[3 * t + plane]);
    };
    return Lines{{line(0, row << c.shift_y), line(0, (row << c.shift_y) + lines - 1)}, line(1, row), line(2, row)};
  };
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y0 = row << c.shift_y, count = height - y0 < lines ? height - y0 : lines;
    Lines current[kMaxFrames];
    for (int64_t t = 0; t < p.count; ++t) current[t] = lines_at(t, row);
    for (int64_t x0 = 0; x0 < width; x0 += span) {
      const int64_t n = width - x0 < span ? width - x0 : span, chroma = (x0 >> shift) * step;
      Runs runs{{}, 3 * count, span, n, {}};
      for (int64_t i = 0; i < runs.count; ++i) runs.offset[i] = (i % 3 * height + y0 + i / 3) * width + x0;
      for (int64_t t = 0; t < p.count; ++t) {
        const Lines& l = current[t];
        const Sample* const Y[] = {l.y[0] + x0, l.y[1] + x0};
        uint8_t* out = rgb.get() + t * size;
        colour_lines<Sample, step, shift>(factors, Y, count, l.u + chroma, l.v + chroma, n, out, span);
        runs.x[t] = out;
      }
      pool.add(runs);
    }
    for (int64_t t = 0; row + 1 < end && t < p.count; ++t) {
      const Lines next = lines_at(t, row + 1);
      for (int64_t y = 0; y < lines; ++y) prefetch(next.y[y], width * sizeof(Sample));
      prefetch(next.u, (width >> shift) * step * sizeof(Sample));
      if (step == 1) prefetch(next.v, (width >> shift) * sizeof(Sample));
    }
  }
}

template <class Sample>
void pool_colour(const PlanesParams& p, int64_t begin, int64_t end, PlanesPool& pool) {
  const bool halved = p.colour->shift_x == 1;
  if (p.colour->chroma_step == 2) return (halved ? pool_colour<Sample, 2, 1> : pool_colour<Sample, 2, 0>)(p, begin, end, pool);
  (halved ? pool_colour<Sample, 1, 1> : pool_colour<Sample, 1, 0>)(p, begin, end, pool);
}

void planes_of(const PlanesParams& p, int64_t begin, int64_t end) {
  PlanesPool pool(p);
  if (!p.colour) return pool_raw(p, begin, end, pool);
  p.colour->depth == 8 ? pool_colour<uint8_t>(p, begin, end, pool) : pool_colour<uint16_t>(p, begin, end, pool);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
