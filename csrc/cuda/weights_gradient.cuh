// ∂L/∂A[b, w, k] = Σ_i g[b, w, i] ψ(z[b, first + k, i]), in parts of the elements of a clip, added up in order and in
// double.
#pragma once
#include "gradient.cuh"
#include "launchers.h"
#include "patch.cuh"

namespace dynpool::cuda {
namespace {

// How ∂L/∂A is cut up: blocks are [clips, parts, chunks of N frames, groups of R rows], groups running fastest, so that
// blocks side by side read the same frames and pooled rows.
struct Reduction {
  int64_t pieces_per_row, pieces;  // of one clip
  int64_t pieces_per_part;
  int64_t rows_per_clip;
  int parts, chunks, groups;
};

// partials[part, clip, w, k] = Σ g[w, i] ψ(z[first + k, i]) over the part's elements, for R rows and N frames.
template <class X, Nonlinearity psi, Access access, int R, int N>
__global__ void __launch_bounds__(kThreads, sizeof(X) == 1 ? 2 : 3)
    weights_kernel(const TemporalPoolParams p, const Reduction reduction, const Extent extent,
                   double* __restrict__ partials) {
  using Acc = typename Accumulate<X>::type;
  using Frame = Patch<X, access>;
  constexpr int V = Frame::V;
  __shared__ BlockSums<R * N> sums;

  // 1. Rows, frames and part of this block.
  int64_t rest = blockIdx.x;
  const int w_begin = static_cast<int>(rest % reduction.groups) * R;
  rest /= reduction.groups;
  const int t_begin = static_cast<int>(rest % reduction.chunks) * N;
  rest /= reduction.chunks;
  const int64_t part = rest % reduction.parts, clip = rest / reduction.parts;
  const int rows = min(R, static_cast<int>(p.W) - w_begin), frames = min(N, static_cast<int>(p.T) - t_begin);
  bool wanted = false;
  for (int r = 0; r < rows; ++r)
    wanted = wanted || !span_of(band_of(p, clip, w_begin + r), t_begin, t_begin + frames).empty();
  if (!wanted) return;

  // 2. Sums of this thread, over every kThreads-th piece.
  Acc sum[R * N] = {};
  const int64_t patches_end = min((part + 1) * reduction.pieces_per_part, reduction.pieces);
  for (int64_t n = part * reduction.pieces_per_part + threadIdx.x; n < patches_end; n += kThreads) {
    const int64_t row = n / reduction.pieces_per_row, outer = clip * reduction.rows_per_clip + row;
    const Place<access> place = place_of<access, V>(p, locate_row(p, outer), outer, n - row * reduction.pieces_per_row,
                                                  reduction.pieces_per_row);
    Statistics<Acc, V> normalize;
    normalize.read(p, place);

    Acc g[R][V] = {};
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r < rows) load_row(p.g, p.y_dtype, place.row.y + (w_begin + r) * p.y_w, p.inner().y, place, g[r]);
    const X* x = static_cast<const X*>(p.x) + place.row.x + t_begin * p.x_t;
#pragma unroll
    for (int begin = 0; begin < N; begin += kGradientFrames) {
      Frame frame[kGradientFrames];
#pragma unroll
      for (int u = 0; u < kGradientFrames; ++u)
        if (begin + u < frames) load_within(frame[u], p, x + (begin + u) * p.x_t, place, extent);
#pragma unroll
      for (int u = 0; u < kGradientFrames; ++u) {
        if (begin + u >= frames) break;
        frame[u].align();
        if (!place.template whole<V>()) frame[u].clear_outside(place);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Acc value = psi_of<psi, access>(p, normalize(frame[u][j], j));
#pragma unroll
          for (int r = 0; r < R; ++r) sum[r * N + begin + u] += g[r][j] * value;
        }
      }
    }
  }

  // 3. Sums of the block.
#pragma unroll
  for (int m = 0; m < R * N; ++m) sums.value[m][threadIdx.x] = sum[m];
  __syncthreads();
  for (int m = threadIdx.x; m < R * N; m += kThreads) {
    const int r = m / N, t = t_begin + m % N;
    if (r >= rows) continue;
    const Band band = band_of(p, clip, w_begin + r);
    if (!span_of(band, t_begin, t_begin + frames).has(t)) continue;
    const int64_t row = clip * p.W + w_begin + r;
    partials[(part * p.clips * p.W * p.K) + row * p.K + t - band.first] = sums.add(m);
  }
}

inline Reduction make_reduction(const TemporalPoolParams& p, int patch, int rows, int frames, int64_t wanted) {
  constexpr int64_t kLongest = 64;  // pieces summed in float32 by one thread
  Reduction reduction;
  reduction.rows_per_clip = p.num_outer() / p.clips;
  reduction.pieces_per_row = ceil_div(p.inner().size, patch);
  reduction.pieces = reduction.rows_per_clip * reduction.pieces_per_row;
  reduction.chunks = static_cast<int>(ceil_div(p.T, frames));
  reduction.groups = static_cast<int>(ceil_div(p.W, rows));
  const int64_t blocks = std::max<int64_t>(1, p.clips * reduction.chunks * reduction.groups);
  const int64_t rounds = ceil_div(reduction.pieces, kThreads);
  const int64_t parts = std::min(rounds, std::max(ceil_div(wanted, blocks), ceil_div(rounds, kLongest)));
  reduction.pieces_per_part = parts == 0 ? 0 : kThreads * ceil_div(rounds, parts);
  reduction.parts = parts == 0 ? 0 : static_cast<int>(ceil_div(reduction.pieces, reduction.pieces_per_part));
  return reduction;
}

template <class X, Nonlinearity psi, Access access, int R, int N>
void launch_weights(const TemporalPoolParams& p, const Context& context) {
  const int64_t size = p.clips * p.W * p.K;
  if (size == 0) return;
  const Reduction reduction = make_reduction(p, patch_size<X, access>, R, N, context.blocks_wanted());
  const int64_t blocks = p.clips * reduction.parts * reduction.chunks * reduction.groups;
  double* partials = context.memory<double>(size * reduction.parts);
  if (blocks > 0) {
    launch(weights_kernel<X, psi, access, R, N>, dim3(grid_size(blocks)), dim3(kThreads), context.stream, p, reduction,
           extent_of(p), partials);
  }
  launch_add_parts<typename Accumulate<X>::type>(p, partials, reduction.parts, true, size, p.dweights, context);
}

template <class X, Nonlinearity psi>
void launch_dweights(const TemporalPoolParams& p, const Context& context) {
  if constexpr (has_word_path<X>) {
    if (p.inner().x == 1)
      return p.W == 1 ? launch_weights<X, psi, Access::shifted, 1, 8>(p, context)
                      : launch_weights<X, psi, Access::shifted, 4, 4>(p, context);
  }
  launch_weights<X, Nonlinearity::sqrt, Access::single, 2, 4>(p, context);
}

}  // namespace
}  // namespace dynpool::cuda
