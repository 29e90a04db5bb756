// Frames side by side, as in features [C, T], otherwise as in plain.cuh: neighbouring threads read neighbouring words of an
// element's frames, and the block adds up what they have summed.
#pragma once
#include "launchers.h"
#include "mode.cuh"
#include "patch.cuh"
#include "plain.cuh"

namespace dynpool::cuda {
namespace {

struct PlainSeries {
  const void* x;
  const float* weights;
  void* y;
  int64_t x_step;   // from one element's frames to the next one's
  uint32_t size;    // elements of an inner row
  uint32_t words;   // of an element
  uint32_t team;    // threads that share an element
  Pieces tiles;     // of an inner row: what a block does
};
constexpr int kElements = 8;   // of a thread; their words are in flight together
constexpr int kLargestTeam = 16;

struct SeriesMemory {
  float sum[kElements][2 * kThreads];  // [elements, teams, threads of a team and one, so that all banks are used]
};

template <class X, Mode mode, int bytes>
__global__ void __launch_bounds__(kThreads, 6) plain_series_kernel(const PlainSeries p) {
  using Frames = Patch<X, Access::aligned, bytes>;
  constexpr int V = Frames::V;
  __shared__ SeriesMemory memory;
  const uint32_t teams = kThreads / p.team, team = threadIdx.x / p.team, member = threadIdx.x - team * p.team;
  int64_t x_row, y_row;
  const uint32_t first = p.tiles.find(blockIdx.x, x_row, y_row) * (kElements * teams);

  // 1. Sums of this thread, of elements that are `teams` apart.
  const uint32_t mine = first + team;
  const X* x = static_cast<const X*>(p.x) + x_row + mine * p.x_step;
  float sum[kElements] = {};
  if (team < teams) {
    for (uint32_t word = member; word < p.words; word += p.team) {
      Frames frames[kElements];
#pragma unroll
      for (int k = 0; k < kElements; ++k)
        if (mine + k * teams < p.size) frames[k].stream(x + k * teams * p.x_step + word * V);
      float weight[V];
      load_packs(p.weights + word * V, weight);
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        if (mine + k * teams >= p.size) break;
#pragma unroll
        for (int j = 0; j < V; ++j) sum[k] += weight[j] * plain_pixel<mode, X>(frames[k][j]);
      }
    }
#pragma unroll
    for (int k = 0; k < kElements; ++k) memory.sum[k][team * (p.team + 1) + member] = sum[k];
  }
  __syncthreads();

  // 2. Sums of elements.
  for (uint32_t n = threadIdx.x; n < kElements * teams; n += kThreads) {
    if (first + n >= p.size) break;
    const uint32_t k = n / teams;
    const float* parts = memory.sum[k] + (n - k * teams) * (p.team + 1);
    float total = 0;
    for (uint32_t i = 0; i < p.team; ++i) total += parts[i];
    static_cast<Natural<X>*>(p.y)[y_row + first + n] = store<Natural<X>>(total);
  }
}

template <class X, int bytes>
bool launch_plain_series(const TemporalPoolParams& p, const Context& context) {
  constexpr int size = sizeof(X);
  const auto in_words = [](int64_t elements) { return elements * size % bytes == 0; };
  bool good = reinterpret_cast<uintptr_t>(p.x) % bytes == 0 && in_words(p.T) && in_words(p.inner().x);
  for (int a = 0; a + 1 < p.num_axes; ++a) good = good && (p.axes[a].size == 1 || in_words(p.axes[a].x));
  const int64_t words = p.T * size / bytes, team = std::min<int64_t>(words, kLargestTeam);
  if (!good || words == 0 || reinterpret_cast<uintptr_t>(p.weights) % 16 != 0) return false;
  const int64_t tiles = ceil_div(p.inner().size, kElements * (kThreads / team));
  if (tiles * p.num_outer() > INT32_MAX || p.T > INT32_MAX) return false;
  const PlainSeries series{p.x,
                           static_cast<const float*>(p.weights),
                           p.y,
                           p.inner().x,
                           static_cast<uint32_t>(p.inner().size),
                           static_cast<uint32_t>(words),
                           static_cast<uint32_t>(team),
                           Pieces(p, tiles)};
  launch(p.nonlinearity == Nonlinearity::identity ? plain_series_kernel<X, Mode::identity, bytes>
                                                  : plain_series_kernel<X, Mode::root, bytes>,
         dim3(grid_size(series.tiles.all)), dim3(kThreads), context.stream, series);
  return true;
}

// Pools such frames, and says whether they are.
template <class X>
bool pool_series(const TemporalPoolParams& p, const Context& context) {
  if constexpr (!has_word_path<X>) {
    return false;
  } else {
    if (!is_plain<X>(p) || p.x_t != 1 || p.inner().y != 1 || p.inner().size > INT32_MAX) return false;
    return launch_plain_series<X, 16>(p, context) || (sizeof(X) < 4 && launch_plain_series<X, 8>(p, context));
  }
}

}  // namespace
}  // namespace dynpool::cuda
