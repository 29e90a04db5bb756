// ∂L/∂x, ∂L/∂weights, ∂L/∂mean and ∂L/∂std of a tile, frame after frame, by the rows that are open.
#pragma once
#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

template <class Y, class Acc>
void load_tile(const void* g, int64_t offset, int64_t stride, Acc* values, int64_t n) {
  const Y* in = static_cast<const Y*>(g) + offset;
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<Acc>(load(in[i]));
  } else {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<Acc>(load(in[i * stride]));
  }
}

template <class Acc>
void load_tile(DType dtype, const void* g, int64_t offset, int64_t stride, Acc* values, int64_t n) {
  switch (dtype) {
    case DType::float16: return load_tile<Half>(g, offset, stride, values, n);
    case DType::bfloat16: return load_tile<BFloat16>(g, offset, stride, values, n);
    case DType::float32: return load_tile<float>(g, offset, stride, values, n);
    default: return load_tile<double>(g, offset, stride, values, n);
  }
}

#ifdef __AVX512F__
// out[i] = a G[i] ψ'(x[i]) for whole vectors of [0, n); returns how many elements those are.
template <Nonlinearity psi>
int64_t differentiate_vectors(float* out, const float* x, float a, const float* G, int64_t n, bool bypass) {
  const auto each = [&](auto store) {
    int64_t i = 0;
    for (; i + kVector <= n; i += kVector) {
      Floats d = a * _mm512_loadu_ps(G + i);
      if constexpr (psi == Nonlinearity::sqrt) d *= root_derivative(_mm512_loadu_ps(x + i));
      store(out + i, d);
    }
    return i;
  };
  if (!bypass || reinterpret_cast<uintptr_t>(out) % sizeof(Floats))
    return each([](float* to, Floats d) { _mm512_storeu_ps(to, d); });
  return each([](float* to, Floats d) { _mm512_stream_ps(to, d); });
}
#endif

// out[i] = a G[i] ψ'(z[i]) / std
template <Nonlinearity psi, bool normalized, class Acc, class X>
void differentiate(X* __restrict out, const X* __restrict x, Acc a, const Acc* __restrict G,
                   const TilePixels<Acc>& pixels, int64_t n, [[maybe_unused]] bool bypass) {
  int64_t i = 0;
#ifdef __AVX512F__
  if constexpr (std::is_same<X, float>::value && !normalized)
    i = differentiate_vectors<psi>(out, x, a, G, n, bypass);
#endif
#pragma GCC ivdep
  for (; i < n; ++i) {
    Acc d = a * G[i];
    if constexpr (psi != Nonlinearity::identity) d *= apply_dpsi<psi>(normalize<Acc, normalized>(x[i], pixels, i));
    if constexpr (normalized) d *= pixels.inverse_std[i];
    out[i] = store<X>(d);
  }
}

// A tile's share of -∂L/∂mean and -∂L/∂std, element by element, summed over frames.
template <Nonlinearity psi, class Acc, class X>
void add_statistics(Acc* dmean, Acc* dstd, const X* x, Acc a, const Acc* G, const TilePixels<Acc>& pixels, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const Acc z = normalize<Acc, true>(x[i], pixels, i);
    const Acc d = a * G[i] * apply_dpsi<psi>(z) * pixels.inverse_std[i];
    dmean[i] += d;
    dstd[i] += d * z;
  }
}

// The frames' gradients of one tile: where they go, and buffers.
template <class X, class Acc>
struct BackwardScratch {
  TilePixels<Acc> pixels;
  Acc G[kTile], dmean[kTile], dstd[kTile];
};

// G[i] = Σ_w A[w, t] g[w, i], as a factor and an array: (a, g row) where a single row weighs frame t, else (1, sum).
template <class Acc>
struct RowSum {
  int64_t rows = 0;
  Acc factor = 1;
  const Acc* values = nullptr;
};

template <class Acc>
RowSum<Acc> sum_rows(const TemporalPoolParams& p, int64_t clip, int64_t t, RowRange rows, const RowRing<Acc>& g,
                     Acc* buffer, int64_t n) {
  RowSum<Acc> sum;
  for (int64_t w = rows.begin; w < rows.end; ++w) {
    const Band band = band_of(p, clip, w);
    const int64_t k = t - band.first;
    if (k < 0 || k >= band.count) continue;
    const Acc a = static_cast<const Acc*>(p.weights)[(clip * p.W + w) * p.K + k];
    const Acc* row = g[w];
    if (sum.rows == 0) {
      sum.factor = a;
      sum.values = row;
    } else if (sum.rows == 1) {
      for (int64_t i = 0; i < n; ++i) buffer[i] = sum.factor * sum.values[i] + a * row[i];
      sum.factor = 1;
      sum.values = buffer;
    } else {
      for (int64_t i = 0; i < n; ++i) buffer[i] += a * row[i];
    }
    ++sum.rows;
  }
  return sum;
}

// out[r K + u] += Σ_i g[r, i] x[u, i] for `rows` rows and `frames` frames, 1 to kTogether of them: a vector of either is read
// once for all of the others, and the sums stay in registers.
template <class X>
void add_dots(double* out, int64_t K, const Strided<float>& g, int64_t rows, const Strided<X>& x, int64_t frames,
              int64_t n) {
  constexpr int kAtOnce = kVector == 16 ? kTogether : 2;  // frames whose sums there are registers for
  for (int64_t begin = 0; begin < frames; begin += kAtOnce) {
    const float* row[kTogether];
    const X* frame[kAtOnce];
    for (int r = 0; r < kTogether; ++r) row[r] = g[r < rows ? r : rows - 1];
    for (int u = 0; u < kAtOnce; ++u) frame[u] = x[begin + u < frames ? begin + u : frames - 1];
    Floats sums[kTogether][kAtOnce] = {};
    int64_t i = 0;
    for (; i + kVector <= n; i += kVector) {
      Floats values[kAtOnce];
      for (int u = 0; u < kAtOnce; ++u) values[u] = floats_of(frame[u] + i);
      for (int r = 0; r < kTogether; ++r) {
        const Floats factor = floats_of(row[r] + i);
        for (int u = 0; u < kAtOnce; ++u) sums[r][u] += factor * values[u];
      }
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t u = 0; u < kAtOnce && begin + u < frames; ++u) {
        float lanes[kVector], sum = 0;
        memcpy(lanes, &sums[r][u], sizeof(lanes));
        for (const float lane : lanes) sum += lane;
        for (int64_t k = i; k < n; ++k) sum += row[r][k] * load(frame[u][k]);
        out[r * K + begin + u] += sum;
      }
  }
}

// The same of kTogether frames at a time, which all rows weigh.
template <class Acc>
struct SharedFrames {
  const std::unique_ptr<Acc[]> G, psi_frames;  // [kTogether, pitch]
  const int64_t pitch;

  SharedFrames(int64_t pitch, bool needs_psi)
      : G(new Acc[kTogether * pitch]), psi_frames(needs_psi ? new Acc[kTogether * pitch] : nullptr), pitch(pitch) {}

  RowSum<Acc> sum(int64_t r, int64_t rows) const { return {rows, 1, G.get() + r * pitch}; }

  void sum_rows(const TemporalPoolParams& p, int64_t clip, int64_t t, const RowRing<Acc>& g, int64_t n) const {
    Acc* sums[kTogether];
    const Acc* weights[kTogether];
    for (int r = 0; r < kTogether; ++r) {
      sums[r] = G.get() + r * pitch;
      weights[r] = static_cast<const Acc*>(p.weights) + clip * p.W * p.K + (t + r < p.T ? t + r : p.T - 1);
      clear(sums[r], n);
    }
    add_together(sums, Strided<Acc>{g.values, g.pitch}, weights, p.K, p.W, n);
  }

  template <Nonlinearity psi, bool normalized, class X>
  void add_to_weights(double* dweights, const TemporalPoolParams& p, const RowRing<Acc>& g, const Strided<X>& x,
                      int64_t frames, const TilePixels<Acc>& pixels, int64_t n) const {
    constexpr bool plain = psi == Nonlinearity::identity && !normalized;
    for (int64_t u = 0; !plain && u < frames; ++u)
      fill_psi<psi, normalized>(psi_frames.get() + u * pitch, x[u], pixels, n);
    for (int64_t w = 0; w < p.W; w += kTogether) {
      const int64_t rows = p.W - w < kTogether ? p.W - w : kTogether;
      const Strided<Acc> together{g[w], g.pitch};
      if constexpr (plain) {
        add_dots(dweights + w * p.K, p.K, together, rows, x, frames, n);
      } else {
        add_dots(dweights + w * p.K, p.K, together, rows, Strided<Acc>{psi_frames.get(), pitch}, frames, n);
      }
    }
  }
};

// Tasks of one chunk of the backward pass (tasks.h); sums over elements go to the chunk's own partial sums.
template <class X, Nonlinearity psi, bool normalized>
void backward_chunk(const TemporalPoolParams& p, const Chunk& chunk, const PartialSums& partial) {
  using Acc = typename Accumulate<X>::type;
  const Tasks tasks(p);
  const bool statistics = partial.dmean != nullptr;
  const bool reads_x = psi != Nonlinearity::identity || partial.dweights || statistics;
  // A gradient that outgrows the caches is written past them, which spares reading it first; but one that is larger than
  // what malloc keeps lies in pages that were cleared a moment ago, and are in the caches.
  const int64_t bytes = p.num_outer() * p.inner().size * p.T * static_cast<int64_t>(sizeof(X));
  const bool bypass = bytes >= int64_t{8} << 20 && bytes <= int64_t{32} << 20;
  const std::unique_ptr<BackwardScratch<X, Acc>> s(new BackwardScratch<X, Acc>);
  const int64_t slots = OpenRows::most(p, locate_row(p, tasks.tile(chunk.begin).outer).clip, 1);
  const int64_t pitch = row_pitch<Acc>(tasks), packed_pitch = row_pitch<X>(tasks);
  const std::unique_ptr<Acc[]> loaded(new Acc[slots * pitch]);
  const RowRing<Acc> g{loaded.get(), pitch, slots};
  const bool packs_x = reads_x && p.inner().x != 1, packs_dx = p.dx && p.inner().dx != 1;
  const bool transposes_dx = packs_dx && p.dx_t < p.inner().dx;
  const std::unique_ptr<X[]> packed(packs_x ? new X[kFrames * packed_pitch] : nullptr);
  const std::unique_ptr<X[]> packed_dx(packs_dx ? new X[kFrames * packed_pitch] : nullptr);
  const std::unique_ptr<SharedFrames<Acc>> shared(
      sums_together<X> && !p.bands && p.W >= kTogether ? new SharedFrames<Acc>(pitch, partial.dweights) : nullptr);

  for (int64_t task = chunk.begin; task < chunk.end; ++task) {
    const Tile tile = tasks.tile(task);
    const int64_t n = tile.n;
    const Row row = locate_row(p, tile.outer);
    if (normalized || statistics) s->pixels.fill(p, row, tile.begin, n);
    if (statistics)
      for (int64_t i = 0; i < n; ++i) s->dmean[i] = s->dstd[i] = 0;
    const TileFrames<X> frames{static_cast<const X*>(p.x) + row.x + tile.begin * p.inner().x, p.x_t, p.inner().x, n,
                               packed.get(), packed_pitch};
    X* const dx = p.dx ? static_cast<X*>(p.dx) + row.dx + tile.begin * p.inner().dx : nullptr;
    OpenRows rows(p, row.clip);
    int64_t begun = 0;

    for (int64_t first = 0; first < p.T; first += kFrames) {
      const int64_t count = p.T - first < kFrames ? p.T - first : kFrames;
      const X* block = nullptr;
      int64_t stride = 0;
      for (int64_t t = first; t < first + count; ++t) {
        const RowRange open = rows.of(t, t + 1);
        for (begun = begun < open.begin ? open.begin : begun; begun < open.end; ++begun)
          load_tile(p.y_dtype, p.g, row.y + tile.begin * p.inner().y + begun * p.y_w, p.inner().y, g[begun], n);
        if constexpr (sums_together<X>)
          if (shared && (t - first) % kTogether == 0) shared->sum_rows(p, row.clip, t, g, n);
        const RowSum<Acc> G = shared ? shared->sum((t - first) % kTogether, p.W)
                                     : sum_rows(p, row.clip, t, open, g, s->G, n);
        if (reads_x && !block && G.rows) block = frames.block(first, count, &stride);
        const X* x = block ? block + (t - first) * stride : nullptr;
        if (dx) {
          X* place = dx + t * p.dx_t;
          X* out = packs_dx ? packed_dx.get() + (transposes_dx ? t - first : 0) * packed_pitch : place;
          if (G.rows) differentiate<psi, normalized>(out, x, G.factor, G.values, s->pixels, n, bypass && !packs_dx);
          for (int64_t i = 0; !G.rows && i < n; ++i) out[i] = X{};
          if (packs_dx && !transposes_dx) unpack(place, p.dx_t, p.inner().dx, out, packed_pitch, 1, n);
        }
        if (!G.rows) continue;  // no row weighs this frame
        if (statistics) add_statistics<psi>(s->dmean, s->dstd, x, G.factor, G.values, s->pixels, n);
        if constexpr (sums_together<X>) {
          if (shared && partial.dweights && (t - first) % kTogether == 0) {
            const int64_t left = first + count - t;
            shared->template add_to_weights<psi, normalized>(partial.dweights + t, p, g, Strided<X>{x, stride},
                                                             left < kTogether ? left : kTogether, s->pixels, n);
          }
        }
        for (int64_t w = open.begin; !shared && partial.dweights && w < open.end; ++w) {
          const Band band = band_of(p, row.clip, w);
          const int64_t k = t - band.first;
          if (k < 0 || k >= band.count) continue;
          partial.dweights[w * p.K + k] += dot<psi, normalized>(g[w], x, s->pixels, n);
        }
      }
      if (transposes_dx) unpack(dx + first * p.dx_t, p.dx_t, p.inner().dx, packed_dx.get(), packed_pitch, count, n);
    }
    if (statistics) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t c = channel_of(p, row, tile.begin + i);
        partial.dmean[c] -= s->dmean[i];
        partial.dstd[c] -= s->dstd[i];
      }
    }
  }
#ifdef __AVX512F__
  if (bypass) _mm_sfence();  // before another thread may read
#endif
}

template <class X>
void backward_of(const TemporalPoolParams& p, const Chunk& chunk, const PartialSums& partial) {
  const bool identity = p.nonlinearity == Nonlinearity::identity, normalized = p.mean || p.std;
  if (identity && normalized) return backward_chunk<X, Nonlinearity::identity, true>(p, chunk, partial);
  if (identity) return backward_chunk<X, Nonlinearity::identity, false>(p, chunk, partial);
  if (normalized) return backward_chunk<X, Nonlinearity::sqrt, true>(p, chunk, partial);
  return backward_chunk<X, Nonlinearity::sqrt, false>(p, chunk, partial);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
