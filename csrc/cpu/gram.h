// Products of the frames of a clip, for exact rank pooling: ⟨ψ_s - ψ̄, ψ_t - ψ̄⟩, ⟨ψ_t - ψ̄, ψ̄⟩ and ‖ψ̄‖².
//
// A tile holds ψ of up to kGramPixels pixels of all frames as floats, less their mean over the frames. Register blocks of
// kBlockRows × kBlockRows frames are multiplied along the pixels, the lower triangle only; sums over a tile are float,
// over tiles double.
#pragma once
#include <memory>

#include "kernels.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int64_t kPanel = 48;  // frames whose tile stays in a second-level cache while others are multiplied with it

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16, kBlockRows = 4;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8, kBlockRows = 3;
#else
constexpr int64_t kLanes = 4, kBlockRows = 3;
#endif

template <class Acc>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(kLanes * sizeof(float))));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(kLanes * sizeof(float))));
};
template <class Acc>
constexpr int64_t kLanesOf = kLanes * sizeof(float) / sizeof(Acc);

// sums[i, j] += Σ_p a[i, p] b[j, p] for R rows of each, `pitch` apart; n is a multiple of the vector.
template <int64_t R, class Acc>
void multiply_rows(double* sums, int64_t T, const Acc* a, const Acc* b, int64_t pitch, int64_t n) {
  using Vector = typename Lanes<Acc>::type;
  constexpr int64_t V = kLanesOf<Acc>;
  Vector acc[R][R] = {};
  for (int64_t p = 0; p < n; p += V) {
    Vector y[R];
    for (int64_t j = 0; j < R; ++j) y[j] = *reinterpret_cast<const Vector*>(b + j * pitch + p);
    for (int64_t i = 0; i < R; ++i) {
      const Vector x = *reinterpret_cast<const Vector*>(a + i * pitch + p);
      for (int64_t j = 0; j < R; ++j) acc[i][j] += x * y[j];
    }
  }
  for (int64_t i = 0; i < R; ++i) {
    for (int64_t j = 0; j < R; ++j) {
      Acc sum = 0;
      for (int64_t lane = 0; lane < V; ++lane) sum += acc[i][j][lane];
      sums[i * T + j] += sum;
    }
  }
}

// The lower triangle of K [T, T] += F Fᵀ, F [rows, pitch] of which n columns count; rows is a multiple of kBlockRows.
template <class Acc>
void multiply_tile(double* K, int64_t T, const Acc* F, int64_t rows, int64_t n) {
  for (int64_t panel = 0; panel < rows; panel += kPanel) {
    const int64_t panel_end = panel + kPanel < rows ? panel + kPanel : rows;
    for (int64_t i = panel; i < rows; i += kBlockRows)
      for (int64_t j = panel; j < panel_end && j <= i; j += kBlockRows)
        multiply_rows<kBlockRows>(K + i * T + j, T, F + i * kGramPixels, F + j * kGramPixels, kGramPixels, n);
  }
}

template <Nonlinearity psi, bool normalized, class Acc, class X>
void load_frame(Acc* out, const X* x, const TilePixels<Acc>& pixels, int64_t n) {
  const Acc one = 1;
  for (int64_t i = 0; i < n; ++i) out[i] = 0;
  accumulate<psi, normalized>(out, x, 0, &one, 1, pixels, n);
}

// The clip's tasks [begin, end) (tiles of at most kGramPixels). K [rows, rows] with rows = T rounded up to kBlockRows.
template <class X, Nonlinearity psi, bool normalized>
void gram_chunk(const TemporalPoolParams& p, const Chunk& chunk, const GramSums& sums) {
  using Acc = typename Accumulate<X>::type;
  constexpr int64_t V = kLanesOf<Acc>;
  const Tasks tasks(p, kGramPixels);
  const std::unique_ptr<TilePixels<Acc>> pixels(new TilePixels<Acc>);
  const std::unique_ptr<X[]> packed(new X[kFrames * kTile]);
  const int64_t rows = sums.rows;
  std::unique_ptr<Acc[]> storage(new Acc[(rows + 1) * kGramPixels + V]());
  const uintptr_t begin = reinterpret_cast<uintptr_t>(storage.get()), align = V * sizeof(Acc);
  Acc* F = reinterpret_cast<Acc*>((begin + align - 1) / align * align);
  Acc* average = F + rows * kGramPixels;

  for (int64_t task = chunk.begin; task < chunk.end; ++task) {
    const Tile tile = tasks.tile(task);
    const int64_t n = tile.n, padded = (n + V - 1) / V * V;
    const Row row = locate_row(p, tile.outer);
    const int64_t T = band_of(p, row.clip, 0).count;
    const TileFrames<X> frames{static_cast<const X*>(p.x) + row.x + tile.begin * p.inner().x, p.x_t, p.inner().x, n,
                               packed.get()};
    if (normalized) pixels->fill(p, row, tile.begin, n);
    for (int64_t i = 0; i < padded; ++i) average[i] = 0;
    for (int64_t t = 0; t < T; ++t) {
      int64_t stride;
      const X* x = frames.block(t, 1, &stride);
      Acc* f = F + t * kGramPixels;
      for (int64_t i = n; i < padded; ++i) f[i] = 0;
      load_frame<psi, normalized>(f, x, *pixels, n);
      for (int64_t i = 0; i < n; ++i) average[i] += f[i];
    }
    const Acc share = Acc(1) / static_cast<Acc>(T);
    Acc norm = 0;
    for (int64_t i = 0; i < padded; ++i) average[i] *= share;
#pragma omp simd reduction(+ : norm)
    for (int64_t i = 0; i < padded; ++i) norm += average[i] * average[i];
    *sums.norm += norm;
    for (int64_t t = 0; t < T; ++t) {
      Acc* f = F + t * kGramPixels;
      Acc cross = 0;
#pragma omp simd reduction(+ : cross)
      for (int64_t i = 0; i < padded; ++i) {
        f[i] -= average[i];
        cross += f[i] * average[i];
      }
      sums.cross[t] += cross;
    }
    multiply_tile(sums.K, rows, F, (T + kBlockRows - 1) / kBlockRows * kBlockRows, padded);
  }
}

template <class X>
void gram_of(const TemporalPoolParams& p, const Chunk& chunk, const GramSums& sums) {
  const bool normalized = p.mean || p.std;
  if (p.nonlinearity == Nonlinearity::identity) {
    return normalized ? gram_chunk<X, Nonlinearity::identity, true>(p, chunk, sums)
                      : gram_chunk<X, Nonlinearity::identity, false>(p, chunk, sums);
  }
  return normalized ? gram_chunk<X, Nonlinearity::sqrt, true>(p, chunk, sums)
                    : gram_chunk<X, Nonlinearity::sqrt, false>(p, chunk, sums);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
