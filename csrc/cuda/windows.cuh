// Rows that overlap as windows do (TemporalPoolParams::overlap), otherwise as in plain.cuh: a thread goes through the frames
// once, each converted once, with the sums of the rows that are open in registers, the oldest first. Where that one has
// ended it is written, and the others move up by the same multiply-adds that add the next frame.
#pragma once
#include "launchers.h"
#include "mode.cuh"
#include "patch.cuh"
#include "plain.cuh"

namespace dynpool::cuda {
namespace {

struct Windows {
  const void* x;
  const float* weights;
  void* y;
  const int64_t* bands;
  int64_t x_t, y_w;
  int T, W, K, rows;  // rows of a block
  Pieces pieces;
};

template <class X, int R>
struct WindowsShape {
  static constexpr int V = std::min(R > 10 ? 4 : 8, sizeof(X) == 2 ? 4 : static_cast<int>(16 / sizeof(X)));
  using Frame = Patch<X, Access::aligned, V * static_cast<int>(sizeof(X))>;
  static constexpr bool byte = sizeof(X) == 1;
  static constexpr int frames = R == 10 && sizeof(X) != 2 ? 4 : 8;  // that have been asked for
  // Where each frame is asked for as soon as there is a place for it; else all of these together, which memory prefers
  // where far more is written than read.
  static constexpr bool rolls = !byte || R < 6 || R == 16;
  static constexpr int few = sizeof(X) == 4 ? 1 : 0;
  static constexpr int blocks = R == 2 ? 8 - few : R == 4 ? 6 - few : R == 6 ? 5 : R == 16 ? 4 - few : byte ? 4 : 5;
};

template <int R>
struct WindowsMemory {
  static constexpr int kRows = kChunk + R;  // that a chunk may have to do with
  int first[kRows], end[kRows];             // frames [first, end) of each
  int begun[kChunk], ended[kChunk];         // rows that have begun by a frame, and ended before it
  // Of the rows open at a frame, then zeros; after them kEnded if the oldest ended before it, kPartly if they are not R.
  static constexpr uint32_t kEnded = 1, kPartly = 2;
  static constexpr int kPitch = (R + 1 + 3) / 4 * 4;
  alignas(16) float weight[kChunk][kPitch];
};

// Whether all are finite.
template <int V>
__device__ __forceinline__ bool are_finite(const float (&value)[V]) {
  float test = 0;
#pragma unroll
  for (int j = 0; j < V; ++j) test += 0.0f * value[j];
  return test == 0;
}

template <class X, Mode mode, int R>
__global__ void __launch_bounds__(kThreads, (WindowsShape<X, R>::blocks)) windows_kernel(const Windows p) {
  using S = WindowsShape<X, R>;
  using Frame = typename S::Frame;
  using Memory = WindowsMemory<R>;
  constexpr int V = S::V, N = S::frames;
  static_assert(kChunk % N == 0, "frames keep their places from chunk to chunk");
  Memory& memory = shared_memory<Memory>();

  // 1. Rows and frames of this block, pieces of this thread.
  const auto find_band = [&](int w, int& first, int& end) {
    const int64_t begin = min(max(p.bands[2 * w], int64_t{0}), int64_t{p.T});
    const int64_t count = min(max(p.bands[2 * w + 1], int64_t{0}), int64_t{p.K});
    first = static_cast<int>(begin);
    end = static_cast<int>(min(begin + count, int64_t{p.T}));
  };
  const int w_begin = static_cast<int>(blockIdx.y) * p.rows, w_end = min(p.W, w_begin + p.rows);
  int t_begin, t_end, other;
  find_band(w_begin, t_begin, other);
  find_band(w_end - 1, other, t_end);
  const uint32_t n = blockIdx.x * kThreads + threadIdx.x;
  const bool works = n < p.pieces.all;
  int64_t x_row = 0, y_row = 0;
  const uint32_t piece = works ? p.pieces.find(n, x_row, y_row) : 0;
  const X* x = static_cast<const X*>(p.x) + x_row + int64_t{piece} * V + t_begin * p.x_t;
  Natural<X>* y = static_cast<Natural<X>*>(p.y) + y_row + int64_t{piece} * V + w_begin * p.y_w;

  Frame frame[N];
  const auto ask = [&](int u, int t) {
    if (works && t < t_end) frame[u].load(x);
    x += p.x_t;
  };
  if constexpr (S::rolls) {
#pragma unroll
    for (int u = 0; u < N; ++u) ask(u, t_begin + u);
  }

  float sum[R][V] = {};
  int oldest = w_begin;  // row of sum[0]
  for (int t0 = t_begin; t0 < t_end; t0 += kChunk) {
    const int t1 = min(t_end, t0 + kChunk);

    // 2. Weights of the rows that are open at each frame of a chunk.
    __syncthreads();
    for (int i = threadIdx.x; i < Memory::kRows; i += kThreads) {
      memory.first[i] = memory.end[i] = t1;
      if (oldest + i < w_end) find_band(oldest + i, memory.first[i], memory.end[i]);
    }
    for (int i = threadIdx.x; i < kChunk * Memory::kPitch; i += kThreads)
      memory.weight[i / Memory::kPitch][i % Memory::kPitch] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < Memory::kRows; i += kThreads) {
      const auto count = [&](const int* frame, int* rows) {  // of which the frames have passed
        const int begin = i == 0 ? t0 : max(t0, frame[i]), next = i + 1 < Memory::kRows ? min(frame[i + 1], t1) : t1;
        for (int t = begin; t < next; ++t) rows[t - t0] = t < frame[i] ? 0 : i + 1;
      };
      count(memory.first, memory.begun);
      count(memory.end, memory.ended);
      const int end = max(t0, memory.end[i]);
      if (end < t1) memory.weight[end - t0][R] = bit_cast<float>(Memory::kEnded);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < t1 - t0; i += kThreads)
      if (memory.begun[i] - memory.ended[i] < R)
        memory.weight[i][R] = bit_cast<float>(bit_cast<uint32_t>(memory.weight[i][R]) | Memory::kPartly);
    for (int i = threadIdx.x; i < Memory::kRows * p.K; i += kThreads) {
      const int row = i / p.K, t = memory.first[row] + i - row * p.K;
      if (memory.first[row] >= t1) break;
      if (t < t0 || t >= min(memory.end[row], t1)) continue;
      const int slot = row - memory.ended[t - t0];
      if (slot >= 0 && slot < R)
        memory.weight[t - t0][slot] = p.weights[int64_t{oldest + row} * p.K + t - memory.first[row]];
    }
    __syncthreads();

    // 3. Its frames.
#pragma unroll 1
    for (int t = t0; t < t1; t += N) {
      if constexpr (!S::rolls) {
#pragma unroll
        for (int u = 0; u < N; ++u) ask(u, t + u);
      }
#pragma unroll
      for (int u = 0; u < N; ++u) {
        if (t + u >= t1) break;
        float weight[Memory::kPitch];
#pragma unroll
        for (int k = 0; k < Memory::kPitch; k += 4) {
          const float4 four = *reinterpret_cast<const float4*>(&memory.weight[t + u - t0][k]);
          weight[k] = four.x, weight[k + 1] = four.y, weight[k + 2] = four.z, weight[k + 3] = four.w;
        }
        float value[V];
#pragma unroll
        for (int j = 0; j < V; ++j) value[j] = plain_pixel<mode, X>(frame[u][j]);
        if constexpr (S::rolls) ask(u, t + u + N);
        const uint32_t flags = bit_cast<uint32_t>(weight[R]);
        if (flags & Memory::kEnded) {
          if (works) store_packs<0>(y, sum[0]);
          y += p.y_w;
          ++oldest;
#pragma unroll
          for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int j = 0; j < V; ++j) sum[r][j] = (r + 1 < R ? sum[r + 1][j] : 0.0f) + weight[r] * value[j];
          }
        } else {
#pragma unroll
          for (int r = 0; r < R; ++r) {
#pragma unroll
            for (int j = 0; j < V; ++j) sum[r][j] += weight[r] * value[j];
          }
        }
        if (!S::byte && flags & Memory::kPartly && !are_finite(value)) {
          // Of a zero's product NaN has come, where nothing has been added yet.
          const int open = memory.begun[t + u - t0] - memory.ended[t + u - t0];
#pragma unroll
          for (int r = 0; r < R; ++r) {
            if (r < open) continue;
#pragma unroll
            for (int j = 0; j < V; ++j) sum[r][j] = 0;
          }
        }
      }
    }
  }
  if (works) store_packs<0>(y, sum[0]);
}

template <class X, int R>
void launch_windows(const TemporalPoolParams& p, const Context& context) {
  using S = WindowsShape<X, R>;
  const Pieces pieces(p, p.inner().size / S::V);
  const int64_t tiles = ceil_div(pieces.all, kThreads), at_once = int64_t{S::blocks} * multiprocessors(context.device);
  // Parts of W where blocks are few: each reads the frames of its first rows once more.
  const int64_t parts = std::min({ceil_div(2 * at_once, tiles), ceil_div(p.W, 4 * R), int64_t{65535}});
  const int rows = static_cast<int>(ceil_div(p.W, parts));
  const Windows windows{p.x, static_cast<const float*>(p.weights), p.y, p.bands, p.x_t, p.y_w, static_cast<int>(p.T),
                        static_cast<int>(p.W), static_cast<int>(p.K), rows, pieces};
  launch(p.nonlinearity == Nonlinearity::identity ? windows_kernel<X, Mode::identity, R> : windows_kernel<X, Mode::root, R>,
         dim3(grid_size(tiles), static_cast<unsigned>(ceil_div(p.W, rows))), dim3(kThreads),
         static_cast<int>(sizeof(WindowsMemory<R>)), context.stream, windows);
}

// Pools such frames, and says whether they are.
template <class X>
bool pool_windows(const TemporalPoolParams& p, const Context& context) {
  if constexpr (!has_word_path<X>) {
    return false;
  } else {
    const int64_t overlap = std::min(p.overlap, p.W);
    if (overlap < 2 || overlap > 16 || !p.bands || p.mean || p.std || p.clips > 1 ||
        !is_natural<X>(p) || !in_words(p, p.y, std::min<int64_t>(16, 8 * sizeof(X))) ||
        p.num_outer() * p.inner().size > INT32_MAX || (kChunk + 16) * p.K > INT32_MAX)
      return false;
    if (overlap <= 2) launch_windows<X, 2>(p, context);
    else if (overlap <= 4) launch_windows<X, 4>(p, context);
    else if (overlap <= 6) launch_windows<X, 6>(p, context);
    else if (overlap <= 10) launch_windows<X, 10>(p, context);
    else launch_windows<X, 16>(p, context);
    return true;
  }
}

}  // namespace
}  // namespace dynpool::cuda
