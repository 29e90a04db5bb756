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
template <class X, Mode mode, Access access, int R>
struct Walk {
  using Acc = typename Accumulate<X>::type;
  using Frame = Patch<X, access>;
  static constexpr int V = Frame::V;

  const TemporalPoolParams& p;
  const Place<access>& place;
  const Extent& extent;
  const X* x;                      // frame 0 of this inner row
  const int at_once;               // frames; 1 where some must be read by single pixels
  static constexpr bool inside = mode == Mode::normalized_root || mode == Mode::any;
  static constexpr bool weights_ahead = R == 1 && !(inside && access == Access::shifted);  // where registers suffice
  Acc mean[V], inverse_std[V];     // used inside only
  int row[R], first[R], end[R];    // frames [first, end) of row; a free slot has row < 0
  bool active[R];                  // whether the frames being added belong to the row
  const Acc* weights[R];           // of frame 0
  Acc weight_sum[R];
  Acc sum[R][V];

  __device__ __forceinline__ Walk(const TemporalPoolParams& p, const Place<access>& place, const Extent& extent)
      : p(p), place(place), extent(extent), x(static_cast<const X*>(p.x) + place.row.x),
        at_once(access != Access::shifted || all_fit(p, x, place.first, extent) ? kFrames : 1) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      row[r] = -1;
      clear(r);
    }
    if constexpr (inside) {
#pragma unroll
      for (int j = 0; j < V; ++j) mean[j] = 0, inverse_std[j] = 1;
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

  // sum[r] += Σ_u A[r, t + u] ψ(z[t + u]) for u < count <= at_once and the active rows.
  __device__ __forceinline__ void add_frames(int t, int count) {
    Frame frame[kFrames];
    Acc weight[kFrames];
    const X* from = x + t * p.x_t;
#pragma unroll
    for (int u = 0; u < kFrames; ++u) {
      if (u < count) {
        if (u == 0) load_within(frame[u], p, from, place, extent);
        if (u > 0) frame[u].load(p, from, place);
        if constexpr (weights_ahead) weight[u] = __ldg(weights[0] + t + u);
      }
      from += p.x_t;
    }
#pragma unroll
    for (int u = 0; u < kFrames; ++u) {
      if (u >= count) break;
      frame[u].align();
      Acc value[V];
#pragma unroll
      for (int j = 0; j < V; ++j) value[j] = pixel<mode, X>(p, frame[u][j], mean[j], inverse_std[j]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (R > 1 && !active[r]) continue;
        if constexpr (!weights_ahead) weight[u] = __ldg(weights[r] + t + u);
        if constexpr (mode == Mode::identity) weight_sum[r] += weight[u];
#pragma unroll
        for (int j = 0; j < V; ++j) sum[r][j] += weight[u] * value[j];
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
    if (inside) return;
    if (mode == Mode::identity && p.mean)
      for_each_channel<V>(p, place, [&](int j, int64_t channel) {
        value[j] -= weights_of_value * static_cast<const Acc*>(p.mean)[channel];
      });
    if (p.std)
      for_each_channel<V>(p, place, [&](int j, int64_t channel) {
        const Acc inverse = reciprocal(static_cast<const Acc*>(p.std)[channel]);
        value[j] *= mode == Mode::root ? apply_psi<Nonlinearity::sqrt>(inverse) : inverse;
      });
  }
};

// Row w of a thread's elements: to y, or to the partial sums of its slice.
template <int V, Access access, class Acc>
__device__ __forceinline__ void write_row(const TemporalPoolParams& p, const Tiling& tiling, const Split& split, int w,
                                          const Place<access>& place, const Acc (&value)[V]) {
  if (split.slices > 1) {
    const int64_t row = (blockIdx.z * p.W + w) * tiling.outer + place.outer;
    store_as<Acc>(split.partials, row * p.inner().size, 1, place, value);
  } else {
    store_row(p.y, p.y_dtype, place.row.y + w * p.y_w, p.inner().y, place, value);
  }
}

// Blocks that share a multiprocessor's registers: as many as need no spills.
template <class X, Mode mode, Access access, int R>
constexpr int forward_blocks() {
  if (sizeof(X) == 8) return 3;
  if (R > 1) return sizeof(X) == 1 ? 2 : 3;
  if (mode == Mode::normalized_root || mode == Mode::any) return access == Access::shifted ? 3 : 4;
  return access == Access::shifted ? (sizeof(X) == 4 ? 5 : 4) : sizeof(X) == 1 ? 5 : 6;
}

template <class X, Mode mode, Access access, int R>
__global__ void __launch_bounds__(kThreads, (forward_blocks<X, mode, access, R>()))
    forward_kernel(const TemporalPoolParams p, const Tiling tiling, const Extent extent, const Split split) {
  using Acc = typename Accumulate<X>::type;
  constexpr int V = patch_size<X, access>;

  // 1. Elements, rows and frames of this thread.
  int64_t outer, piece;
  if (!find_piece(tiling, outer, piece)) return;
  const Place<access> place = place_of<access, V>(p, locate_row(p, outer), outer, piece, tiling.pieces);
  const int slice_begin = static_cast<int>(blockIdx.z) * split.frames;
  const int slice_end = min(static_cast<int>(p.T), slice_begin + split.frames);
  int next = static_cast<int>(blockIdx.y) * split.rows;
  const int last = min(static_cast<int>(p.W), next + split.rows);

  Walk<X, mode, access, R> walk(p, place, extent);
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
    if (walk.any_active())
      for (; t < edge; t += walk.at_once) walk.add_frames(t, min(edge - t, walk.at_once));
    t = edge;

    // 4. Rows that end at t are written.
    Acc value[V], weights_of_value;
    for (int w; (w = walk.finish_row(t, value, weights_of_value)) >= 0;) {
      walk.normalize(value, weights_of_value);
      write_row(p, tiling, split, w, place, value);
    }
  }
}

// Where frames of an element lie side by side, words hold those: a thread owns one element and goes through its rows.
template <class X>
__global__ void __launch_bounds__(kThreads)
    series_kernel(const TemporalPoolParams p, const Tiling tiling, const Extent extent, const Split split) {
  using Acc = typename Accumulate<X>::type;
  constexpr int V = patch_size<X, Access::shifted>;

  // 1. Element, rows and frames of this thread.
  int64_t outer, i;
  if (!find_piece(tiling, outer, i)) return;
  const Place<Access::single> place{outer, i, 1, 0, 1, locate_row(p, outer)};
  const X* x = static_cast<const X*>(p.x) + place.row.x + i * p.inner().x;
  const Normalization<Acc> n = normalization_of<Acc>(p, channel_of(p, place.row, i));
  const int slice_begin = static_cast<int>(blockIdx.z) * split.frames;
  const int slice_end = min(static_cast<int>(p.T), slice_begin + split.frames);
  const int row_begin = static_cast<int>(blockIdx.y) * split.rows;
  const int row_end = min(static_cast<int>(p.W), row_begin + split.rows);

  for (int w = row_begin; w < row_end; ++w) {
    const Band band = band_of(p, place.row.clip, w);
    const int begin = max(static_cast<int>(band.first), slice_begin);
    const int end = min(static_cast<int>(band.first + band.count), slice_end);
    const Acc* weights = static_cast<const Acc*>(p.weights) + (place.row.clip * p.W + w) * p.K - band.first;

    // 2. V frames at a time.
    Acc sum[1] = {0};
    for (int t = begin; t < end; t += V) {
      const Place<Access::shifted> frames{outer, t, 1, 0, min(V, end - t), place.row};
      Patch<X, Access::shifted> patch;
      load_within(patch, p, x, frames, extent);
      patch.align();
#pragma unroll
      for (int u = 0; u < V; ++u)
        if (frames.owns(u)) sum[0] += __ldg(weights + t + u) * pixel<Mode::any, X>(p, patch[u], n.mean, n.inverse_std);
    }
    write_row(p, tiling, split, w, place, sum);
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
  const Place<Access::single> place{0, i, 1, 0, 1, row};
  store_row(p.y, p.y_dtype, row.y + w * p.y_w, p.inner().y, place, value);
}

// --- launchers -------------------------------------------------------------------------------------------------------

// As many blocks as run at once, for each slice has sums to write. Parts of W first, which cost no second phase; then
// slices of T.
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

struct Choice {
  void (*kernel)(TemporalPoolParams, Tiling, Extent, Split);
  int patch;   // elements that a thread owns
  int blocks;  // that fit a multiprocessor
};

template <class X, Mode mode, Access access, int R>
Choice choice_of() {
  return {forward_kernel<X, mode, access, R>, patch_size<X, access>, forward_blocks<X, mode, access, R>()};
}

template <class X, Access access>
Choice choose_words(const TemporalPoolParams& p) {
  const bool one = p.W == 1;
  if (p.nonlinearity == Nonlinearity::identity)
    return one ? choice_of<X, Mode::identity, access, 1>() : choice_of<X, Mode::identity, access, kSlots>();
  if (!normalizes_inside<Nonlinearity::sqrt>(p))
    return one ? choice_of<X, Mode::root, access, 1>() : choice_of<X, Mode::root, access, kSlots>();
  return one ? choice_of<X, Mode::normalized_root, access, 1>()
             : choice_of<X, Mode::normalized_root, access, kSlots>();
}

// The kernel for frames laid out like these.
template <class X>
Choice choose(const TemporalPoolParams& p) {
  if constexpr (has_word_path<X>) {
    if (in_words(p, p.y)) return choose_words<X, Access::aligned>(p);
    if (p.inner().x == 1 && p.inner().size > 1) return choose_words<X, Access::shifted>(p);
    if (p.x_t == 1 && p.T >= patch_size<X, Access::shifted>) return {series_kernel<X>, 1, 8};
  }
  return choice_of<X, Mode::any, Access::single, sizeof(X) == 8 ? 1 : kSlots>();  // float64 is rare: rows one by one
}

}  // namespace

template <class X>
void forward(const TemporalPoolParams& p, const Context& context) {
  using Acc = typename Accumulate<X>::type;
  const Choice choice = choose<X>(p);
  const Tiling tiling = make_tiling(p, choice.patch);
  Split split = make_split(p, tiling.tiles, int64_t{choice.blocks} * multiprocessors(context.device));
  const int64_t size = p.W * tiling.outer * p.inner().size;
  Acc* partials = context.memory<Acc>(split.slices > 1 ? split.slices * size : 0);
  split.partials = partials;

  const dim3 grid(grid_size(tiling.tiles), split.row_parts, split.slices);
  launch(choice.kernel, grid, dim3(kThreads), context.stream, p, tiling, extent_of(p), split);
  if (partials) {
    launch(add_slices<Acc>, dim3(grid_size(ceil_div(size, kThreads))), dim3(kThreads), context.stream, p,
           static_cast<const Acc*>(partials), split.slices, tiling.outer);
  }
}

}  // namespace dynpool::cuda
