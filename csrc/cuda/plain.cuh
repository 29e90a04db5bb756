// y[i] = Σ_t A[t] ψ(x[t, i]): rows that share no frame, neither mean nor std, y of the type that goes with x, pixels side by
// side. A kernel for this case alone has some half of the registers, the instructions and the parameters, so that more
// threads fit the card, and small clips wait for less.
#pragma once
#include "few.cuh"
#include "launchers.h"
#include "mode.cuh"
#include "patch.cuh"

namespace dynpool::cuda {
namespace {

// The pieces of all inner rows, counted in 32 bits.
struct Pieces {
  uint32_t of_row, all;
  int num_axes;  // beside the inner one
  struct {
    uint32_t size;
    int64_t x, y;
  } axis[kMaxAxes];

  // `rows`: those of y, as the outermost axis.
  Pieces(const TemporalPoolParams& p, int64_t of_row, int64_t rows = 1)
      : of_row(static_cast<uint32_t>(of_row)), all(static_cast<uint32_t>(of_row * p.num_outer() * rows)), num_axes(0), axis{} {
    if (rows > 1) axis[num_axes++] = {static_cast<uint32_t>(rows), 0, p.y_w};
    for (int a = 0; a + 1 < p.num_axes; ++a)
      if (p.axes[a].size > 1) axis[num_axes++] = {static_cast<uint32_t>(p.axes[a].size), p.axes[a].x, p.axes[a].y};
  }
  // Piece within its row, and where this begins in x and y.
  __device__ __forceinline__ uint32_t find(uint32_t n, int64_t& x, int64_t& y) const {
    x = y = 0;
    if (num_axes == 0) return n;
    uint32_t row = n / of_row;
    const uint32_t piece = n - row * of_row;
#pragma unroll 1
    for (int a = num_axes - 1; a >= 0; --a) {
      const uint32_t rest = a == 0 ? 0 : row / axis[a].size, i = row - rest * axis[a].size;
      x += i * axis[a].x;
      y += i * axis[a].y;
      row = rest;
    }
    return piece;
  }
};

// What the kernel reads first comes first.
struct Plain {
  const void* x;
  const float* weights;
  void* y;
  int64_t x_t;
  int T, log_teams;  // threads of a block in teams, as in forward.cuh
  uint32_t size;     // elements of an inner row
  uint32_t pitch;    // of rows of pixels that are an inner row with what lies between them; else 0
  uint32_t width;    // pixels of such a row; else all
  Pieces pieces;
  Extent extent;
};

// The same for rows that each have frames and weights of their own: those of clips, or of clips packed one after another.
struct PlainRows : Plain {
  const int64_t* bands;  // or null: all frames
  int64_t K;
  uint32_t pieces_of_row;  // of y, in all of its inner rows
};

constexpr int log2_of(int n) { return n < 2 ? 0 : 1 + log2_of(n / 2); }

constexpr int kByUnit = 4;  // of so many roots looked up, one comes from their unit, which has nothing else to do

template <class X, Mode mode, Access access, int bytes>
struct PlainShape {
  using Frame = Patch<X, access, bytes>;
  static constexpr int V = Frame::V;
  static constexpr bool looks_up = mode == Mode::known_root;
  static constexpr bool shifted = access == Access::shifted, spread = access == Access::spread;
  static constexpr int threads = looks_up ? 2 * kThreads : kThreads, log_threads = log2_of(threads);
  static constexpr int frames = looks_up && shifted ? 5 : looks_up || bytes == 8 ? 8 : 4;  // that have been asked for
  // Whether each is asked for as soon as there is a place for it, since pixels take time; else all of these together.
  static constexpr bool rolls = looks_up || (sizeof(X) == 2 && mode != Mode::identity);
  // Blocks that share a multiprocessor.
  static constexpr int blocks = looks_up ? 2 : shifted ? 6 : 8;
};

template <class S>
struct PlainMemory : std::conditional_t<S::looks_up, Roots, Nothing> {
  alignas(16) float sum[S::threads * S::V];  // [team, member, V]
};

template <class X, Mode mode, Access access, int bytes, class Parameters>
__global__ void __launch_bounds__((PlainShape<X, mode, access, bytes>::threads),
                                  (PlainShape<X, mode, access, bytes>::blocks)) plain_kernel(const Parameters p) {
  using S = PlainShape<X, mode, access, bytes>;
  using Frame = typename S::Frame;
  using Y = Natural<X>;
  constexpr int V = S::V, N = S::frames;
  PlainMemory<S>& memory = shared_memory<PlainMemory<S>>();
  if constexpr (S::looks_up) memory.fill(S::threads);

  // 1. Frames of this thread, and what it is among those of its team.
  const int log_members = S::log_threads - p.log_teams;
  const uint32_t members = 1u << log_members, team = threadIdx.x >> log_members;
  const auto find_share = [&](int first, int last, int& begin, int& end) {
    const int share = (last - first + (1 << p.log_teams) - 1) >> p.log_teams;
    begin = first + static_cast<int>(team) * share;
    end = min(last, begin + share);
  };
  const float* weights_of_row = p.weights;
  int begin, end;
  find_share(0, p.T, begin, end);

  // Column of element j of a piece, of those that may be kept in any order.
  const auto column_of = [](uint32_t piece, uint32_t j) {
    return S::spread ? piece / 32 * (32 * V) + piece % 32 + j * 32 : piece * V + j;
  };
  // Elements of a piece to y, the first of them to `column`.
  const auto write = [&](int64_t row, uint32_t column, const auto& value) {
    Y* y = static_cast<Y*>(p.y) + row;
    [[maybe_unused]] constexpr int count = sizeof(value) / sizeof(float);
    if constexpr (access == Access::aligned) {
      store_packs<0>(y + column, value);
    } else {
      const uint32_t line = p.pitch == 0 ? 0 : column / p.pitch;
      uint32_t place = column - line * p.pitch;
      y += int64_t{line} * p.width;
      if (S::shifted && place + count <= p.width && column + count <= p.size)
        return store_as<Y>(y, place, 1, Place<Access::shifted>{0, 0, 1, 0, count, Row{}}, value);
#pragma unroll
      for (int k = 0; k < count; ++k) {
        if (column + column_of(0, k) < p.size && place < p.width) y[place] = store<Y>(value[k]);
        place += column_of(0, 1);
        if (p.pitch == 0 || place < p.pitch) continue;
        place -= p.pitch;
        y += p.width;
      }
    }
  };

  for (uint32_t first = blockIdx.x << log_members; first < p.pieces.all; first += gridDim.x << log_members) {
    const uint32_t n = first + (threadIdx.x & (members - 1));
    if (n < p.pieces.all) {
      int64_t x_row, y_row;
      const uint32_t piece = p.pieces.find(n, x_row, y_row), column = column_of(piece, 0);
      const int left = static_cast<int>(p.size) - static_cast<int>(column);
      const X* x = static_cast<const X*>(p.x) + x_row + column;  // frame 0
      if constexpr (std::is_same_v<Parameters, PlainRows>) {
        const uint32_t row = n / p.pieces_of_row;
        const Band band = band_of_row(p.bands, row, p.T, p.K);
        find_share(static_cast<int>(band.first), static_cast<int>(band.first + band.count), begin, end);
        weights_of_row = p.weights + row * p.K - band.first;
      }

      // 2. The sum.
      float sum[V] = {};
      const auto add = [&](Frame& frame, float weight) {
        frame.align();
#pragma unroll
        for (int j = 0; j < V; ++j) {
          if constexpr (S::looks_up) {
            if (j % kByUnit != 0) {
              sum[j] += weight * memory.of_byte(frame.word[j / 4], j % 4);
              continue;
            }
          }
          sum[j] += weight * plain_pixel<mode, X>(frame[j]);
        }
      };
      const auto add_frames = [&](int t, int end, const auto& load) {
        const X* from = x + t * p.x_t;
        const float* weights = weights_of_row + t;
        if (S::rolls && t + N <= end) {  // each frame in the place of one that was asked for N frames ago
          Frame frame[N];
          float weight[N];
          const auto ask = [&](int u) {
            load(frame[u], from);
            weight[u] = __ldg(weights);
            from += p.x_t;
            ++weights;
          };
#pragma unroll
          for (int u = 0; u < N; ++u) ask(u);
#pragma unroll 1
          for (; t + 2 * N <= end; t += N) {
#pragma unroll
            for (int u = 0; u < N; ++u) {
              add(frame[u], weight[u]);
              ask(u);
            }
          }
#pragma unroll
          for (int u = 0; u < N; ++u) add(frame[u], weight[u]);
          t += N;
        }
#pragma unroll 1
        for (; !S::rolls && t + N <= end; t += N, weights += N) {
          Frame frame[N];
          float weight[N];
#pragma unroll
          for (int u = 0; u < N; ++u, from += p.x_t) {
            load(frame[u], from);
            weight[u] = __ldg(weights + u);
          }
#pragma unroll
          for (int u = 0; u < N; ++u) add(frame[u], weight[u]);
        }
        if (t >= end) return;
        Frame frame[N - 1];
        float weight[N - 1];
#pragma unroll
        for (int u = 0; u < N - 1; ++u, from += p.x_t) {
          if (t + u >= end) break;
          load(frame[u], from);
          weight[u] = __ldg(weights + u);
        }
#pragma unroll
        for (int u = 0; u < N - 1; ++u) {
          if (t + u >= end) break;
          add(frame[u], weight[u]);
        }
      };
      if constexpr (access == Access::aligned) {
        add_frames(begin, end, [](Frame& frame, const X* from) { frame.stream(from); });
      } else if constexpr (S::spread) {
        add_frames(begin, end, [&](Frame& frame, const X* from) { frame.load(from, left); });
      } else {
        // Words that reach out of the tensor do so in the first frame or the last.
        int first_whole = begin, end_whole = end;
        const auto fits_at = [&](int t) { return fits(reinterpret_cast<uint64_t>(x + t * p.x_t), p.extent); };
        if (begin < end && !fits_at(begin)) ++first_whole;
        if (first_whole < end && !fits_at(end - 1)) --end_whole;
        if (first_whole < end_whole && !(fits_at(first_whole) && fits_at(end_whole - 1))) end_whole = first_whole;
        add_frames(first_whole, end_whole, [](Frame& frame, const X* from) { frame.load(from); });
#pragma unroll 1
        for (int t = begin; t < end; ++t) {
          if (t == first_whole) t = end_whole;
          if (t >= end) break;
          Frame frame;
          frame.load_singly(x + t * p.x_t, Place<Access::shifted>{0, 0, 1, 0, min(V, left), Row{}});
          add(frame, __ldg(weights_of_row + t));
        }
      }

      // 3. To y, or to the sums of the team.
      if (p.log_teams > 0) {
#pragma unroll
        for (int j = 0; j < V; ++j) memory.sum[threadIdx.x * V + j] = sum[j];
      } else {
        write(y_row, column, sum);
      }
    }

    // 4. The sum over teams, in order; a thread has four elements of a member.
    if (p.log_teams > 0) {
      __syncthreads();
      for (uint32_t four = 4 * threadIdx.x; four < members * V; four += 4 * S::threads) {
        const uint32_t member = four / V, j = four % V;
        if (first + member >= p.pieces.all) break;
        float sum[4] = {};
#pragma unroll 4
        for (uint32_t other = 0; other < 1u << p.log_teams; ++other) {
          const float4 v = *reinterpret_cast<const float4*>(memory.sum + (other << log_members) * V + four);
          sum[0] += v.x, sum[1] += v.y, sum[2] += v.z, sum[3] += v.w;
        }
        int64_t x_row, y_row;
        const uint32_t piece = p.pieces.find(first + member, x_row, y_row);
        write(y_row, column_of(piece, j), sum);
      }
      if constexpr (S::looks_up) __syncthreads();  // before the next tile's sums
    }
    if constexpr (!S::looks_up) break;  // there are as many blocks as tiles
  }
}

struct PlainChoice {
  void (*kernel)(Plain);
  void (*rows_kernel)(PlainRows);  // of words alone; else null
  int patch, threads, blocks;  // elements of a thread, threads of a block, blocks of a multiprocessor
  int memory, teams_memory;    // bytes of a block, without teams and with them
  bool stays;                  // whether blocks go from tile to tile, since they are costly to begin
};

template <class X, Mode mode, Access access, int bytes>
PlainChoice plain_choice() {
  using S = PlainShape<X, mode, access, bytes>;
  constexpr int memory = sizeof(PlainMemory<S>);
  void (*rows_kernel)(PlainRows) = nullptr;
  if constexpr (access == Access::aligned) rows_kernel = plain_kernel<X, mode, access, bytes, PlainRows>;
  return {plain_kernel<X, mode, access, bytes, Plain>, rows_kernel, S::V, S::threads, S::blocks,
          S::looks_up ? int{sizeof(Roots)} : 0, memory, S::looks_up};
}

// `bytes` of a thread and frame.
template <class X, Access access, int bytes>
PlainChoice choose_plain(const TemporalPoolParams& p, int device) {
  if (p.nonlinearity == Nonlinearity::identity) return plain_choice<X, Mode::identity, access, bytes>();
  if constexpr (sizeof(X) == 1) {
    const PlainChoice choice = plain_choice<X, Mode::known_root, access, 16>();
    if (p.num_outer() * p.inner().size * p.T >= kWorthTable && (access == Access::shifted || in_words(p, p.y)) &&
        shared_memory_of(device) > choice.blocks * (choice.teams_memory + (1 << 10)))
      return choice;
  }
  return plain_choice<X, Mode::root, access, bytes>();
}

// Teams, so that all of the card is busy: no more blocks than a little over what runs at once, unless each still has many
// frames.
inline int log_teams_of(const PlainChoice& choice, int64_t pieces, int64_t T, int64_t at_once) {
  const int64_t tiles = ceil_div(pieces, choice.threads);
  int log_teams = 0;
  while (8 << log_teams < choice.threads) {
    const int64_t blocks = tiles << log_teams;
    const int least = 8 * blocks <= 5 * at_once ? 4 : 16;  // frames of a team
    if (blocks >= 4 * at_once || T < int64_t{2 * least} << log_teams) break;
    if (choice.stays && 2 * blocks > at_once) break;
    ++log_teams;
  }
  return log_teams;
}

// Makes rows of pixels that lie a little apart one inner row with what is between them, and says whether they are such.
inline bool close_gaps(TemporalPoolParams& p, int64_t& pitch, int64_t& width) {
  constexpr int kLeast = 32;  // pixels of a row: a step between pixels of a piece goes to the next row at most
  if (p.num_axes < 2) return false;
  Axis& outer = p.axes[p.num_axes - 2];
  const Axis& inner = p.inner();
  const int64_t gap = outer.x - inner.size;
  if (inner.size < kLeast || gap < 0 || 8 * gap > inner.size || outer.y != inner.size) return false;
  pitch = outer.x;
  width = inner.size;
  outer.size = (outer.size - 1) * pitch + width;
  outer.x = outer.y = 1;
  --p.num_axes;
  return true;
}

template <class X>
bool is_plain(const TemporalPoolParams& p) {
  return p.W == 1 && !p.bands && !p.mean && !p.std && p.clips == 1 && is_natural<X>(p);
}

// Pools such frames, and says whether they are.
template <class X>
bool pool_plain(TemporalPoolParams p, const Context& context) {
  if constexpr (!has_word_path<X>) {
    return false;
  } else {
    constexpr int word = sizeof(X) == 1 ? 8 : 16;
    if (p.mean || p.std || !is_natural<X>(p) || p.inner().x != 1 || p.inner().y != 1 || p.T == 0) return false;
    const bool words = in_words(p, p.y, word), one_row = is_plain<X>(p);
    const bool packed = p.clips == 1 && p.bands && p.overlap == 0 && p.W * p.K < 4 * p.T;  // clips, as far as one can tell
    if (!one_row && !(words && (p.W == 1 || packed))) return false;
    if (one_row && words && pool_few<X>(p, context)) return true;
    int64_t pitch = 0, width = p.inner().size;
    if (!words) close_gaps(p, pitch, width);
    const int64_t size = p.inner().size;
    constexpr int kLeast = 64;  // elements of an inner row, that its ends are few beside the rest
    if (p.num_outer() * p.W * (size + 32 * 16) > INT32_MAX || (!words && size < kLeast)) return false;

    PlainChoice choice;
    int64_t group = 1;  // threads that have a stretch of the row together
    if (words) {
      choice = choose_plain<X, Access::aligned, word>(p, context.device);
    } else if constexpr (sizeof(X) == 4) {
      choice = choose_plain<X, Access::spread, 16>(p, context.device);
      group = 32;
    } else {
      choice = choose_plain<X, Access::shifted, 16>(p, context.device);
    }
    const int64_t of_row = group * ceil_div(size, group * choice.patch);
    const Pieces pieces(p, of_row, p.W);
    const int64_t at_once = int64_t{choice.blocks} * multiprocessors(context.device);
    const int log_teams = log_teams_of(choice, pieces.all, p.K, at_once);
    const int64_t blocks = ceil_div(pieces.all, choice.threads >> log_teams);
    if (2 * blocks <= at_once && p.K >= int64_t{64} << log_teams) return false;  // worth slices of T, as in forward.cuh
    const Plain plain{p.x,  static_cast<const float*>(p.weights), p.y, p.x_t, static_cast<int>(p.T), log_teams,
                      static_cast<uint32_t>(size), static_cast<uint32_t>(pitch), static_cast<uint32_t>(width), pieces,
                      extent_of(p)};
    const dim3 grid(grid_size(choice.stays ? std::min(blocks, at_once) : blocks)), threads(choice.threads);
    const int memory = log_teams > 0 ? choice.teams_memory : choice.memory;
    if (one_row) {
      launch(choice.kernel, grid, threads, memory, context.stream, plain);
    } else {
      const auto pieces_of_row = static_cast<uint32_t>(of_row * (p.num_outer() / p.clips));
      launch(choice.rows_kernel, grid, threads, memory, context.stream, PlainRows{plain, p.bands, p.K, pieces_of_row});
    }
    return true;
  }
}

}  // namespace
}  // namespace dynpool::cuda
