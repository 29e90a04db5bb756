// y[w, i] = Σ_k A[w, k] · ψ(z[first + k, i]), all cases: a thread owns V elements of a pooled row, or of several rows whose
// frames overlap, and goes through their frames with the sums in registers. The usual cases have kernels of their own: rows
// that share no frame (plain.cuh; series.cuh where frames lie side by side), and windows (windows.cuh).
#pragma once
#include "launchers.h"
#include "mode.cuh"
#include "patch.cuh"
#include "plain.cuh"
#include "series.cuh"
#include "windows.cuh"

namespace dynpool::cuda {
namespace {

constexpr int kMinSlice = 8;  // frames that are worth a slice of their own
constexpr int kTogether = 4;  // rows that share their frames

// What block (x, y, z) does: tile x, rows [y·rows, …), frames [z·frames, …). With several slices of frames the sums go
// to `partials`, Acc [slices, W, outer, inner], and are added up by add_slices. The threads of a block may be in several
// `teams` (a power of 2), each with the same pieces and frames of its own of one row.
struct Split {
  int rows, frames;
  int row_parts, slices, teams;
  void* partials;
};

// As plain_pixel (mode.cuh), also with normalisation, and with a ψ that only the parameters know.
template <Mode mode, class X, class Acc>
__device__ __forceinline__ Acc pixel(const TemporalPoolParams& p, Acc x, Acc mean, Acc inverse_std) {
  if constexpr (mode == Mode::any) {
    if (p.nonlinearity == Nonlinearity::identity) return (x - mean) * inverse_std;
    return apply_psi<Nonlinearity::sqrt>((x - mean) * inverse_std);
  } else if constexpr (mode == Mode::normalized_root) {
    const Acc z = (x - mean) * inverse_std;
    if constexpr (sizeof(X) == 1) return with_sign(quick_root(magnitude(z)), z);
    return apply_psi<Nonlinearity::sqrt>(z);
  } else {
    return plain_pixel<mode, X>(x);
  }
}

// What a kernel is made of.
template <class X, Mode mode, Access access, int R>
struct Shape {
  using Acc = typename Accumulate<X>::type;
  using Frame = Patch<X, access>;
  static constexpr int V = Frame::V;
  static constexpr bool inside = mode == Mode::normalized_root || mode == Mode::any;  // normalises each pixel
  static constexpr bool looks_up = mode == Mode::known_root;
  static constexpr bool ahead = access == Access::shifted;  // words are fetched by way of shared memory
  static constexpr bool in_teams = R == 1 && access != Access::single;
  static constexpr int threads = looks_up ? 2 * kThreads : kThreads;  // of a block
  static constexpr int frames = looks_up ? 8 : 4;                     // read and added together
};

// Of the blocks whose threads look roots up, or are in teams, or fetch their words ahead.
template <class S>
struct TeamSums {
  typename S::Acc sum[S::V][S::threads], weights[S::threads];
};
template <class S>
struct Ahead {
  uint4 word[2][S::frames][2][S::threads];
};
template <class S>
struct Shared {
  std::conditional_t<S::looks_up, Roots, Nothing> roots;
  union {
    std::conditional_t<S::ahead, Ahead<S>, Nothing> frames;
    std::conditional_t<S::in_teams, TeamSums<S>, Nothing> teams;
  };
};

// The sums of R rows, in registers: every index is known when loops are unrolled.
template <class X, Mode mode, Access access, int R>
struct Sums {
  using S = Shape<X, mode, access, R>;
  using Acc = typename S::Acc;
  using Frame = typename S::Frame;
  static constexpr int V = S::V;

  const TemporalPoolParams& p;
  const Place<access>& place;
  const Extent& extent;
  Shared<S>& shared;
  const X* x;                    // frame 0 of this inner row
  const bool fits;               // whether all frames may be read by words
  Acc mean[V], inverse_std[V];   // used inside only
  int first[R], end[R];          // frames [first, end) of each row
  const Acc* weights[R];         // of frame 0
  Acc weight_sum[R];
  Acc sum[R][V];

  __device__ __forceinline__ Sums(const TemporalPoolParams& p, const Place<access>& place, const Extent& extent,
                                  Shared<S>& shared, bool works)
      : p(p), place(place), extent(extent), shared(shared), x(static_cast<const X*>(p.x) + place.row.x),
        fits(access != Access::shifted || all_fit(p, x, place.first, extent)) {
#pragma unroll
    for (int r = 0; r < R; ++r) clear(r);
    if constexpr (S::inside) {
      if (!works) return;
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

  // Adds up those frames of rows [w, w_end) that lie in the slice; w_end - w <= R.
  __device__ __forceinline__ void add_rows(int w, int w_end, int slice_begin, int slice_end) {
    int begin = slice_end, stop = slice_begin;
#pragma unroll
    for (int r = 0; r < R; ++r) {
      first[r] = end[r] = slice_begin;
      weights[r] = nullptr;
      if (w + r < w_end) {
        const Band band = band_of(p, place.row.clip, w + r);
        first[r] = max(static_cast<int>(band.first), slice_begin);
        end[r] = min(static_cast<int>(band.first + band.count), slice_end);
        weights[r] = static_cast<const Acc*>(p.weights) + (place.row.clip * p.W + w + r) * p.K - band.first;
        if (first[r] < end[r]) begin = min(begin, first[r]), stop = max(stop, end[r]);
      }
      clear(r);
    }
    if constexpr (S::ahead) {
      if (fits) {
        add_ahead(begin, stop);
      } else {
        for (int t = begin; t < stop; ++t) add_singly(t);
      }
    } else {
      int t = begin;
      for (; t + S::frames <= stop; t += S::frames) add_frames<S::frames>(t, S::frames);
      for (; t < stop; t += 4) add_frames<4>(t, min(stop - t, 4));
    }
  }

  // sum[r] += A[r, t] ψ(z[t])
  __device__ __forceinline__ void add(const Frame& frame, int t, const Acc (&weight)[R]) {
    Acc value[V];
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (S::looks_up) {
        value[j] = shared.roots.of_byte(frame.word[j / 4], j % 4);
      } else {
        value[j] = pixel<mode, X>(p, frame[j], mean[j], inverse_std[j]);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (!has(r, t)) continue;  // the frame may be NaN
      if constexpr (mode == Mode::identity) weight_sum[r] += weight[r];
#pragma unroll
      for (int j = 0; j < V; ++j) sum[r][j] += weight[r] * value[j];
    }
  }

  __device__ __forceinline__ bool has(int r, int t) const { return R == 1 || (first[r] <= t && t < end[r]); }

  __device__ __forceinline__ void load_weights(Acc (&weight)[R], int t) const {
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (has(r, t)) weight[r] = __ldg(weights[r] + t);
  }

  // Frames [t, t + count), count <= N, all read before the first is added.
  template <int N>
  __device__ __forceinline__ void add_frames(int t, int count) {
    Frame frame[N];
    Acc weight[N][R];
    const X* from = x + t * p.x_t;
#pragma unroll
    for (int u = 0; u < N; ++u) {
      if (u < count) {
        frame[u].load(p, from, place);
        load_weights(weight[u], t + u);
      }
      from += p.x_t;
    }
#pragma unroll
    for (int u = 0; u < N; ++u) {
      if (u >= count) break;
      frame[u].align();
      add(frame[u], t + u, weight[u]);
    }
  }

  __device__ __forceinline__ void add_singly(int t) {
    if constexpr (S::ahead) {
      Frame frame;
      Acc weight[R];
      load_within(frame, p, x + t * p.x_t, place, extent);
      load_weights(weight, t);
      frame.align();
      add(frame, t, weight);
    }
  }

  // The next frames are on their way while some are added.
  __device__ __forceinline__ void add_ahead(int begin, int stop) {
    if constexpr (S::ahead) {
      const X* from = x + place.first + begin * p.x_t;  // what is fetched next
      uint32_t address = static_cast<uint32_t>(reinterpret_cast<uint64_t>(from));  // of what is added next
      const uint32_t step = static_cast<uint32_t>(p.x_t * sizeof(X));
      int fetched = begin, half = 0;
      const auto fetch = [&](int half) {
        uint4* to = &shared.frames.word[half][0][0][threadIdx.x];
#pragma unroll
        for (int u = 0; u < S::frames; ++u) {
          if (fetched + u < stop) Frame::fetch(to + u * 2 * kThreads, from);
          from += p.x_t;
        }
        fetched += S::frames;
        end_group();
      };
      fetch(0);
      fetch(1);
      for (int t = begin; t < stop; t += S::frames, half ^= 1) {
        const uint4* words = &shared.frames.word[half][0][0][threadIdx.x];
        Acc weight[S::frames][R];
#pragma unroll
        for (int u = 0; u < S::frames; ++u)
          if (t + u < stop) load_weights(weight[u], t + u);
        wait_for_groups<1>();
#pragma unroll
        for (int u = 0; u < S::frames; ++u) {
          if (t + u >= stop) break;
          Frame frame;
          frame.take(words + u * 2 * kThreads, address);
          address += step;
          frame.align();
          add(frame, t + u, weight[u]);
        }
        fetch(half);
      }
    }
  }

  // Normalisation where it may wait until after the sum (pixel.h).
  __device__ __forceinline__ void normalize(Acc (&value)[V], Acc weights_of_value) const {
    if (S::inside) return;
    if (mode == Mode::identity && p.mean)
      for_each_channel<V>(p, place, [&](int j, int64_t channel) {
        value[j] -= weights_of_value * static_cast<const Acc*>(p.mean)[channel];
      });
    if (p.std)
      for_each_channel<V>(p, place, [&](int j, int64_t channel) {
        const Acc inverse = reciprocal(static_cast<const Acc*>(p.std)[channel]);
        value[j] *= mode == Mode::identity ? inverse : apply_psi<Nonlinearity::sqrt>(inverse);
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

// Blocks that share a multiprocessor: as many as need no spills and find room in shared memory.
template <class X, Mode mode, Access access, int R>
constexpr int forward_blocks() {
  using S = Shape<X, mode, access, R>;
  constexpr bool shifted = access == Access::shifted;
  constexpr int size = sizeof(X);
  if (size == 8 || access == Access::single) return 3;
  if (S::looks_up) return 2;
  if (R == kTogether) return size == 1 ? (S::inside ? 2 : 3) : size == 2 && S::inside ? 3 : 4;
  if (S::inside) return size == 1 ? (shifted || R > 1 ? 3 : 4) : size == 2 ? (shifted ? 5 : 4) : 5;
  if (shifted) return size == 1 && (R > 1 || mode == Mode::root) ? 4 : 5;
  return size == 1 ? (R > 1 ? 4 : 5) : size == 2 ? 6 : 7;
}

// A tile: the pieces of `members` threads, or of as many in each team.
template <class X, Mode mode, Access access, int R>
__device__ __forceinline__ void pool_tile(const TemporalPoolParams& p, const Tiling& tiling, const Extent& extent,
                                          const Split& split, Shared<Shape<X, mode, access, R>>& shared, int64_t tile) {
  using S = Shape<X, mode, access, R>;
  constexpr int V = S::V;

  // 1. Rows of this block, pieces and frames of this thread.
  const int w_begin = static_cast<int>(blockIdx.y) * split.rows;
  const int w_end = min(static_cast<int>(p.W), w_begin + split.rows);
  const int teams = S::in_teams ? split.teams : 1, members = S::threads / teams;
  const int team = static_cast<int>(threadIdx.x) / members;
  int64_t outer, piece;
  const bool works = find_piece(tiling, tile * members + threadIdx.x % members, outer, piece);
  if (!works && teams == 1) return;
  const Place<access> place = place_of<access, V>(p, locate_row(p, outer), outer, piece, tiling.pieces);
  int slice_begin = static_cast<int>(blockIdx.z) * split.frames;
  int slice_end = min(static_cast<int>(p.T), slice_begin + split.frames);
  if (works && teams > 1) {
    const Band band = band_of(p, place.row.clip, w_begin);
    slice_begin = max(slice_begin, static_cast<int>(band.first));
    slice_end = min(slice_end, static_cast<int>(band.first + band.count));
    const int share = (max(slice_end - slice_begin, 0) + teams - 1) / teams;
    slice_begin += team * share;
    slice_end = max(slice_begin, min(slice_end, slice_begin + share));
  }

  // 2. R rows at a time.
  Sums<X, mode, access, R> sums(p, place, extent, shared, works);
  for (int w = w_begin; w < w_end; w += R) {
    if (works) sums.add_rows(w, w_end, slice_begin, slice_end);

    // 3. The sum over teams, in order; they have one row.
    if constexpr (S::in_teams) {
      if (teams > 1) {
        TeamSums<S>& of_teams = shared.teams;
        __syncthreads();  // what else is in this memory is no longer needed
#pragma unroll
        for (int j = 0; j < V; ++j) of_teams.sum[j][threadIdx.x] = sums.sum[0][j];
        of_teams.weights[threadIdx.x] = sums.weight_sum[0];
        __syncthreads();
        if (!works || team > 0) return;
        for (int thread = threadIdx.x + members; thread < S::threads; thread += members) {
          sums.weight_sum[0] += of_teams.weights[thread];
#pragma unroll
          for (int j = 0; j < V; ++j) sums.sum[0][j] += of_teams.sum[j][thread];
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (w + r >= w_end) break;
      sums.normalize(sums.sum[r], sums.weight_sum[r]);
      write_row(p, tiling, split, w + r, place, sums.sum[r]);
    }
  }
}

template <class X, Mode mode, Access access, int R>
__global__ void __launch_bounds__((Shape<X, mode, access, R>::threads), (forward_blocks<X, mode, access, R>()))
    forward_kernel(const TemporalPoolParams p, const Tiling tiling, const Extent extent, const Split split) {
  using S = Shape<X, mode, access, R>;
  Shared<S>& shared = shared_memory<Shared<S>>();
  if constexpr (S::looks_up) {
    shared.roots.fill(S::threads);
    for (int64_t tile = blockIdx.x; tile < tiling.tiles; tile += gridDim.x) {
      if (split.teams > 1) __syncthreads();  // the sums of the last tile have been read
      pool_tile<X, mode, access, R>(p, tiling, extent, split, shared, tile);
    }
  } else {
    pool_tile<X, mode, access, R>(p, tiling, extent, split, shared, blockIdx.x);
  }
}

// Where frames of an element lie side by side, words hold those: a thread owns one element and goes through its rows.
template <class X, Mode mode>
__global__ void __launch_bounds__(kThreads)
    series_kernel(const TemporalPoolParams p, const Tiling tiling, const Extent extent, const Split split) {
  using Acc = typename Accumulate<X>::type;
  constexpr int V = patch_size<X, Access::shifted>;

  // 1. Element, rows and frames of this thread.
  int64_t outer, i;
  if (!find_piece(tiling, outer, i)) return;
  const Place<Access::single> place{outer, i, 1, 0, 1, locate_row(p, outer)};
  const X* x = static_cast<const X*>(p.x) + place.row.x + i * p.inner().x;
  Normalization<Acc> n{0, 1};
  if constexpr (mode == Mode::any) n = normalization_of<Acc>(p, channel_of(p, place.row, i));
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
    const auto add = [&](const Patch<X, Access::shifted>& patch, int t, int u) {
      sum[0] += __ldg(weights + t + u) * pixel<mode, X>(p, patch[u], n.mean, n.inverse_std);
    };
    for (int t = begin; t < end; t += V) {
      const Place<Access::shifted> frames{outer, t, 1, 0, min(V, end - t), place.row};
      Patch<X, Access::shifted> patch;
      load_within(patch, p, x, frames, extent);
      patch.align();
      if (frames.template whole<V>()) {
#pragma unroll
        for (int u = 0; u < V; ++u) add(patch, t, u);
      } else {
#pragma unroll
        for (int u = 0; u < V; ++u)
          if (frames.owns(u)) add(patch, t, u);
      }
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

struct Choice {
  void (*kernel)(TemporalPoolParams, Tiling, Extent, Split);
  int patch;          // elements that a thread owns
  int threads;        // of a block
  int blocks;         // that fit a multiprocessor
  int rows;           // that are pooled together
  int shared_memory;  // bytes of a block
  bool in_teams;      // whether threads may share the frames of one row
  bool stays;         // whether a block goes from tile to tile, since it is costly to begin
};

template <class X, Mode mode, Access access, int R>
Choice choice_of() {
  using S = Shape<X, mode, access, R>;
  return {forward_kernel<X, mode, access, R>, S::V, S::threads, forward_blocks<X, mode, access, R>(), R,
          static_cast<int>(sizeof(Shared<S>)), S::in_teams, S::looks_up};
}

// As many blocks as run at once, and some more that end at other times where that costs little. Teams first, then parts
// of W, which cost no second phase; then slices of T, which each have sums to write.
inline Split make_split(const TemporalPoolParams& p, const Choice& choice, Tiling& tiling, int64_t at_once) {
  constexpr int kMostTeams = kThreads / 8, kRounds = 4;
  Split split;
  split.teams = 1;
  const int64_t pieces = tiling.outer * tiling.pieces, tiles = ceil_div(pieces, choice.threads);
  while (choice.in_teams && p.W == 1 && split.teams < kMostTeams) {
    const int64_t blocks = tiles * split.teams;
    const int least = blocks < at_once ? 4 : 16;  // frames of a team
    if (blocks >= kRounds * at_once || p.T < 2 * split.teams * least) break;
    split.teams *= 2;
  }
  tiling.tiles = ceil_div(pieces, choice.threads / split.teams);
  const int64_t row_parts =
      std::min({ceil_div(kRounds * at_once, tiling.tiles), ceil_div(p.W, choice.rows), int64_t{65535}});
  const int64_t blocks = tiling.tiles * row_parts;
  const int64_t least = split.teams > 1 ? 32 * split.teams : kMinSlice;
  int64_t slices = 2 * blocks > at_once ? 1 : std::min({at_once / blocks, p.T / least, int64_t{65535}});
  slices = std::max<int64_t>(slices, 1);
  split.rows = static_cast<int>(ceil_div(ceil_div(p.W, row_parts), choice.rows) * choice.rows);
  split.row_parts = static_cast<int>(ceil_div(p.W, split.rows));
  split.frames = static_cast<int>(std::max<int64_t>(1, ceil_div(p.T, slices)));
  split.slices = static_cast<int>(std::max<int64_t>(1, ceil_div(p.T, split.frames)));
  split.partials = nullptr;
  return split;
}

template <class X, Access access, int R>
Choice choose_mode(const TemporalPoolParams& p) {
  if (p.nonlinearity == Nonlinearity::identity) return choice_of<X, Mode::identity, access, R>();
  return normalizes_inside<Nonlinearity::sqrt>(p) ? choice_of<X, Mode::normalized_root, access, R>()
                                                  : choice_of<X, Mode::root, access, R>();
}

// Rows that share few frames or none go one by one: what they read again is in the cache.
template <class X, Access access>
Choice choose_words(const TemporalPoolParams& p, int device) {
  const int64_t readings = p.W * p.K;  // of the T frames, at most
  if constexpr (sizeof(X) == 1) {  // whose pixels are dear to convert, and their sums many
    if (p.bands && readings >= 3 * p.T) return choose_mode<X, access, 2>(p);
    if constexpr (access == Access::aligned) {
      const Choice choice = choice_of<X, Mode::known_root, access, 1>();
      const bool roots = p.nonlinearity != Nonlinearity::identity && !normalizes_inside<Nonlinearity::sqrt>(p);
      if (roots && readings < 2 * p.T && shared_memory_of(device) >= choice.blocks * (choice.shared_memory + (1 << 10)))
        return choice;
    }
  }
  return readings < 2 * p.T ? choose_mode<X, access, 1>(p) : choose_mode<X, access, kTogether>(p);
}

template <class X>
Choice choose_series(const TemporalPoolParams& p) {
  Choice choice{series_kernel<X, Mode::any>, 1, kThreads, 8, 1, 0, false, false};
  if (!p.mean && !p.std) {
    choice.kernel = p.nonlinearity == Nonlinearity::identity ? series_kernel<X, Mode::identity>
                                                             : series_kernel<X, Mode::root>;
  }
  return choice;
}

// The kernel for frames laid out like these.
template <class X>
Choice choose(const TemporalPoolParams& p, int device) {
  if constexpr (has_word_path<X>) {
    if (in_words(p, p.y)) return choose_words<X, Access::aligned>(p, device);
    if (p.inner().x == 1 && p.inner().size > 1) return choose_words<X, Access::shifted>(p, device);
    if (p.x_t == 1 && p.T >= patch_size<X, Access::shifted>) return choose_series<X>(p);
  }
  return choice_of<X, Mode::any, Access::single, sizeof(X) == 8 ? 1 : kTogether>();  // float64 is rare: rows one by one
}

}  // namespace

template <class X>
void forward(const TemporalPoolParams& p, const Context& context) {
  using Acc = typename Accumulate<X>::type;
  if (pool_plain<X>(p, context) || pool_windows<X>(p, context) || pool_series<X>(p, context)) return;
  const Choice choice = choose<X>(p, context.device);
  Tiling tiling = make_tiling(p, choice.patch);
  const int64_t at_once = int64_t{choice.blocks} * multiprocessors(context.device);
  Split split = make_split(p, choice, tiling, at_once);
  const int64_t size = p.W * tiling.outer * p.inner().size;
  Acc* partials = context.memory<Acc>(split.slices > 1 ? split.slices * size : 0);
  split.partials = partials;

  const int64_t blocks = choice.stays ? std::min(tiling.tiles, at_once) : tiling.tiles;
  const dim3 grid(grid_size(blocks), split.row_parts, split.slices);
  launch(choice.kernel, grid, dim3(choice.threads), choice.shared_memory, context.stream, p, tiling, extent_of(p), split);
  if (partials) {
    launch(add_slices<Acc>, dim3(grid_size(ceil_div(size, kThreads))), dim3(kThreads), context.stream, p,
           static_cast<const Acc*>(partials), split.slices, tiling.outer);
  }
}

}  // namespace dynpool::cuda
