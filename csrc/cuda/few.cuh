// At most 16 frames of few pixels, in words, otherwise as in plain.cuh. All are asked for before the first is used, and the
// kernel is short, since its code has to come from memory, too.
#pragma once
#include "launchers.h"
#include "mode.cuh"
#include "patch.cuh"

namespace dynpool::cuda {
namespace {

struct Few {
  const void* x;
  const float* weights;
  void* y;
  uint32_t x_t, size;  // elements from frame to frame, and of a clip
  int T;
  uint32_t x_clip, y_clip;  // elements from clip to clip
};

template <class X, Mode mode, int V>
__global__ void __launch_bounds__(kThreads) few_kernel(const Few p) {
  using Frame = Patch<X, Access::aligned, V * static_cast<int>(sizeof(X))>;
  const uint32_t first = (blockIdx.x * kThreads + threadIdx.x) * V;
  if (first >= p.size) return;
  const X* x = static_cast<const X*>(p.x) + blockIdx.y * p.x_clip + first;
  Frame frame[kFewFrames];
  float weight[kFewFrames];
#pragma unroll
  for (int t = 0; t < kFewFrames; ++t) {
    if (t >= p.T) break;
    frame[t].load(x + t * p.x_t);
    weight[t] = __ldg(p.weights + t);
  }
  float sum[V] = {};
#pragma unroll
  for (int t = 0; t < kFewFrames; ++t) {
    if (t >= p.T) break;
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] += weight[t] * plain_pixel<mode, X>(frame[t][j]);
  }
  store_packs<0>(static_cast<Natural<X>*>(p.y) + blockIdx.y * p.y_clip + first, sum);
}

template <class X, int V>
void launch_few(const TemporalPoolParams& p, const Context& context) {
  const int64_t size = p.inner().size, clips = p.num_outer();
  const Axis clip = p.num_axes > 1 ? p.axes[0] : Axis{};
  const Few few{p.x, static_cast<const float*>(p.weights), p.y, static_cast<uint32_t>(p.x_t), static_cast<uint32_t>(size),
                static_cast<int>(p.T), static_cast<uint32_t>(clip.x), static_cast<uint32_t>(clip.y)};
  launch(p.nonlinearity == Nonlinearity::identity ? few_kernel<X, Mode::identity, V> : few_kernel<X, Mode::root, V>,
         dim3(grid_size(ceil_div(size, V * kThreads)), static_cast<unsigned>(clips)), dim3(kThreads), context.stream, few);
}

// Pools such frames, and says whether they are.
template <class X>
bool pool_few(const TemporalPoolParams& p, const Context& context) {
  if constexpr (sizeof(X) == 1) {
    return false;
  } else {
    constexpr int kRoom = 8 * 2 * kThreads;  // pixels of a multiprocessor that holds eight blocks
    const int64_t pixels = p.num_outer() * p.inner().size, processors = multiprocessors(context.device);
    const auto narrow = [](int64_t stride, int64_t steps) { return stride >= 0 && stride * steps <= INT32_MAX; };
    if (p.T > kFewFrames || pixels > kRoom * processors || p.num_axes > 2 || !narrow(p.x_t, p.T)) return false;
    if (p.num_axes > 1) {
      const Axis& clip = p.axes[0];
      if (!narrow(clip.x, clip.size) || !narrow(clip.y, clip.size) || clip.size > 65535) return false;
    }
    if (pixels <= kThreads * processors) launch_few<X, 4 / sizeof(X)>(p, context);
    else launch_few<X, 2>(p, context);
    return true;
  }
}

}  // namespace
}  // namespace dynpool::cuda
