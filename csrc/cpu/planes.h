// Pooling of decoded frames (csrc/planes.h): lines of Y, U, V to lines of R, G, B bytes, and ψ and the sums by the loops
// that pool uint8 tensors.
#pragma once
#include "../planes.h"
#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int64_t kSpan = 512;       // samples of a line at a time

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
  alignas(64) int16_t r[kSpan], g[kSpan], b[kSpan];
};

#ifdef __AVX2__
// `fill_chroma` of bytes for whole vectors; returns how many samples those are.
inline int64_t chroma_vectors(const Factors& f, const uint8_t* u, const uint8_t* v, int64_t n, ChromaLine& line) {
  constexpr int64_t kWords = sizeof(Words) / 2;
  const Words middle = word(f.middle), rv = word(f.rv), gu = word(f.gu), gv = word(f.gv), bu = word(f.bu);
  int64_t i = 0;
  for (; i + kWords <= n; i += kWords) {
    const Words U = difference(shifted<3>(words_of(u + i)), middle), V = difference(shifted<3>(words_of(v + i)), middle);
    store_words(line.r + i, high_half(V, rv));
    store_words(line.g + i, sum(high_half(U, gu), high_half(V, gv)));
    store_words(line.b + i, high_half(U, bu));
  }
  return i;
}
#endif

template <class Sample, int step>
void fill_chroma(const Factors& f, const Sample* u, const Sample* v, int64_t n, ChromaLine& line) {
  int64_t i = 0;
#ifdef __AVX2__
  if constexpr (sizeof(Sample) == 1 && step == 1) i = chroma_vectors(f, u, v, n, line);
#endif
#pragma GCC ivdep
  for (; i < n; ++i) {
    const int16_t U = static_cast<int16_t>((u[i * step] << f.up) - f.middle);
    const int16_t V = static_cast<int16_t>((v[i * step] << f.up) - f.middle);
    line.r[i] = high_half(V, f.rv);
    line.g[i] = static_cast<int16_t>(high_half(U, f.gu) + high_half(V, f.gv));
    line.b[i] = high_half(U, f.bu);
  }
}

#ifdef __AVX2__
// `colour_line` of bytes with halved chroma for whole vectors; returns how many samples those are. Unpacking works within
// 128-bit lanes, on luma and chroma alike, and packing undoes it.
inline int64_t colour_vectors(const Factors& f, const uint8_t* Y, int64_t n, const ChromaLine& chroma, uint8_t* rgb) {
  constexpr int64_t kBytes = sizeof(Words);
  const Words factor = word(f.y), black = word(f.black);
  int64_t i = 0;
  for (; i + kBytes <= n; i += kBytes) {
    const Words luma = load_words(Y + i);
    const Words low = high_half(difference(shifted<3>(low_bytes(luma)), black), factor);
    const Words high = high_half(difference(shifted<3>(high_bytes(luma)), black), factor);
    const auto channel = [&](const int16_t* line, uint8_t* out) {
      const Words offset = load_words(line + i / 2);
      store_words(out + i, clipped(sum(low, twice_low(offset)), sum(high, twice_high(offset))));
    };
    channel(chroma.r, rgb);
    channel(chroma.g, rgb + kSpan);
    channel(chroma.b, rgb + 2 * kSpan);
  }
  return i;
}
#endif

// n luma samples to bytes R, G and B, kSpan apart; a chroma sample serves 1 << shift of them.
template <class Sample, int shift>
void colour_line(const Factors& f, const Sample* Y, int64_t n, const ChromaLine& chroma, uint8_t* rgb) {
  int64_t i = 0;
#ifdef __AVX2__
  if constexpr (sizeof(Sample) == 1 && shift == 1) i = colour_vectors(f, Y, n, chroma, rgb);
#endif
#pragma GCC ivdep
  for (; i < n; ++i) {
    const int16_t y = high_half(static_cast<int16_t>((Y[i] << f.up) - f.black), f.y);
    rgb[i] = clipped(static_cast<int16_t>(y + chroma.r[i >> shift]));
    rgb[i + kSpan] = clipped(static_cast<int16_t>(y + chroma.g[i >> shift]));
    rgb[i + 2 * kSpan] = clipped(static_cast<int16_t>(y + chroma.b[i >> shift]));
  }
}

// --- sums ----------------------------------------------------------------------------------------------------------

// A run of bytes of all frames joins what is pooled.
class PlanesPool {
 public:
  explicit PlanesPool(const PlanesParams& p) : p_(p), pixels_(new TilePixels<float>), local_(new float[p.K * kSpan]) {}

  // x[t]: the n bytes of frame t that stand at `offset` of the result.
  void add(const uint8_t* const* x, int64_t offset, int64_t n) {
    if (p_.largest) return add_largest(x, p_.largest + offset, n);
    for (int64_t k = 0; k < p_.K; ++k) {
      p_.nonlinearity == Nonlinearity::sqrt ? weigh<Nonlinearity::sqrt>(x, k, n)
                                            : weigh<Nonlinearity::identity>(x, k, n);
    }
    for (int64_t r = 0; r < p_.R; ++r)
      for (int64_t k = 0; k < p_.K; ++k)
        if (const double m = p_.mix[r * p_.K + k]) {
          const float* local = local_.get() + k * kSpan;
          p_.doubles ? add_row(static_cast<double*>(p_.sums[r]) + offset, local, m, n)
                     : add_row(static_cast<float*>(p_.sums[r]) + offset, local, static_cast<float>(m), n);
        }
  }

 private:
  template <Nonlinearity psi>
  void weigh(const uint8_t* const* x, int64_t k, int64_t n) {
    const float* a = p_.weights + k * p_.count;
    int64_t first = 0, end = p_.count;  // of a window not all frames count
    while (first < end && a[first] == 0) ++first;
    while (first < end && a[end - 1] == 0) --end;
    float* local = local_.get() + k * kSpan;
#ifdef __AVX512VBMI__
    static const RootTable roots;
    if constexpr (psi == Nonlinearity::sqrt)
      if (!p_.doubles) return roots.sum(local, x + first, a + first, end - first, n);
#endif
    clear(local, n);
    accumulate<psi, false>(local, Scattered<uint8_t>{x + first}, a + first, end - first, *pixels_, n);
  }
  template <class Sum>
  static void add_row(Sum* __restrict sum, const float* __restrict local, Sum m, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] += m * static_cast<Sum>(local[i]);
  }
  void add_largest(const uint8_t* const* x, uint8_t* largest, int64_t n) {
    for (int64_t t = 0; t < p_.count; ++t) {
      const uint8_t* __restrict frame = x[t];
      for (int64_t i = 0; i < n; ++i) largest[i] = largest[i] < frame[i] ? frame[i] : largest[i];
    }
  }

  const PlanesParams& p_;
  std::unique_ptr<TilePixels<float>> pixels_;
  std::unique_ptr<float[]> local_;  // [K, kSpan]
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
    for (int64_t row = from; row < to; ++row) {
      for (int64_t x0 = 0; x0 < plane.width; x0 += kSpan) {
        const uint8_t* x[kMaxFrames];
        const int64_t n = plane.width - x0 < kSpan ? plane.width - x0 : kSpan;
        for (int64_t t = 0; t < p.count; ++t) {
          const int64_t stride = p.strides[t * p.num_planes + i];
          x[t] = p.planes[t * p.num_planes + i] + row * stride + x0;
          if (row + 1 < to) prefetch(x[t] + stride, n);
        }
        pool.add(x, offset + row * plane.width + x0, n);
      }
    }
    line += plane.height;
    offset += plane.width * plane.height;
  }
}

// Lines of chroma [begin, end), each with the one or two lines of luma that it serves.
template <class Sample, int step, int shift>
void pool_colour(const PlanesParams& p, int64_t begin, int64_t end, PlanesPool& pool) {
  const Colour& c = *p.colour;
  const Factors factors(c);
  const int64_t width = p.plane[0].width, height = p.plane[0].height, lines = int64_t{1} << c.shift_y;
  const std::unique_ptr<uint8_t[]> rgb(new uint8_t[p.count * lines * 3 * kSpan]);
  ChromaLine chroma;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t y0 = row << c.shift_y, count = height - y0 < lines ? height - y0 : lines;
    for (int64_t x0 = 0; x0 < width; x0 += kSpan) {
      const int64_t n = width - x0 < kSpan ? width - x0 : kSpan;
      for (int64_t t = 0; t < p.count; ++t) {
        const auto line = [&](int plane, int64_t y) {
          return reinterpret_cast<const Sample*>(p.planes[3 * t + plane] + y * p.strides[3 * t + plane]);
        };
        const int64_t first = (x0 >> shift) * step, size = sizeof(Sample);
        if (row + 1 < end) {
          for (int64_t y = 0; y < lines; ++y) prefetch(line(0, y0 + lines + y) + x0, n * size);
          prefetch(line(1, row + 1) + first, (n >> shift) * step * size);
          prefetch(line(2, row + 1) + first, (n >> shift) * size);
        }
        fill_chroma<Sample, step>(factors, line(1, row) + first, line(2, row) + first, (n + shift) >> shift, chroma);
        for (int64_t y = 0; y < count; ++y)
          colour_line<Sample, shift>(factors, line(0, y0 + y) + x0, n, chroma, rgb.get() + (t * lines + y) * 3 * kSpan);
      }
      for (int64_t y = 0; y < count; ++y) {
        for (int64_t channel = 0; channel < 3; ++channel) {
          const uint8_t* x[kMaxFrames];
          for (int64_t t = 0; t < p.count; ++t) x[t] = rgb.get() + ((t * lines + y) * 3 + channel) * kSpan;
          pool.add(x, (channel * height + y0 + y) * width + x0, n);
        }
      }
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
