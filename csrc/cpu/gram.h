// Products of the frames of a clip, for exact rank pooling: ⟨ψ_s - c, ψ_t - c⟩, ⟨ψ_t - c, c⟩ and ‖c‖², where c is near
// their mean, since products of nearly equal frames would cancel in float; in double the mean itself is taken off. c is
// the mean of a few frames, or, where one of these is nothing like the others, of all.
//
// ψ of a tile's pixels, less c, is turned into panels [pixels, lanes] of as many frames as a vector has lanes: a product
// of kRows × 3 vectors of frames then needs neither sums over lanes nor more than 11 loads for 24 multiplications. The
// lower triangle only, up to panels; sums over kStep pixels, and of up to four of these, are float, over more double.
#pragma once
#include <memory>

#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int64_t kVectorBytes = 64, kRows = 8;
#elif defined(__AVX2__)
constexpr int64_t kVectorBytes = 32, kRows = 4;
#else
constexpr int64_t kVectorBytes = 16, kRows = 4;
#endif
constexpr int64_t kColumns = 3;  // panels; with kRows of sums each they fill the registers
constexpr int64_t kStep = 128;   // pixels of kColumns panels stay in a first-level cache

template <class Acc>
constexpr int64_t kLanes = kVectorBytes / sizeof(Acc);
template <class Acc>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};

// ψ of pixels i … i + V of a frame that has n of them, and 0 past its end.
template <Nonlinearity psi, bool normalized, class Acc, class X>
inline __attribute__((always_inline)) typename Lanes<Acc>::type load_pixels(const X* x, int64_t i, int64_t n,
                                                                            const TilePixels<Acc>& pixels) {
  constexpr int64_t V = kLanes<Acc>;
  typename Lanes<Acc>::type result = {};
  if constexpr (has_vectors<X, psi> && !normalized && V == kVector) {
    if (i + V <= n) {
      const Floats values = psi_vector<psi>(x + i);
      memcpy(&result, &values, sizeof(result));
      return result;
    }
  }
  Acc values[V] = {};
  if (i + V <= n) {
    for (int64_t lane = 0; lane < V; ++lane)
      values[lane] = apply_psi<psi>(normalize<Acc, normalized>(x[i + lane], pixels, i + lane));
  } else {
    for (int64_t lane = 0; i + lane < n; ++lane)
      values[lane] = apply_psi<psi>(normalize<Acc, normalized>(x[i + lane], pixels, i + lane));
  }
  memcpy(&result, values, sizeof(result));
  return result;
}

#ifdef __AVX512BW__

// make_panel of bytes, which are transposed before they are floats: 64 pixels of all frames at a time.
template <Nonlinearity psi>
void make_panel_of_bytes(float* panel, double* cross, const uint8_t* x, int64_t stride, int64_t count, const float* centre,
                         int64_t n, int64_t padded) {
  constexpr int64_t V = kLanes<float>;
  const auto present = static_cast<__mmask16>((1 << count) - 1);
  alignas(64) uint8_t pixels[V][64];
  __m512 sums[4] = {};
  for (int64_t p = 0; p < padded; p += 64) {
    Words rows[V];
    for (int64_t t = 0; t < V; ++t) rows[t] = t < count ? load_words(x + t * stride + p, n - p) : Words{};
    for (int stage = 0; stage < 4; ++stage) {  // within the 16 bytes of each lane
      Words shuffled[V];
      for (int64_t i = 0; i < V / 2; ++i) {
        shuffled[2 * i] = low_bytes(rows[i], rows[i + V / 2]);
        shuffled[2 * i + 1] = high_bytes(rows[i], rows[i + V / 2]);
      }
      for (int64_t i = 0; i < V; ++i) rows[i] = shuffled[i];
    }
    for (int64_t i = 0; i < V; ++i) store_words(pixels[i], rows[i]);
    for (int64_t lane = 0; lane < 4; ++lane) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < V; ++i) {
        const int64_t pixel = p + V * lane + i;
        const __m512 less = _mm512_set1_ps(centre[pixel]);
        const __m512 value = _mm512_maskz_sub_ps(present, psi_vector<psi>(pixels[i] + V * lane), less);
        _mm512_store_ps(panel + pixel * V, value);
        sums[i % 4] = _mm512_fmadd_ps(value, less, sums[i % 4]);
      }
    }
  }
  for (const __m512& sum : sums)
    for (int64_t t = 0; t < count; ++t) cross[t] += sum[t];
}

#endif

// panel [padded, V] = ψ of `count` frames less the centre, 0 after the n pixels and for missing frames;
// cross[t] += ⟨ψ_t - centre, centre⟩.
template <Nonlinearity psi, bool normalized, class Acc, class X>
void make_panel(Acc* panel, double* cross, const X* x, int64_t stride, int64_t count, const Acc* centre,
                const TilePixels<Acc>& pixels, int64_t n, int64_t padded) {
#ifdef __AVX512BW__
  if constexpr (std::is_same<X, uint8_t>::value && !normalized)
    return make_panel_of_bytes<psi>(panel, cross, x, stride, count, centre, n, padded);
#endif
  using Vector = typename Lanes<Acc>::type;
  constexpr int64_t V = kLanes<Acc>, kChains = V < 4 ? V : 4;
  Vector sums[kChains] = {};
  for (int64_t p = 0; p < padded; p += V) {
    const Vector less = *reinterpret_cast<const Vector*>(centre + p);
    Vector rows[V] = {};
    if (count == V) {
      for (int64_t t = 0; t < V; ++t) rows[t] = load_pixels<psi, normalized>(x + t * stride, p, n, pixels) - less;
    } else {
      for (int64_t t = 0; t < count; ++t) rows[t] = load_pixels<psi, normalized>(x + t * stride, p, n, pixels) - less;
    }
    transpose_rows(rows);
    for (int64_t i = 0; i < V; ++i) {
      *reinterpret_cast<Vector*>(panel + (p + i) * V) = rows[i];
      sums[i % kChains] += rows[i] * centre[p + i];
    }
  }
  for (int64_t chain = 0; chain < kChains; ++chain)
    for (int64_t t = 0; t < count; ++t) cross[t] += sums[chain][t];
}

template <class Sum, class Vector>
inline __attribute__((always_inline)) void add_to(Sum* sums, Vector more) {
  if constexpr (sizeof(Sum) == sizeof(more[0])) {
    Vector old;
    memcpy(&old, sums, sizeof(old));
    old += more;
    memcpy(sums, &old, sizeof(old));
  } else {
    for (size_t lane = 0; lane < sizeof(more) / sizeof(more[0]); ++lane) sums[lane] += more[lane];
  }
}

// K[i, j] += Σ_p a[p, i] b[p, j] for R frames i of a panel and the frames j of C panels that follow one another.
template <int64_t R, int64_t C, class Sum, class Acc>
void multiply_panels(Sum* K, int64_t pitch, const Acc* a, const Acc* b, int64_t panel_pixels) {
  using Vector = typename Lanes<Acc>::type;
  constexpr int64_t V = kLanes<Acc>;
  Vector sums[R][C] = {};
  for (int64_t p = 0; p < kStep; ++p) {
    Vector y[C];
    for (int64_t c = 0; c < C; ++c) y[c] = *reinterpret_cast<const Vector*>(b + (c * panel_pixels + p) * V);
    for (int64_t i = 0; i < R; ++i)
      for (int64_t c = 0; c < C; ++c) sums[i][c] += a[p * V + i] * y[c];
  }
  for (int64_t i = 0; i < R; ++i)
    for (int64_t c = 0; c < C; ++c) add_to(K + i * pitch + c * V, sums[i][c]);
}

template <int64_t R, class Sum, class Acc>
void multiply_panels(int64_t columns, Sum* K, int64_t pitch, const Acc* a, const Acc* b, int64_t panel_pixels) {
  static_assert(kColumns == 3);
  switch (columns) {
    case 1: return multiply_panels<R, 1>(K, pitch, a, b, panel_pixels);
    case 2: return multiply_panels<R, 2>(K, pitch, a, b, panel_pixels);
    default: return multiply_panels<R, 3>(K, pitch, a, b, panel_pixels);
  }
}

// Panels [panels, panel_pixels, V] of T frames with one another over kStep pixels: j of at most kColumns panels, i of
// those and all later ones.
template <class Sum, class Acc>
void multiply_step(Sum* K, int64_t pitch, const Acc* panels, int64_t panel_pixels, int64_t T) {
  constexpr int64_t V = kLanes<Acc>, R = kRows < V ? kRows : V;
  for (int64_t first = 0; first * V < T; first += kColumns) {
    const Acc* b = panels + first * panel_pixels * V;
    for (int64_t i = first * V; i < T; i += R) {
      const int64_t panel = i / V;
      const Acc* a = panels + panel * panel_pixels * V + i % V;
      Sum* sums = K + i * pitch + first * V;
      const int64_t columns = panel - first + 1 < kColumns ? panel - first + 1 : kColumns;
      if (R > 4 && T - i <= 4) {
        multiply_panels<4>(columns, sums, pitch, a, b, panel_pixels);
      } else {
        multiply_panels<R>(columns, sums, pitch, a, b, panel_pixels);
      }
    }
  }
}

// Pixels [begin, begin + n) after a tile of all frames; runs as short as a tile's are over before the hardware follows.
template <class X>
void prefetch_frames(const TileFrames<X>& frames, int64_t tile, int64_t T, int64_t begin, int64_t n) {
  if (frames.element_stride != 1) return;
  constexpr int64_t kLine = 64 / sizeof(X);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < n; i += kLine)
      __builtin_prefetch(frames.x + t * frames.frame_stride + tile + begin + i, 0, 2);
}

#ifdef __AVX512VNNI__
constexpr bool kHasByteProducts = true;

// K[i, j] += Σ_p a[i, p] b[j, p] for four rows of n bytes each. The instruction multiplies bytes from 0 with bytes around
// 0, so that b is less 128; sums[i] = Σ_p a[i, p] makes up for that. Sums of n ≤ 2¹⁶ pixels fit.
inline void multiply_bytes(double* K, int64_t pitch, const uint8_t* const* a, const uint8_t* const* b,
                           const int64_t* sums, int64_t n) {
  __m512i products[4][4];
  for (auto& row : products)
    for (auto& product : row) product = _mm512_setzero_si512();
  const __m512i half = _mm512_set1_epi8(-128);
  const auto add = [&](int64_t p, auto load) __attribute__((always_inline)) {
    __m512i y[4];
    for (int j = 0; j < 4; ++j) y[j] = _mm512_xor_si512(load(b[j] + p), half);
    for (int i = 0; i < 4; ++i) {
      const __m512i x = load(a[i] + p);
      for (int j = 0; j < 4; ++j) products[i][j] = _mm512_dpbusd_epi32(products[i][j], x, y[j]);
    }
  };
  int64_t p = 0;
  for (; p + 64 <= n; p += 64) add(p, [](const uint8_t* x) { return _mm512_loadu_si512(x); });
  if (p < n) {
    const __mmask64 rest = (uint64_t{1} << (n - p)) - 1;
    add(p, [rest](const uint8_t* x) { return _mm512_maskz_loadu_epi8(rest, x); });
  }
  for (int i = 0; i < 4; ++i)
    for (int j = 0; j < 4; ++j)
      K[i * pitch + j] += static_cast<double>(_mm512_reduce_add_epi32(products[i][j]) + 128 * sums[i]);
}

inline int64_t sum_of_bytes(const uint8_t* x, int64_t n) {
  __m512i sum = _mm512_setzero_si512();
  int64_t p = 0;
  for (; p + 64 <= n; p += 64) sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_loadu_si512(x + p), __m512i{}));
  int64_t rest = 0;
  for (; p < n; ++p) rest += x[p];
  return _mm512_reduce_add_epi64(sum) + rest;
}

// Bytes as they are have exact products, four at a time; nothing need be taken off. K += ⟨x_s, x_t⟩.
inline void gram_of_bytes(const TemporalPoolParams& p, const Chunk& chunk, const GramSums& sums) {
  const Tasks tasks(p, gram_pixels(p));
  const std::unique_ptr<const uint8_t*[]> frames(new const uint8_t*[sums.rows]);
  const std::unique_ptr<int64_t[]> total(new int64_t[sums.rows]);
  for (int64_t task = chunk.begin; task < chunk.end; ++task) {
    const Tile tile = tasks.tile(task);
    const Row row = locate_row(p, tile.outer);
    const int64_t T = band_of(p, row.clip, 0).count;
    for (int64_t t = 0; t < sums.rows; ++t) {
      frames[t] = static_cast<const uint8_t*>(p.x) + row.x + tile.begin + (t < T ? t : T - 1) * p.x_t;
      total[t] = sum_of_bytes(frames[t], tile.n);
    }
    for (int64_t i = 0; i < T; i += 4)
      for (int64_t j = 0; j <= i; j += 4)
        multiply_bytes(sums.K + i * sums.rows + j, sums.rows, &frames[i], &frames[j], &total[i], tile.n);
  }
}
#else
constexpr bool kHasByteProducts = false;
inline void gram_of_bytes(const TemporalPoolParams&, const Chunk&, const GramSums&) {}
#endif

// The clip's tasks [begin, end). K [rows, rows] with rows = T rounded up to kGramBlock.
template <class X, Nonlinearity psi, bool normalized>
void gram_chunk(const TemporalPoolParams& p, const Chunk& chunk, const GramSums& sums) {
  using Acc = typename Accumulate<X>::type;
  constexpr int64_t V = kLanes<Acc>;
  const int64_t pitch = gram_pixels(p), rows = sums.rows;
  const Tasks tasks(p, pitch);
  const std::unique_ptr<TilePixels<Acc>> pixels(new TilePixels<Acc>);
  const int64_t packed_pitch = row_pitch<X>(tasks);
  const std::unique_ptr<X[]> packed(p.inner().x == 1 ? nullptr : new X[kFrames * packed_pitch]);
  const std::unique_ptr<Acc[]> shares(new Acc[p.T]);
  const bool several = pitch > kStep;  // steps of a tile, whose sums are float until it is over
  const std::unique_ptr<Acc[]> of_tile(several ? new Acc[rows * rows] : nullptr);
  const std::unique_ptr<Acc[]> storage(new Acc[(1 + rows) * pitch + V]);
  const uintptr_t begin = reinterpret_cast<uintptr_t>(storage.get());
  Acc* centre = reinterpret_cast<Acc*>((begin + kVectorBytes - 1) / kVectorBytes * kVectorBytes);
  Acc* panels = centre + pitch;  // [rows / V, padded, V]

  for (int64_t task = chunk.begin; task < chunk.end; ++task) {
    const Tile tile = tasks.tile(task);
    const int64_t n = tile.n, padded = (n + kStep - 1) / kStep * kStep;
    const Row row = locate_row(p, tile.outer);
    const int64_t T = band_of(p, row.clip, 0).count;
    if (T == 0) return;
    const X* const x = static_cast<const X*>(p.x) + row.x + tile.begin * p.inner().x;
    const int64_t every = sums.of_all ? 1 : (T + kCentre - 1) / kCentre, some = (T + every - 1) / every;
    for (int64_t t = 0; t < some; ++t) shares[t] = Acc{1} / static_cast<Acc>(some);
    if (normalized) pixels->fill(p, row, tile.begin, n);
    clear(centre, padded);
    accumulate_band<psi, normalized>(centre, TileFrames<X>{x, every * p.x_t, p.inner().x, n, packed.get(), packed_pitch},
                                     {0, some}, shares.get(), *pixels);
    for (int64_t i = n; i < padded; ++i) centre[i] = 0;
    Acc norm = 0;
#pragma omp simd reduction(+ : norm)
    for (int64_t i = 0; i < padded; ++i) norm += centre[i] * centre[i];
    *sums.norm += norm;
    const TileFrames<X> frames{x, p.x_t, p.inner().x, n, packed.get(), packed_pitch};
    for (int64_t first = 0; first < T; first += V) {
      const int64_t count = T - first < V ? T - first : V;
      int64_t stride;
      const X* block = frames.block(first, count, &stride);
      make_panel<psi, normalized>(panels + first * padded, sums.cross + first, block, stride, count, centre, *pixels, n,
                                  padded);
    }
    for (int64_t i = 0; several && i < rows * rows; ++i) of_tile[i] = 0;
    for (int64_t step = 0; step < padded; step += kStep) {
      if (task + 1 < chunk.end) prefetch_frames(frames, tile.n, T, step, kStep);
      several ? multiply_step(of_tile.get(), rows, panels + step * V, padded, T)
              : multiply_step(sums.K, rows, panels + step * V, padded, T);
    }
    for (int64_t i = 0; several && i < T; ++i)
      for (int64_t j = 0; j <= i; ++j) sums.K[i * rows + j] += of_tile[i * rows + j];
  }
}

template <class X>
void gram_of(const TemporalPoolParams& p, const Chunk& chunk, const GramSums& sums) {
  const bool normalized = p.mean || p.std;
  if (kHasByteProducts && multiplies_bytes(p)) {
    gram_of_bytes(p, chunk, sums);
  } else if (p.nonlinearity == Nonlinearity::identity) {
    normalized ? gram_chunk<X, Nonlinearity::identity, true>(p, chunk, sums)
               : gram_chunk<X, Nonlinearity::identity, false>(p, chunk, sums);
  } else {
    normalized ? gram_chunk<X, Nonlinearity::sqrt, true>(p, chunk, sums)
               : gram_chunk<X, Nonlinearity::sqrt, false>(p, chunk, sums);
  }
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
