// CPU kernels: plain loops for the compiler to vectorise, compiled once for each instruction set (DYNPOOL_ISA).
//
// A task is a tile: up to kTile elements of one inner row. Its accumulators stay in the first-level cache while the
// frames stream past, several at a time, so that a frame is read once and an output written once.
#pragma once
#include <memory>

#include "../pixel.h"
#include "../temporal_pool.h"
#include "lookup.h"
#include "rows.h"
#include "tasks.h"
#include "transpose.h"
#include "vectors.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int kFrames = 16;  // frames summed between a load and a store of the accumulators
constexpr int64_t kPart = 256;  // pixels of a tile at a time, where rows share frames

// Pixels of a tile: mean and 1/std of each element, filled only where a kernel asks for them, or ψ(z) by table.
template <class Acc>
struct TilePixels {
  Acc mean[kTile], inverse_std[kTile];
  const LookupTable* table = nullptr;  // sums are then in the table's lane order

  void fill(const TemporalPoolParams& p, const Row& row, int64_t begin, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const Normalization<Acc> c = normalization_of<Acc>(p, channel_of(p, row, begin + i));
      mean[i] = c.mean;
      inverse_std[i] = c.inverse_std;
    }
  }
};

template <class Acc, bool normalized, class X>
inline __attribute__((always_inline)) Acc normalize(X x, const TilePixels<Acc>& pixels, int64_t i) {
  if constexpr (normalized) return (load(x) - pixels.mean[i]) * pixels.inverse_std[i];
  return load(x);
}

// Where frames lie: at equal distances, or each anywhere.
template <class X>
struct Strided {
  const X* x;
  int64_t stride;
  const X* operator[](int64_t t) const { return x + t * stride; }
  Strided from(int64_t t) const { return {x + t * stride, stride}; }
};
template <class X>
struct Scattered {
  const X* const* x;
  const X* operator[](int64_t t) const { return x[t]; }
  Scattered from(int64_t t) const { return {x + t}; }
};

// Zeros for n elements, in whole blocks: a table's lane order fills the last one.
template <class Acc>
void clear(Acc* acc, int64_t n) {
  for (int64_t i = 0; i < (n + kBlock - 1) / kBlock * kBlock; ++i) acc[i] = 0;
}

template <Nonlinearity psi, class X>
inline __attribute__((always_inline)) auto psi_vector(const X* x) {
  if constexpr (psi == Nonlinearity::identity) return floats_of(x);
  else return signed_root<X>(floats_of(x));
}

// acc[i] += Σ_u a[u] ψ(z[u, i]) for the frames u = U….
template <Nonlinearity psi, bool normalized, class Acc, class Frames, int... U>
void add_frames(Acc* __restrict acc, const Frames& x, const Acc* a, const TilePixels<Acc>& pixels, int64_t n,
                std::integer_sequence<int, U...>) {
  using X = std::decay_t<decltype(*x[0])>;
  const X* const frame[] = {x[U]...};
  const Acc weight[] = {a[U]...};
  int64_t i = 0;
  if constexpr (has_vectors<X, psi> && !normalized) {
    for (; i + kVector <= n; i += kVector) {
      Floats sum;
      memcpy(&sum, acc + i, sizeof(sum));
      ((sum += weight[U] * psi_vector<psi>(frame[U] + i)), ...);
      memcpy(acc + i, &sum, sizeof(sum));
    }
  }
#pragma GCC ivdep
  for (; i < n; ++i) {
    Acc sum = acc[i];
    ((sum += weight[U] * apply_psi<psi>(normalize<Acc, normalized>(frame[U][i], pixels, i))), ...);
    acc[i] = sum;
  }
}

// add(`rest` frames), of which there are 1 + one of `lengths`, or none.
template <class Add, int... lengths>
inline __attribute__((always_inline)) void add_rest(int64_t rest, const Add& add, std::integer_sequence<int, lengths...>) {
  ((rest == 1 + lengths ? add(std::make_integer_sequence<int, 1 + lengths>()) : void()), ...);
}

// acc[i] += Σ_{t < count} a[t] ψ(z[t, i])
template <Nonlinearity psi, bool normalized, class Acc, class Frames>
void accumulate(Acc* acc, const Frames& x, const Acc* a, int64_t count, const TilePixels<Acc>& pixels, int64_t n) {
  if constexpr (looks_up<std::decay_t<decltype(*x[0])>, psi>)
    if (pixels.table) return accumulate_by_table(acc, x, a, count, *pixels.table, n);
  int64_t t = 0;
  const auto add = [&](auto frames) {
    for (; t + static_cast<int64_t>(frames.size()) <= count; t += frames.size())
      add_frames<psi, normalized>(acc, x.from(t), a + t, pixels, n, frames);
  };
  add(std::make_integer_sequence<int, kFrames>());
  if constexpr (psi == Nonlinearity::identity && !normalized) {  // the end in one pass: windows end anywhere in a block
    add_rest(count - t, add, std::make_integer_sequence<int, kFrames - 1>());
  } else {
    add(std::make_integer_sequence<int, kFrames / 2>());  // windows are often of ten
    add(std::make_integer_sequence<int, 2>());
    add(std::make_integer_sequence<int, 1>());
  }
}

// Elements from row to row of a tile's buffers: whole blocks, and a cache line more, since rows a power of two apart would
// share the few places that a cache has for them.
template <class X>
int64_t row_pitch(const Tasks& tasks) {
  const int64_t longest = tasks.inner < tasks.length ? tasks.inner : tasks.length;
  return (longest + kBlock - 1) / kBlock * kBlock + 64 / static_cast<int64_t>(sizeof(X));
}

// A tile's frames with unit stride: the tensor itself, or copies of kFrames frames at a time.
template <class X>
struct TileFrames {
  const X* x;  // element 0 of the tile in frame 0
  int64_t frame_stride, element_stride, n;
  X* packed;  // [frames of a block, pitch], used where element_stride is not 1
  int64_t pitch;

  const X* block(int64_t t, int64_t frames, int64_t* stride) const {
    if (element_stride == 1) {
      *stride = frame_stride;
      return x + t * frame_stride;
    }
    pack(packed, pitch, x + t * frame_stride, frame_stride, element_stride, frames, n);
    *stride = pitch;
    return packed;
  }
  int64_t block_length(int64_t count) const {
    return element_stride == 1 || count < kFrames ? count : kFrames;
  }
};

// Σ_i g[i] ψ(z[i])
template <Nonlinearity psi, bool normalized, class Acc, class X>
Acc dot(const Acc* g, const X* x, const TilePixels<Acc>& pixels, int64_t n) {
  Acc sum = 0;
  int64_t done = 0;
  if constexpr (has_vectors<X, psi> && !normalized) {
    constexpr int64_t kSums = 4;  // or each addition waits for the one before
    Floats sums[kSums] = {};
    for (; done + kSums * kVector <= n; done += kSums * kVector) {
      for (int64_t k = 0; k < kSums; ++k) {
        Floats factor;
        memcpy(&factor, g + done + k * kVector, sizeof(factor));
        sums[k] += factor * psi_vector<psi>(x + done + k * kVector);
      }
    }
    const Floats all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float lanes[kVector];
    memcpy(lanes, &all, sizeof(lanes));
    for (const float lane : lanes) sum += lane;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = done; i < n; ++i) sum += g[i] * apply_psi<psi>(normalize<Acc, normalized>(x[i], pixels, i));
  return sum;
}

#ifdef __AVX512F__
// acc[i] += Σ_{t < count} a[t] x[i stride + t], of 16 pixels at a time.
template <class X>
void add_dots_across(float* acc, const X* x, int64_t stride, const float* a, int64_t count, int64_t n) {
  const int rest = static_cast<int>(count % kVector);
  for (int64_t i = 0; i < n; i += kVector) {
    const int64_t pixels = n - i < kVector ? n - i : kVector;
    Floats sums[kVector] = {};
    int64_t t = 0;
    for (; t + kVector <= count; t += kVector)
      for (int k = 0; k < kVector; ++k)
        sums[k] += floats_of(a + t) * floats_of(x + (i + (k < pixels ? k : 0)) * stride + t);
    for (int k = 0; rest && k < kVector; ++k)
      sums[k] += floats_of(a + t, rest) * floats_of(x + (i + (k < pixels ? k : 0)) * stride + t, rest);
    const Floats all = lane_sums(sums);
    const __mmask16 inside = static_cast<__mmask16>((1 << pixels) - 1);
    _mm512_mask_storeu_ps(acc + i, inside, _mm512_maskz_loadu_ps(inside, acc + i) + all);
  }
}
#endif

// Whether a pixel's frames lie together, and are enough for whole vectors.
template <class X, Nonlinearity psi, bool normalized>
bool lie_across(int64_t frame_stride, int64_t element_stride, int64_t count) {
  constexpr int64_t kEnough = kVector == 16 ? 8 : sizeof(X) < 4 ? 64 : 16;
  return psi == Nonlinearity::identity && !normalized && frame_stride == 1 && element_stride != 1 && count >= kEnough;
}

template <Nonlinearity psi, bool normalized, class Acc, class X>
void accumulate_band(Acc* acc, const TileFrames<X>& frames, Band band, const Acc* a, const TilePixels<Acc>& pixels) {
  if (lie_across<X, psi, normalized>(frames.frame_stride, frames.element_stride, band.count)) {
    const X* x = frames.x + band.first;
#ifdef __AVX512F__
    if constexpr (std::is_same<Acc, float>::value)
      return add_dots_across(acc, x, frames.element_stride, a, band.count, frames.n);
#endif
    for (int64_t i = 0; i < frames.n; ++i, x += frames.element_stride)
      acc[i] += dot<psi, normalized>(a, x, pixels, band.count);
    return;
  }
  for (int64_t k = 0; k < band.count;) {
    const int64_t length = frames.block_length(band.count - k);
    int64_t stride;
    const X* x = frames.block(band.first + k, length, &stride);
    accumulate<psi, normalized>(acc, Strided<X>{x, stride}, a + k, length, pixels, frames.n);
    k += length;
  }
}

// ψ(z[i]) of a frame.
template <Nonlinearity psi, bool normalized, class Acc, class X>
void fill_psi(Acc* __restrict psi_frame, const X* __restrict x, const TilePixels<Acc>& pixels, int64_t n) {
  if constexpr (looks_up<X, psi>)
    if (pixels.table) return look_frame_up(psi_frame, x, *pixels.table, n);
  int64_t done = 0;
  if constexpr (has_vectors<X, psi> && !normalized) {
    for (; done + kVector <= n; done += kVector) {
      const Floats values = psi_vector<psi>(x + done);
      memcpy(psi_frame + done, &values, sizeof(values));
    }
  }
#pragma GCC ivdep
  for (int64_t i = done; i < n; ++i) psi_frame[i] = apply_psi<psi>(normalize<Acc, normalized>(x[i], pixels, i));
}

// Sums of kTogether rows that weigh the same frames: a vector of frames is read once for all of them, whose sums stay in
// registers. Where the compiler's loops are not as good.
constexpr int kTogether = 4;

template <class X>
constexpr bool sums_together = kVector > 1 && (std::is_same<X, float>::value || has_vectors<X, Nonlinearity::identity>);

template <int vectors, class X>
inline __attribute__((always_inline)) void add_vectors(float* const* sums, const Strided<X>& x, const float* const* a,
                                                       int64_t step, int64_t count, int64_t i) {
  Floats sum[kTogether][vectors];
  for (int r = 0; r < kTogether; ++r)
    for (int v = 0; v < vectors; ++v) memcpy(&sum[r][v], sums[r] + i + v * kVector, sizeof(Floats));
  for (int64_t u = 0; u < count; ++u) {
    Floats values[vectors];
    for (int v = 0; v < vectors; ++v) values[v] = floats_of(x[u] + i + v * kVector);
    for (int r = 0; r < kTogether; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] += a[r][u * step] * values[v];
  }
  for (int r = 0; r < kTogether; ++r)
    for (int v = 0; v < vectors; ++v) memcpy(sums[r] + i + v * kVector, &sum[r][v], sizeof(Floats));
}

// sums[r][i] += Σ_{u < count} a[r][u step] x[u, i]
template <class X>
void add_together(float* const* sums, const Strided<X>& x, const float* const* a, int64_t step, int64_t count, int64_t n) {
  constexpr int kVectors = kVector == 16 ? 4 : 2;  // as many sums as there are registers for
  int64_t i = 0;
  for (; i + kVectors * kVector <= n; i += kVectors * kVector) add_vectors<kVectors>(sums, x, a, step, count, i);
  for (; i + kVector <= n; i += kVector) add_vectors<1>(sums, x, a, step, count, i);
  for (; i < n; ++i)
    for (int r = 0; r < kTogether; ++r)
      for (int64_t u = 0; u < count; ++u) sums[r][i] += a[r][u * step] * load(x[u][i]);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
