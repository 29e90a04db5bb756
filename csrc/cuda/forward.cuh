// y[w, i] = Σ_k A[w, k] · ψ(z[first + k, i]): a thread owns V elements and walks the frames, with the sums of up to R
// rows in registers. A row takes a free register slot when the walk comes to its first frame and leaves it after its
// last, so that frames are read once however rows overlap, as long as no more than R overlap at a time.
#pragma once
#include "launchers.h"
#include "patch.cuh"

namespace dynpool::cuda {
namespace {

constexpr int kFrames = 4;        // of which the loads are in flight together
constexpr int kMinSlice = 8;      // frames that are worth a slice of their own
constexpr int kSlots = 4;         // rows that share a walk

// What block (x, y, z) does: tile x, rows [y·rows, …), frames [z·frames, …). With several slices of frames the sums go
// to `partials`, Acc [slices, W, outer, inner], and are added up by add_slices.
struct Split {
  int rows, frames;
  int row_parts, slices;
  void* partials;
};

// What happens to a pixel inside the sum. `any`: normalisation, and ψ as the parameters say; for the scalar path, whose
// loads hide it.
enum class Mode { identity, root, normalized_root, any };

template <Mode mode, class X, class Acc>
__device__ __forceinline__ Acc pixel(const TemporalPoolParams& p, Acc x, Acc mean, Acc inverse_std) {
  if constexpr (mode == Mode::identity) return x;
  if constexpr (mode == Mode::any) {
    if (p.nonlinearity == Nonlinearity::identity) return (x - mean) * inverse_std;
    return apply_psi<Nonlinearity::sqrt>((x - mean) * inverse_std);
  }
  if constexpr (mode == Mode::root && sizeof(X) == 1) return quick_root(x);
  const Acc z = mode == Mode::normalized_root ? (x - mean) * inverse_std : x;
  if constexpr (sizeof(X) == 1) return with_sign(quick_root(magnitude(z)), z);
  return apply_psi<Nonlinearity::sqrt>(z);
}

// Rows of a walk, in registers: every index is known when loops are unrolled.
template <class X, Mode mode, bool vector, int R>
struct Walk {
  using Acc = typename Accumulate<X>::type;
  using Frame = Patch<X, vector>;
  static constexpr int V = Frame::V;

  const TemporalPoolParams& p;
  const Place<vector>& place;
  const X* x;                      // frame 0 of this inner row
  static constexpr bool inside = mode == Mode::normalized_root || mode == Mode::any;
  Acc mean[V], inverse_std[V];     // used inside only
  int row[R], first[R], end[R];    // frames [first, end) of row; a free slot has row < 0
  bool active[R];                  // whether the frames being added belong to the row
  const Acc* weights[R];           // of frame 0
  Acc weight_sum[R];
  Acc sum[R][V];

  __device__ __forceinline__ Walk(const TemporalPoolParams& p, const Place<vector>& place)
      : p(p), place(place), x(static_cast<const X*>(p.x) + place.row.x) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      row[r] = -1;
      clear(r);
    }
    if constexpr (inside) {
      for_each_channel<V>(p, place, [&](int j, int64_t channel) {
        const Normalization<Acc> n = normalization_of<Acc>(p, channel);
        mean[j] = n.mean;
        inverse_std[j] = n.inverse_std;
      });
    }
  }

  __device__ __forceinline__ void clear(int r) {
    weight_sum[r] = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) sum[r][j] = 0;
  }

  __device__ __forceinline__ bool idle() const {
    bool idle = true;
#pragma unroll
    for (int r = 0; r < R; ++r) idle = idle && row[r] < 0;
    return idle;
  }

  // Gives free slots the next rows, in order. A row of which frames have passed waits for the next walk.
  __device__ __forceinline__ void take_rows(int& next, int last, int t, int slice_begin, int slice_end) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (row[r] >= 0 || next == last) continue;
      const Band band = band_of(p, place.row.clip, next);
      const int begin = max(static_cast<int>(band.first), slice_begin);
      const int stop = min(static_cast<int>(band.first + band.count), slice_end);
      if (begin < stop && begin < t) return;
      row[r] = next;
      first[r] = begin < stop ? begin : t;
      end[r] = begin < stop ? stop : t;
      weights[r] = static_cast<const Acc*>(p.weights) + (place.row.clip * p.W + next) * p.K - band.first;
      ++next;
    }
  }

  // From t on, until which frame are the same rows active?
  __device__ __forceinline__ int next_edge(int t) {
    int edge = INT32_MAX;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      active[r] = row[r] >= 0 && first[r] <= t;
      if (row[r] >= 0) edge = min(edge, active[r] ? end[r] : first[r]);
    }
    return edge;
  }

  __device__ __forceinline__ bool any_active() const {
    bool any = false;
#pragma unroll
    for (int r = 0; r < R; ++r) any = any || active[r];
    return any;
  }

  // sum[r] += Σ_u A[r, t + u] ψ(z[t + u]) for u < N and the active rows.
  template <int N>
  __device__ __forceinline__ void add_frames(int t) {
    Frame frame[N];
#pragma unroll
    for (int u = 0; u < N; ++u) frame[u].load(x + (t + u) * p.x_t, place, p.inner().x);
#pragma unroll
    for (int u = 0; u < N; ++u) {
      Acc value[V];
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = pixel<mode, X>(p, frame[u][j], mean[j], inverse_std[j]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (R > 1 && !active[r]) continue;
        const Acc weight = __ldg(weights[r] + t + u);
        if constexpr (mode == Mode::identity) weight_sum[r] += weight;
#pragma unroll
        for (int j = 0; j < V; ++j) sum[r][j] += weight * value[j];
      }
    }
  }

  // Moves the sums of one row that ends at t out of its slot; -1 where there is none.
  __device__ __forceinline__ int finish_row(int t, Acc (&value)[V], Acc& weights_of_value) {
    int finished = -1;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (finished >= 0 || row[r] < 0 || end[r] > t) continue;
      finished = row[r];
      weights_of_value = weight_sum[r];
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = sum[r][j];
      row[r] = -1;
      clear(r);
    }
    return finished;
  }

  // Normalisation where it may wait until after the sum (pixel.h).
  __device__ __forceinline__ void normalize(Acc (&value)[V], Acc weights_of_value) const {
    if (inside || (!p.mean && !p.std)) return;
    for_each_channel<V>(p, place, [&](int j, int64_t channel) {
      const Normalization<Acc> n = normalization_of<Acc>(p, channel);
      if constexpr (mode == Mode::identity) value[j] = (value[j] - n.mean * weights_of_value) * n.inverse_std;
      if constexpr (mode == Mode::root) value[j] *= apply_psi<Nonlinearity::sqrt>(n.inverse_std);
    });
  }
};

// Blocks that share a multiprocessor's registers: as many as need no spills.
template <class X, Mode mode, int R>
constexpr int forward_blocks() {
  if (sizeof(X) == 8) return 3;
  if (R > 1) return sizeof(X) == 1 ? 2 : 3;
  if (mode == Mode::normalized_root || mode == Mode::any) return 4;
  return sizeof(X) == 1 ? 5 : 6;
}

template <class X, Mode mode, bool vector, int R>
__global__ void __launch_bounds__(kThreads, (forward_blocks<X, mode, R>()))
    forward_kernel(const TemporalPoolParams p, const Tiling tiling, const Split split) {
  using Acc = typename Accumulate<X>::type;
  constexpr int V = patch_size<X, vector>;

  // 1. Elements, rows and frames of this thread.
  const Place<vector> place = place_of_thread<vector, V>(p, tiling);
  if (place.empty()) return;
  const int slice_begin = static_cast<int>(blockIdx.z) * split.frames;
  const int slice_end = min(static_cast<int>(p.T), slice_begin + split.frames);
  int next = static_cast<int>(blockIdx.y) * split.rows;
  const int last = min(static_cast<int>(p.W), next + split.rows);

  Walk<X, mode, vector, R> walk(p, place);
  int t = slice_begin;
  while (true) {
    // 2. Rows enter at t; when the last walk is over and rows are left, a new one begins.
    if (walk.idle()) {
      if (next == last) return;
      t = slice_begin;
    }
    walk.take_rows(next, last, t, slice_begin, slice_end);

    // 3. The frames until a row begins or ends.
    const int edge = walk.next_edge(t);
    if (walk.any_active()) {
      for (; t + kFrames <= edge; t += kFrames) walk.template add_frames<kFrames>(t);
      if ((edge - t) & 2) {
        walk.template add_frames<2>(t);
        t += 2;
      }
      if (t < edge) walk.template add_frames<1>(t);
    }
    t = edge;

    // 4. Rows that end at t are written.
    Acc value[V], weights_of_value;
    for (int w; (w = walk.finish_row(t, value, weights_of_value)) >= 0;) {
      walk.normalize(value, weights_of_value);
      if (split.slices > 1) {
        Acc* partial = static_cast<Acc*>(split.partials) +
                       ((blockIdx.z * p.W + w) * tiling.outer + place.outer) * p.inner().size;
#pragma unroll
        for (int j = 0; j < V; ++j)
          if (place.owns(j)) partial[place.column(j)] = value[j];
      } else {
        store_row(p.y, p.y_dtype, place.row.y + w * p.y_w, p.inner().y, place, value);
      }
    }
  }
}

// y[n] = Σ_slices partials[slice, n], in order.
template <class Acc>
__global__ void __launch_bounds__(kThreads)
    add_slices(const TemporalPoolParams p, const Acc* __restrict__ partials, const int slices, const int64_t outer) {
  const int64_t inner = p.inner().size, size = p.W * outer * inner;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (n >= size) return;
  Acc value[1] = {0};
#pragma unroll 4
  for (int slice = 0; slice < slices; ++slice) value[0] += partials[slice * size + n];

  const int64_t i = n % inner, w = n / inner / outer;
  const Row row = locate_row(p, n / inner % outer);
  const Place<false> place{0, i, inner, 1, row};
  store_row(p.y, p.y_dtype, row.y + w * p.y_w, p.inner().y, place, value);
}

// --- launchers -------------------------------------------------------------------------------------------------------

// Parts of W first, which cost no second phase; then slices of T.
inline Split make_split(const TemporalPoolParams& p, int64_t tiles, int64_t wanted) {
  const int64_t row_parts = std::min({ceil_div(wanted, tiles), ceil_div(p.W, kSlots), int64_t{65535}});
  const int64_t blocks = tiles * row_parts;
  int64_t slices = 2 * blocks > wanted ? 1 : std::min({wanted / blocks, p.T / kMinSlice, int64_t{65535}});
  slices = std::max<int64_t>(slices, 1);
  Split split;
  split.rows = static_cast<int>(ceil_div(p.W, row_parts));
  split.row_parts = static_cast<int>(ceil_div(p.W, split.rows));
  split.frames = static_cast<int>(std::max<int64_t>(1, ceil_div(p.T, slices)));
  split.slices = static_cast<int>(std::max<int64_t>(1, ceil_div(p.T, split.frames)));
  split.partials = nullptr;
  return split;
}

template <class X, Mode mode, bool vector>
void launch_mode(const TemporalPoolParams& p, const Tiling& tiling, const Split& split, cudaStream_t stream) {
  const dim3 grid(grid_size(tiling.tiles), split.row_parts, split.slices);
  constexpr int slots = sizeof(X) == 8 ? 1 : kSlots;  // float64 is rare: rows walk one by one
  const bool one = vector && p.W == 1;
  const auto kernel = one ? forward_kernel<X, mode, vector, vector ? 1 : slots> : forward_kernel<X, mode, vector, slots>;
  launch(kernel, grid, tiling.block, stream, p, tiling, split);
}

template <class X, bool vector>
void launch_forward(const TemporalPoolParams& p, const Context& context) {
  using Acc = typename Accumulate<X>::type;
  const Tiling tiling = make_tiling(p, patch_size<X, vector>);
  Split split = make_split(p, tiling.tiles, context.blocks_wanted());
  const int64_t size = p.W * tiling.outer * p.inner().size;
  Acc* partials = context.memory<Acc>(split.slices > 1 ? split.slices * size : 0);
  split.partials = partials;

  if constexpr (!vector) {
    launch_mode<X, Mode::any, vector>(p, tiling, split, context.stream);
  } else if (p.nonlinearity == Nonlinearity::identity) {
    launch_mode<X, Mode::identity, vector>(p, tiling, split, context.stream);
  } else if (!normalizes_inside<Nonlinearity::sqrt>(p)) {
    launch_mode<X, Mode::root, vector>(p, tiling, split, context.stream);
  } else {
    launch_mode<X, Mode::normalized_root, vector>(p, tiling, split, context.stream);
  }
  if (partials) {
    launch(add_slices<Acc>, dim3(grid_size(ceil_div(size, kThreads))), dim3(kThreads), context.stream, p,
           static_cast<const Acc*>(partials), split.slices, tiling.outer);
  }
}

}  // namespace

template <class X>
void forward(const TemporalPoolParams& p, const Context& context) {
  if constexpr (has_word_path<X>)
    if (in_words(p, p.y)) return launch_forward<X, true>(p, context);
  launch_forward<X, false>(p, context);
}

}  // namespace dynpool::cuda
