// Pooling of decoded frames (csrc/planes.h): lines of Y, U, V to lines of R, G, B bytes (colour.h), and ψ and the sums by
// the loops that pool uint8 tensors.
#pragma once
#include <algorithm>
#include <vector>

#include "../planes.h"
#include "byte_sums.h"
#include "colour.h"
#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int64_t kSpan = 1024;  // bytes of a line at a time

// A line of `width` samples in spans of like length.
int64_t span_of(int64_t width, int64_t most) {
  const int64_t spans = (width + most - 1) / most;
  return ((width + spans - 1) / spans + kBlock - 1) / kBlock * kBlock;
}

// --- sums ----------------------------------------------------------------------------------------------------------

// Bytes of all frames, in runs that are `pitch` apart and join what is pooled each at its own place.
struct Runs {
  const uint8_t* x[kMaxFrames];
  int64_t count, pitch, n;  // runs; whole blocks from one to the next; bytes of one
  int64_t offset[3 * kMostLines];
  int64_t ahead = 0;  // bytes to what will be read next, if that is to be asked for

  int64_t bytes() const { return (count - 1) * pitch + n; }
};

class PlanesPool {
 public:
  explicit PlanesPool(const PlanesParams& p)
      : p_(p), pixels_(new TilePixels<float>), local_(new float[p.K * kLocal]) {
#ifdef DYNPOOL_BYTE_SUMS
    for (int64_t k = 0; !p.largest && k < p.K; ++k) digits_.emplace_back(p.weights + k * p.count, p.count);
    out_ = std::vector<float*>(p.K);
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
      for (int64_t i = 0; i < runs.count; ++i) {
        for (int64_t k = 0; k < p_.K; ++k) out_[k] = static_cast<float*>(p_.sums[k]) + runs.offset[i];
        if (p_.K == 1)
          sum_bytes<psi>(out_[0], p_.fresh && p_.fresh[0], runs.x, i * runs.pitch, digits_[0], runs.n, runs.ahead);
        else
          sum_bytes_of_rows<psi>(out_.data(), p_.fresh, runs.x, i * runs.pitch, digits_, runs.n, runs.ahead);
      }
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
      if (!p_.mix && p_.fresh && p_.fresh[k]) clear_runs(static_cast<float*>(p_.sums[k]), runs);
      if (!p_.mix) add_runs(static_cast<float*>(p_.sums[k]), local, 1.f, runs);
    }
    for (int64_t r = 0; p_.mix && r < p_.R; ++r)
      for (int64_t k = 0; k < p_.K; ++k)
        if (const double m = p_.mix[r * p_.K + k])
          add_runs(static_cast<double*>(p_.sums[r]), local_.get() + k * kLocal, m, runs);
  }
  static void clear_runs(float* sum, const Runs& runs) {
    for (int64_t i = 0; i < runs.count; ++i) std::fill_n(sum + runs.offset[i], runs.n, 0.f);
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
  std::vector<float*> out_;
#endif
};

// --- tasks ---------------------------------------------------------------------------------------------------------

// Lines [begin, end) of all planes, one plane after the other.
void pool_raw(const PlanesParams& p, int64_t begin, int64_t end, PlanesPool& pool) {
  int64_t line = 0, offset = 0;
  for (int i = 0; i < p.num_planes; ++i) {
    const Plane plane = p.plane[i];
    const int64_t from = begin > line ? begin - line : 0;
    const int64_t to = end - line < plane.height ? end - line : plane.height;
    const int64_t span = span_of(plane.width, kSpan);
    const int64_t* const strides = p.strides + i;
    // Short lines end before the hardware sees a stream.
    const int64_t ahead = plane.width <= kSpan ? strides[0] : 0;
    const uint8_t* lines[kMaxFrames];
    for (int64_t t = 0; t < p.count; ++t) {
      const int64_t j = t * p.num_planes;
      lines[t] = p.planes[j + i] + from * strides[j];
    }
    for (int64_t row = from; row < to; ++row) {
      for (int64_t x0 = 0; x0 < plane.width; x0 += span) {
        const int64_t n = plane.width - x0 < span ? plane.width - x0 : span;
        Runs runs{{}, 1, span, n, {offset + row * plane.width + x0}, ahead};
        for (int64_t t = 0; t < p.count; ++t) runs.x[t] = lines[t] + x0;
        pool.add(runs);
      }
      for (int64_t t = 0; t < p.count; ++t) lines[t] += strides[t * p.num_planes];
    }
    line += plane.height;
    offset += plane.width * plane.height;
  }
}

// Parts of lines, while others are converted, are too short for the hardware to see a stream: what the next line reads is
// asked for here.
inline void prefetch(const void* line, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(line) + i);
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
  const auto colour_fields = [&](int64_t t, const Sample* const* Y, int64_t y0, int64_t count, int64_t chroma, int64_t n,
                                 uint8_t* out) {
    for (int64_t y = 0; y < count; ++y) {
      const int64_t row = chroma_line(y0 + y, true, (height + 1) / 2);
      const Lines l = lines_at(t, row);
      colour_lines<Sample, step, shift>(factors, Y + y, 1, l.u + chroma, l.v + chroma, n, out + 3 * y * span, span);
    }
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
        if (p.interlaced >> t & 1) {
          colour_fields(t, Y, y0, count, chroma, n, out);
        } else {
          colour_lines<Sample, step, shift>(factors, Y, count, l.u + chroma, l.v + chroma, n, out, span);
        }
        runs.x[t] = out;
        if (row + 1 == end) continue;
        const Lines next = lines_at(t, row + 1);
        for (int64_t y = 0; y < lines; ++y) prefetch(next.y[y] + x0, n * sizeof(Sample));
        prefetch(next.u + chroma, (n >> shift) * step * sizeof(Sample));
        if (step == 1) prefetch(next.v + chroma, (n >> shift) * sizeof(Sample));
      }
      pool.add(runs);
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
