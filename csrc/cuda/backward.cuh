// The gradients of temporal_pool (temporal_pool.h), in four kernels and a sum; ∂L/∂A is weights_gradient.cuh's:
//
//   plain_gradient   ∂L/∂x in the usual case, which has a file of its own (plain_gradient.cuh)
//   words_gradient   ∂L/∂x of pixels that lie side by side
//   series_gradient  ∂L/∂x of frames that do
//   frames_kernel    ∂L/∂x at any stride, and for each element its share in ∂L/∂mean and ∂L/∂std
//   add_channels       the shares of each channel, in parts
//   add_parts          these parts (gradient.cuh)
#pragma once
#include "gradient.cuh"
#include "launchers.h"
#include "patch.cuh"
#include "plain_gradient.cuh"
#include "weights_gradient.cuh"

namespace dynpool::cuda {
namespace {

// --- ∂L/∂x -----------------------------------------------------------------------------------------------------------

// Shares of elements in ∂L/∂mean and ∂L/∂std, Acc [slices, outer, inner]; null where not wanted.
template <class Acc>
struct Shares {
  Acc *mean, *std;
};

// Where x is read: nowhere for ψ = identity; `alike`, in words that begin and end where those of ∂L/∂x do; `anywhere`.
enum class Source { none, alike, anywhere };
// Frames whose G a thread holds in registers, and whose loads are in flight together.
template <Source source>
constexpr int frames_at_once = source == Source::anywhere ? 2 : kGradientFrames;
// What the compiler may take for granted: W = 1 and neither mean nor std; neither mean nor std; nothing.
enum class Case { one_row, plain, general };

// Frames are cut up each by the words of ∂L/∂x, which begin at the same columns in every 2^log_period-th: a thread has
// one such class of frames after another.
struct Words {
  Tiling tiling;               // pieces are the words of an inner row, of which the first may begin before it
  int log_period, log_groups;  // blocks side by side have the same tile, and each a group of its classes
  int slice;                   // frames of a block and its neighbours
  Extent y;                    // of g
};

// g of a thread's columns, by words wherever these begin if its elements are of x's type.
template <class X, int V, class Acc>
__device__ __forceinline__ void load_gradient(const TemporalPoolParams& p, int64_t offset,
                                              const Place<Access::shifted>& place, const Extent& extent, Acc (&g)[V]) {
  const X* y = static_cast<const X*>(p.g) + offset;
  const uint64_t address = reinterpret_cast<uint64_t>(y + place.first);
  if (p.y_dtype != p.x_dtype || p.inner().y != 1 || !place.template whole<V>() || address % 16 == 0 ||
      !fits(address, extent))
    return load_row(p.g, p.y_dtype, offset, p.inner().y, place, g);
  Patch<X, Access::shifted> patch;
  patch.load(p, y, place);
  patch.align();
#pragma unroll
  for (int j = 0; j < V; ++j) g[j] = patch[j];
}

// Blocks of a multiprocessor, as registers without spills allow.
template <class X, Case given>
constexpr int kBlocks = given == Case::one_row ? 6 : (given == Case::plain ? 4 : 3) + (sizeof(X) == 4 ? 1 : 0);

template <class X, Nonlinearity psi, Source source, Case given>
__global__ void __launch_bounds__(kThreads, kBlocks<X, given>)
    words_gradient(const TemporalPoolParams p, const Words words, const Extent extent) {
  using Acc = typename Accumulate<X>::type;
  using Frame = Patch<X, Access::shifted>;
  constexpr int V = Frame::V, N = frames_at_once<source>;
  constexpr bool one_row = given == Case::one_row, normalized = given == Case::general;
  constexpr Acc factor = psi == Nonlinearity::sqrt ? Acc(0.5) : Acc(1);

  // 1. Rows and frames of this thread.
  const int period = 1 << words.log_period, groups = 1 << words.log_groups;
  int64_t outer, piece;
  if (!find_piece(words.tiling, int64_t{blockIdx.x >> words.log_groups} * kThreads + threadIdx.x, outer, piece)) return;
  const Row row = locate_row(p, outer);
  const int slice_begin = static_cast<int>(blockIdx.y) * words.slice;
  const int t_end = min(static_cast<int>(p.T), slice_begin + words.slice);
  const int64_t dx_step = period * p.dx_t, x_step = period * p.x_t;

  // 2. The rows that weigh any of the slice are among [w_begin, w_end).
  Span span{0, 0};
  const Acc* weights = nullptr;
  int w_begin = static_cast<int>(p.W), w_end = 0;
  if constexpr (one_row) {
    const Band band = band_of(p, row.clip, 0);
    span = span_of(band, slice_begin, t_end);
    weights = weights_of<Acc>(p, row.clip, 0, band);
  } else {
#pragma unroll 1
    for (int w = 0; w < p.W; ++w) {
      if (span_of(band_of(p, row.clip, w), slice_begin, t_end).empty()) continue;
      w_begin = min(w_begin, w);
      w_end = w + 1;
    }
  }

  // 3. Frames t_begin, t_begin + period, … and the thread's columns of these.
#pragma unroll 1
  for (int n = static_cast<int>(blockIdx.x & (groups - 1)); n < min(period, t_end - slice_begin); n += groups) {
    const int t_begin = slice_begin + n;
    X* dx = static_cast<X*>(p.dx) + row.dx + t_begin * p.dx_t;
    const int skew = static_cast<int>(reinterpret_cast<uint64_t>(dx) % 16 / sizeof(X));
    auto place = place_of<Access::shifted, V, true>(p, row, outer, piece, words.tiling.pieces, skew);
    if (place.empty()) continue;
    Statistics<Acc, V> normalize;
    if constexpr (normalized) normalize.read(p, place);
    Acc g[V] = {};
    if (one_row && !span.empty()) load_gradient<X>(p, row.y, place, words.y, g);
    dx += place.first;
    const X* x = static_cast<const X*>(p.x);
    if constexpr (source != Source::none) x += row.x + t_begin * p.x_t + place.first;
    const int64_t y = row.y + place.first * p.inner().y;
    place.first = 0;

#pragma unroll 1
    for (int t = t_begin; t < t_end; t += N * period) {
      const auto frame_of = [&](int u) { return t + u * period; };
      Frame frame[N];
      if (source == Source::alike && place.template whole<V>()) {
#pragma unroll
        for (int u = 0; u < N; ++u, x += x_step)
          if (frame_of(u) < t_end) read_word(x, frame[u].word);
      } else if (source != Source::none) {
#pragma unroll
        for (int u = 0; u < N; ++u, x += x_step) {
          if (frame_of(u) >= t_end) continue;
          if constexpr (source == Source::alike) frame[u].load_singly(x, place);
          if constexpr (source == Source::anywhere) load_within(frame[u], p, x, place, extent);
        }
      }

      // 4. G[u] = Σ_w A[w, t + u·period] g[w]
      Acc weight[N] = {}, G[one_row ? 1 : N][V] = {};
      bool weighed[N] = {};  // a frame outside every band may be NaN
      if constexpr (one_row) {
#pragma unroll
        for (int u = 0; u < N; ++u) {
          weighed[u] = span.has(frame_of(u));
          if (weighed[u]) weight[u] = factor * __ldg(weights + frame_of(u));
        }
      } else {
#pragma unroll 1
        for (int w = w_begin; w < w_end; ++w) {
          const Band band = band_of(p, row.clip, w);
          span = span_of(band, t, min(t_end, frame_of(N - 1) + 1));
          if (span.empty()) continue;
          load_gradient<X>(p, y + w * p.y_w, place, words.y, g);
          weights = weights_of<Acc>(p, row.clip, w, band);
#pragma unroll
          for (int u = 0; u < N; ++u) {
            if (!span.has(frame_of(u))) continue;
            weighed[u] = true;
            weight[u] = factor * __ldg(weights + frame_of(u));
#pragma unroll
            for (int j = 0; j < V; ++j) G[u][j] += weight[u] * g[j];
          }
        }
      }

      // 5. ∂L/∂x = G ψ'(z) / std
#pragma unroll
      for (int u = 0; u < N; ++u) {
        if (frame_of(u) >= t_end) break;
        if constexpr (source == Source::anywhere) frame[u].align();
        Acc value[V] = {};
        if (weighed[u]) {
#pragma unroll
          for (int j = 0; j < V; ++j) {
            value[j] = one_row ? weight[u] * g[j] : G[one_row ? 0 : u][j];
            if constexpr (psi != Nonlinearity::identity) {
              const Acc pixel = frame[u][j];
              value[j] *= slope_of<psi, X, normalized>(normalized ? normalize(pixel, j) : pixel);
            }
            if constexpr (normalized) value[j] *= normalize.inverse_std[j];
          }
        }
        store_whole<source == Source::none>(dx, place, value);
        dx += dx_step;
      }
    }
  }
}

// At any stride.
template <class X>
__global__ void __launch_bounds__(kThreads, 3)
    frames_kernel(const TemporalPoolParams p, const Tiling tiling, const Extent extent, const int slice,
                  const Shares<typename Accumulate<X>::type> shares) {
  using Acc = typename Accumulate<X>::type;
  constexpr Access access = Access::single;
  using Frame = Patch<X, access>;
  constexpr int V = Frame::V, N = kGradientFrames;

  // 1. Elements and frames of this thread.
  int64_t outer, piece;
  if (!find_piece(tiling, outer, piece)) return;
  const Row row = locate_row(p, outer);
  const Place<access> place = place_of<access, V>(p, row, outer, piece, tiling.pieces);
  const int slice_begin = static_cast<int>(blockIdx.y) * slice;
  const int slice_end = min(static_cast<int>(p.T), slice_begin + slice);
  Statistics<Acc, V> normalize;
  normalize.read(p, place);

  // 2. The rows that weigh any of them are among [w_begin, w_end).
  int w_begin = static_cast<int>(p.W), w_end = 0;
#pragma unroll 1
  for (int w = 0; w < p.W; ++w) {
    if (span_of(band_of(p, row.clip, w), slice_begin, slice_end).empty()) continue;
    w_begin = min(w_begin, w);
    w_end = w + 1;
  }

  Acc mean_share[V] = {}, std_share[V] = {};
  for (int t = slice_begin; t < slice_end; t += N) {
    const int t_end = min(t + N, slice_end);
    Frame frame[N] = {};
#pragma unroll
    for (int u = 0; u < N; ++u) {
      if (p.x && t + u < t_end)
        load_within(frame[u], p, static_cast<const X*>(p.x) + row.x + (t + u) * p.x_t, place, extent);
    }

    // 3. G[u] = Σ_w A[w, t + u] g[w]
    Acc G[N][V] = {};
    bool weighed[N] = {};
#pragma unroll 1
    for (int w = w_begin; w < w_end; ++w) {
      const Band band = band_of(p, row.clip, w);
      const Span span = span_of(band, t, t_end);
      if (span.empty()) continue;
      Acc g[V];
      load_row(p.g, p.y_dtype, row.y + w * p.y_w, p.inner().y, place, g);
      const Acc* weights = weights_of<Acc>(p, row.clip, w, band);
#pragma unroll
      for (int u = 0; u < N; ++u) {
        if (!span.has(t + u)) continue;
        weighed[u] = true;
        const Acc weight = __ldg(weights + t + u);
#pragma unroll
        for (int j = 0; j < V; ++j) G[u][j] += weight * g[j];
      }
    }

    // 4. ∂L/∂x = G ψ'(z) / std; the shares are -∂L/∂x and -∂L/∂x z.
#pragma unroll
    for (int u = 0; u < N; ++u) {
      if (t + u >= t_end) break;
      Acc dx[V] = {};
      if (weighed[u]) {
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Acc z = normalize(frame[u][j], j);
          dx[j] = G[u][j] * dpsi_of<Nonlinearity::sqrt, access>(p, z) * normalize.inverse_std[j];
          mean_share[j] -= dx[j];
          std_share[j] -= dx[j] * z;
        }
      }
      if constexpr (sizeof(X) > 1) {
        if (p.dx) store_as<X>(p.dx, row.dx + (t + u) * p.dx_t, p.inner().dx, place, dx);
      }
    }
  }

  // 5. The shares of these frames.
  const int64_t begin = (blockIdx.y * tiling.outer + outer) * p.inner().size;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    if (!place.owns(j)) continue;
    if (shares.mean) shares.mean[begin + place.column(j)] = mean_share[j];
    if (shares.std) shares.std[begin + place.column(j)] = std_share[j];
  }
}

// Where frames of an element lie side by side, words hold those, and nothing is summed over them: a thread has the same
// word of several elements, which are so far apart that the words of a warp lie side by side, and that all begin alike.
constexpr int kSeries = 4;  // of which the loads are in flight together

struct Series {
  Tiling tiling;   // pieces are the words of the first `step` elements of an inner row
  uint32_t words;  // of an element, cut where those of ∂L/∂x are: the first may begin before frame 0
  int64_t step;    // from one element of a thread to the next
};

template <class X, Nonlinearity psi, Source source, Case given>
__global__ void __launch_bounds__(kThreads, kBlocks<X, given>)
    series_gradient(const TemporalPoolParams p, const Series series, const Extent extent) {
  using Acc = typename Accumulate<X>::type;
  using Word = Patch<X, Access::shifted>;
  constexpr int V = Word::V, N = kSeries;
  constexpr bool one_row = given == Case::one_row, normalized = given == Case::general;
  constexpr Acc factor = psi == Nonlinearity::sqrt ? Acc(0.5) : Acc(1);

  // 1. Elements i, i + step, … of an inner row, and frames [t, t + V) of these.
  int64_t outer, piece;
  if (!find_piece(series.tiling, outer, piece)) return;
  const Row row = locate_row(p, outer);
  const uint32_t first = static_cast<uint32_t>(piece) / series.words;
  X* dx = static_cast<X*>(p.dx) + row.dx + first * p.inner().dx;
  const int skew = static_cast<int>(reinterpret_cast<uint64_t>(dx) % 16 / sizeof(X));
  const int t = static_cast<int>((static_cast<uint32_t>(piece) - first * series.words) * V) - skew;
  const Place<Access::shifted> frames{outer, t, 1, max(0, -t), min(V, static_cast<int>(p.T) - t), row};
  if (frames.empty()) return;
  dx += t;
  const X* x = static_cast<const X*>(p.x);
  if constexpr (source != Source::none) x += row.x + first * p.inner().x;
  const int64_t dx_step = series.step * p.inner().dx, x_step = series.step * p.inner().x;

  Acc weight[V] = {};
  bool weighed[V] = {};  // a frame outside every band may be NaN
  const auto read_weights = [&](int w) {
    const Band band = band_of(p, row.clip, w);
    const Span span = span_of(band, t + frames.begin, t + frames.end);
    const Acc* weights = weights_of<Acc>(p, row.clip, w, band);
#pragma unroll
    for (int u = 0; u < V; ++u) {
      weight[u] = span.has(t + u) ? factor * __ldg(weights + t + u) : Acc(0);
      weighed[u] = weighed[u] || span.has(t + u);
    }
    return span;
  };
  if constexpr (one_row) read_weights(0);

  for (int64_t i = first; i < p.inner().size; i += N * series.step) {
    const auto element = [&](int k) { return i + k * series.step; };
    const auto has = [&](int k) { return element(k) < p.inner().size; };
    Word word[N];
    if (source == Source::alike && frames.template whole<V>()) {
#pragma unroll
      for (int k = 0; k < N; ++k)
        if (has(k)) read_word(x + k * x_step + t, word[k].word);
    } else if (source != Source::none) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        if (!has(k)) continue;
        if constexpr (source == Source::alike) word[k].load_singly(x + k * x_step, frames);
        if constexpr (source == Source::anywhere) load_within(word[k], p, x + k * x_step, frames, extent);
      }
    }
    if constexpr (source != Source::none) x += N * x_step;

    // 2. G[k][u] = Σ_w A[w, t + u] g[w, k]
    const Place<Access::single> elements{outer, i, series.step, 0, has(3) ? 4 : has(2) ? 3 : has(1) ? 2 : 1, row};
    static_assert(N == 4, "elements.end");
    Acc g[N], G[one_row ? 1 : N][V] = {};
    if constexpr (one_row) {
      load_row(p.g, p.y_dtype, row.y, p.inner().y, elements, g);
    } else {
#pragma unroll 1
      for (int w = 0; w < p.W; ++w) {
        const Span span = read_weights(w);
        if (span.empty()) continue;
        load_row(p.g, p.y_dtype, row.y + w * p.y_w, p.inner().y, elements, g);
#pragma unroll
        for (int u = 0; u < V; ++u) {
          if (!span.has(t + u)) continue;
#pragma unroll
          for (int k = 0; k < N; ++k) G[k][u] += weight[u] * g[k];
        }
      }
    }

    // 3. ∂L/∂x = G ψ'(z) / std
#pragma unroll
    for (int k = 0; k < N; ++k) {
      if (!has(k)) break;
      Normalization<Acc> n{0, 1};
      if constexpr (normalized) n = normalization_of<Acc>(p, channel_of(p, row, element(k)));
      if constexpr (source == Source::anywhere) word[k].align();
      Acc value[V];
#pragma unroll
      for (int u = 0; u < V; ++u) {
        value[u] = one_row ? weight[u] * g[k] : G[one_row ? 0 : k][u];
        if constexpr (psi != Nonlinearity::identity) {
          const Acc pixel = word[k][u];
          value[u] *= slope_of<psi, X, normalized>(normalized ? (pixel - n.mean) * n.inverse_std : pixel);
        }
        if constexpr (normalized) value[u] *= n.inverse_std;
        if (!weighed[u]) value[u] = 0;
      }
      store_whole<source == Source::none>(dx + k * dx_step, frames, value);
    }
    dx += N * dx_step;
  }
}

// --- ∂L/∂mean, ∂L/∂std -----------------------------------------------------------------------------------------------

// Where the elements of a channel stand among [outer, inner].
struct ChannelLayout {
  int64_t channels, place;     // of the rows, every `place` belong to one channel and the next to another
  int64_t rows, per_row;       // of one channel
  int64_t first, step;         // columns first·channel + step·m
};

inline ChannelLayout channel_layout(const TemporalPoolParams& p) {
  const int64_t outer = p.num_outer(), inner = p.inner().size;
  if (p.channel_period) return {1, 1, outer, inner / p.channel_period, 1, p.channel_period};
  if (p.inner().channel) return {1, 1, outer, 1, 1, 0};
  ChannelLayout layout{1, 1, outer, inner, 0, 1};
  for (int a = 0; a + 1 < p.num_axes; ++a) {
    if (layout.channels > 1) layout.place *= p.axes[a].size;
    if (p.axes[a].channel) layout.channels = p.axes[a].size;
  }
  layout.rows = outer / layout.channels;
  return layout;
}

// partials[part, channel] = Σ of the channel's shares in all slices, for a part of its elements.
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    add_channels(const Acc* __restrict__ shares, const ChannelLayout layout, const int64_t outer, const int64_t inner,
                 const int slices, const int64_t channels, const int parts, double* __restrict__ partials) {
  __shared__ BlockSums<1> sums;
  const int64_t channel = blockIdx.x % channels, part = blockIdx.x / channels;
  const int64_t size = layout.rows * layout.per_row;
  double sum = 0;
  for (int64_t n = part * kThreads + threadIdx.x; n < size; n += static_cast<int64_t>(parts) * kThreads) {
    const int64_t q = n / layout.per_row, m = n - q * layout.per_row;
    const int64_t row = (q / layout.place * layout.channels + (layout.channels > 1 ? channel : 0)) * layout.place +
                        q % layout.place;
    const Acc* share = shares + row * inner + layout.first * channel + layout.step * m;
    for (int slice = 0; slice < slices; ++slice) sum += share[slice * outer * inner];
  }
  sums.value[0][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) partials[blockIdx.x] = sums.add(0);
}

// --- launchers -------------------------------------------------------------------------------------------------------

// ∂L/∂mean or ∂L/∂std of the shares; zero where there are none.
template <class Acc>
void launch_add_channels(const TemporalPoolParams& p, const Acc* shares, int slices, void* out,
                         const Context& context) {
  const int64_t elements = p.num_outer() * p.inner().size;
  const int64_t parts = slices == 0 ? 0 : std::min<int64_t>(256, ceil_div(elements, p.channels * kThreads * 8));
  double* partials = context.memory<double>(p.channels * parts);
  if (parts > 0) {
    launch(add_channels<Acc>, dim3(grid_size(p.channels * parts)), dim3(kThreads), context.stream, shares,
           channel_layout(p), p.num_outer(), p.inner().size, slices, p.channels,
           static_cast<int>(parts), partials);
  }
  launch_add_parts<Acc>(p, partials, static_cast<int>(parts), false, p.channels, out, context);
}

// Frames of a slice, in multiples of `unit`: long slices are read at a stretch, short ones fill the card.
inline int64_t slice_of(const TemporalPoolParams& p, int64_t unit, int64_t tiles, const Context& context) {
  const int64_t wanted = ceil_div(context.blocks_wanted(), tiles);
  return unit * std::max(ceil_div(p.T, wanted * unit), ceil_div(p.T, 65535));
}

template <class X>
void launch_frames(const TemporalPoolParams& p, const Context& context) {
  using Acc = typename Accumulate<X>::type;
  const Tiling tiling = make_tiling(p, patch_size<X, Access::single>);
  const int64_t elements = tiling.outer * p.inner().size;
  const int64_t frames = elements * p.T == 0 ? 0 : slice_of(p, kGradientFrames, tiling.tiles, context);
  const int slices = frames == 0 ? 0 : static_cast<int>(ceil_div(p.T, frames));

  Shares<Acc> shares;
  shares.mean = context.memory<Acc>(p.dmean ? slices * elements : 0);
  shares.std = context.memory<Acc>(p.dstd ? slices * elements : 0);
  if (slices > 0) {
    launch(frames_kernel<X>, dim3(grid_size(tiling.tiles), slices), dim3(kThreads), context.stream, p, tiling,
           extent_of(p), static_cast<int>(frames), shares);
  }
  if (p.dmean) launch_add_channels<Acc>(p, shares.mean, slices, p.dmean, context);
  if (p.dstd) launch_add_channels<Acc>(p, shares.std, slices, p.dstd, context);
}

template <class X, Nonlinearity psi, Source source, Case given>
void launch_words(const TemporalPoolParams& p, const Context& context) {
  constexpr int V = patch_size<X, Access::shifted>;
  Words words;
  words.tiling = make_tiling(p, V, aligned(p, p.dx, p.x_dtype, &Axis::dx, p.dx_t, p.T, 16) ? 0 : V - 1);
  words.log_period = 0;
  while (p.dx_t % (V >> words.log_period) != 0) ++words.log_period;
  while (words.log_period > 0 && p.T <= 1 << (words.log_period - 1)) --words.log_period;
  words.log_groups = 0;  // more where blocks are few
  while (words.log_groups < words.log_period && words.tiling.tiles << words.log_groups < context.blocks_wanted())
    ++words.log_groups;
  const int64_t blocks = words.tiling.tiles << words.log_groups;
  if (blocks * p.T == 0) return;
  words.y = extent_of(p, p.g, p.y_dtype, &Axis::y, p.y_w, p.W);
  words.slice = static_cast<int>(slice_of(p, frames_at_once<source> << words.log_period, blocks, context));
  launch(words_gradient<X, psi, source, given>, dim3(grid_size(blocks), ceil_div(p.T, words.slice)), dim3(kThreads),
         context.stream, p, words, extent_of(p));
}

// Whether frames lie side by side, and are enough for words.
template <class X>
bool in_series(const TemporalPoolParams& p) {
  constexpr int V = patch_size<X, Access::shifted>;
  return p.dx_t == 1 && (!p.x || p.x_t == 1) && p.T >= V && p.inner().size + V < UINT32_MAX / (p.T / V + 2);
}

template <class X, Nonlinearity psi, Source source, Case given>
void launch_series(const TemporalPoolParams& p, const Context& context) {
  constexpr int V = patch_size<X, Access::shifted>;
  bool flush = reinterpret_cast<uintptr_t>(p.dx) % 16 == 0;  // whether every element's first frame begins a word
  for (int a = 0; a < p.num_axes; ++a) flush = flush && (p.axes[a].size == 1 || p.axes[a].dx % V == 0);
  Series series;
  series.words = static_cast<uint32_t>(ceil_div(flush ? p.T : p.T + V - 1, V));
  const int64_t outer = p.num_outer(), size = p.inner().size;
  // As many elements as leave threads for the card: a thread reads its weights, or finds its place, once for all.
  const int64_t rounds = outer * size * series.words / (kSeries * kThreads * 4 * context.blocks_wanted());
  series.step = ceil_div(size, kSeries * std::min<int64_t>(4, std::max<int64_t>(1, rounds)));
  if (!flush) series.step = ceil_div(series.step, V) * V;
  const int64_t pieces = std::min(series.step, size) * series.words;
  series.tiling = {outer, pieces, ceil_div(outer * pieces, kThreads)};
  if (series.tiling.tiles == 0) return;
  launch(series_gradient<X, psi, source, given>, dim3(grid_size(series.tiling.tiles)), dim3(kThreads), context.stream,
         p, series, extent_of(p));
}

// The kernel that takes the most for granted.
template <class X, Nonlinearity psi, Source source, Case given>
void launch_gradient(const TemporalPoolParams& p, bool series, const Context& context) {
  if (series) return launch_series<X, psi, source, given>(p, context);
  launch_words<X, psi, source, given>(p, context);
}
template <class X, Nonlinearity psi, Source source>
void launch_gradient(const TemporalPoolParams& p, bool series, const Context& context) {
  if (p.mean || p.std) return launch_gradient<X, psi, source, Case::general>(p, series, context);
  if (p.W > 1) return launch_gradient<X, psi, source, Case::plain>(p, series, context);
  launch_gradient<X, psi, source, Case::one_row>(p, series, context);
}
template <class X, Nonlinearity psi>
void launch_gradient(const TemporalPoolParams& p, bool series, const Context& context) {
  if constexpr (psi == Nonlinearity::identity) {
    launch_gradient<X, psi, Source::none>(p, series, context);
  } else if (alike<X>(p)) {
    launch_gradient<X, psi, Source::alike>(p, series, context);
  } else {
    launch_gradient<X, psi, Source::anywhere, Case::general>(p, series, context);
  }
}

template <class X, Nonlinearity psi>
void launch_dx(TemporalPoolParams p, const Context& context) {
  if (p.W == 0) return launch_frames<X>(p, context);  // zeros; weights and g may be null
  if (psi == Nonlinearity::identity) p.x = nullptr;   // plays no part
  if constexpr (has_word_path<X>) {
    if (launch_plain<X, psi>(p, context)) return;
    if constexpr (psi == Nonlinearity::sqrt)
      if (!alike<X>(p) && launch_cropped<X>(p, context)) return;
    const bool series = !in_words(p, p.g) && in_series<X>(p);
    if (series || (p.inner().dx == 1 && (!p.x || p.inner().x == 1)))
      return launch_gradient<X, psi>(p, series, context);
  }
  launch_frames<X>(p, context);
}

template <class X, Nonlinearity psi>
void launch_backward(const TemporalPoolParams& p, const Context& context) {
  // ∂L/∂mean and ∂L/∂std are rarely wanted: the scalar path has them, and words are for ∂L/∂x alone.
  if (p.dmean || p.dstd) {
    launch_frames<X>(p, context);
  } else if constexpr (sizeof(X) > 1) {
    if (p.dx) launch_dx<X, psi>(p, context);
  }
  if (p.dweights) launch_dweights<X, psi>(p, context);
}

}  // namespace

template <class X>
void backward(const TemporalPoolParams& p, const Context& context) {
  return p.nonlinearity == Nonlinearity::identity ? launch_backward<X, Nonlinearity::identity>(p, context)
                                                  : launch_backward<X, Nonlinearity::sqrt>(p, context);
}

}  // namespace dynpool::cuda
