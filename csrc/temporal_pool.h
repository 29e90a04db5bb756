// What temporal_pool computes, for both devices.
//
//   z[b, t, i] = (x[b, t, i] - mean[c]) / std[c]                            c = channel of element i
//   y[b, w, i] = Σ_{k < count} A[b, w, k] · ψ(z[b, first + k, i])           (first, count) = bands[b, w]
//
// and, for g = ∂L/∂y,
//
//   ∂L/∂x[b, t, i]    = G[b, t, i] · ψ'(z) / std[c]                         G[b, t, i] = Σ_w A[b, w, t - first] · g[b, w, i]
//   ∂L/∂A[b, w, k]    = Σ_i g[b, w, i] · ψ(z[b, first + k, i])
//   ∂L/∂mean[c]       = - Σ_{b, t, i ∈ c} G · ψ'(z) / std[c]
//   ∂L/∂std[c]        = - Σ_{b, t, i ∈ c} G · ψ'(z) · z / std[c]
//
// A frame outside every band has no say in anything and gets a zero gradient; its pixels may be NaN. Sums over frames
// are accumulated in `Acc`, float32 (float64 for float64 input); A, mean, std and their gradients are arrays of Acc.
//
// Layout. The tensor's dimensions other than T are `axes`, outermost first, in the order of x's memory and merged where
// strides allow: NCHW, NHWC and permuted frames become one long `axes` entry, slices a few. The last axis is the inner
// one, which kernels vectorise; the others only say where a row of it begins.
#pragma once
#include <cstdint>

// Always inlined: these are compiled for several instruction sets, and the linker must not pick one copy for all.
#ifdef __CUDACC__
#define DYNPOOL_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DYNPOOL_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace dynpool {

enum class DType : int { uint8 = 0, float16 = 1, bfloat16 = 2, float32 = 3, float64 = 4 };
enum class Nonlinearity : int { identity = 0, sqrt = 1 };

// Strides count elements. `dx` is the layout of ∂L/∂x; forward leaves it 0.
struct Axis {
  int64_t size = 1;
  int64_t x = 0, y = 0, dx = 0;  // strides
  int64_t clip = 0;              // 1 where this axis is the batch that A and bands vary over, else 0
  int64_t channel = 0;           // 1 where mean and std vary along this axis, else 0
};

constexpr int kMaxAxes = 8;

struct TemporalPoolParams {
  // Tensors. A pointer that is null is absent: bands (every row spans all T = K frames), mean (0), std (1).
  const void* x = nullptr;
  const void* weights = nullptr;    // Acc [clips, W, K]
  const int64_t* bands = nullptr;   // [clips, W, 2]: (first, count); kernels clamp them to [0, T) and [0, K]
  const void* mean = nullptr;       // Acc [channels]
  const void* std = nullptr;        // Acc [channels]
  void* y = nullptr;                // forward: written; y_dtype
  DType x_dtype = DType::float32;
  DType y_dtype = DType::float32;
  Nonlinearity nonlinearity = Nonlinearity::identity;

  int64_t T = 0, W = 0, K = 0;
  int64_t overlap = 0;              // n > 0: bands of one clip, none empty, all within T frames; first and last frames rise
                                    // strictly from row to row; at most n rows have a frame. 0: unknown
  int64_t clips = 1, channels = 1;
  int64_t x_t = 0, y_w = 0, dx_t = 0;  // strides of frames in x, of rows in y (and g), of frames in ∂L/∂x

  int num_axes = 0;                 // at least 1; axes[0] is that of the clips, if any; axes[num_axes - 1] the inner one
  Axis axes[kMaxAxes];
  int64_t channel_period = 0;       // C > 0: the channel of inner element i is i % C (channels-last frames merged)

  // Backward only. Null outputs are not wanted; x may be null where ψ is the identity and dx alone is wanted.
  const void* g = nullptr;          // ∂L/∂y, y_dtype, strides as y
  void* dx = nullptr;               // x_dtype
  void* dweights = nullptr;         // Acc [clips, W, K]
  void* dmean = nullptr;            // Acc [channels]
  void* dstd = nullptr;             // Acc [channels]

  DYNPOOL_HOST_DEVICE const Axis& inner() const { return axes[num_axes - 1]; }
  DYNPOOL_HOST_DEVICE int64_t num_outer() const {
    int64_t n = 1;
    for (int a = 0; a + 1 < num_axes; ++a) n *= axes[a].size;
    return n;
  }
};

// Where the inner row number `outer` begins, and what belongs to it.
struct Row {
  int64_t x = 0, y = 0, dx = 0;  // element offsets
  int64_t clip = 0;
  int64_t channel = 0;           // of its first element
};

DYNPOOL_HOST_DEVICE Row locate_row(const TemporalPoolParams& p, int64_t outer) {
  Row row;
#ifdef __CUDACC__
#pragma unroll 1
#endif
  for (int a = p.num_axes - 2; a >= 0; --a) {
    const Axis& axis = p.axes[a];
    const int64_t i = outer % axis.size;
    outer /= axis.size;
    row.x += i * axis.x;
    row.y += i * axis.y;
    row.dx += i * axis.dx;
    row.clip += i * axis.clip;
    row.channel += i * axis.channel;
  }
  return row;
}

// Channel of inner element i of a row.
DYNPOOL_HOST_DEVICE int64_t channel_of(const TemporalPoolParams& p, const Row& row, int64_t i) {
  return p.channel_period ? i % p.channel_period : row.channel + i * p.axes[p.num_axes - 1].channel;
}

struct Band {
  int64_t first, count;
};

// A row of bands [rows, 2], or all frames, clamped so that no bad band reads outside x or A.
DYNPOOL_HOST_DEVICE Band band_of_row(const int64_t* bands, int64_t row, int64_t T, int64_t K) {
  if (!bands) return {0, T};
  int64_t first = bands[2 * row], count = bands[2 * row + 1];
  if (first < 0 || first >= T || count < 0) return {0, 0};
  if (count > K) count = K;
  if (count > T - first) count = T - first;
  return {first, count};
}
DYNPOOL_HOST_DEVICE Band band_of(const TemporalPoolParams& p, int64_t clip, int64_t w) {
  return band_of_row(p.bands, clip * p.W + w, p.T, p.K);
}

// Dimensions of a tensor as torch gives them, and the axes made of them. `dim` is the dimension of T; channel_dim is -1
// where mean and std are numbers. y_strides has the stride of W at `dim`. dx_strides may be null.
struct TensorLayout {
  int num_dims;
  const int64_t *sizes, *x_strides, *y_strides, *dx_strides;
  int dim, channel_dim;
};

// Fills T, strides, axes and channel_period of p (whose clips and channels are set). Throws std::invalid_argument where
// more than kMaxAxes remain.
void make_axes(TemporalPoolParams& p, const TensorLayout& layout);

struct SolverParams;

namespace cpu {
void temporal_pool(const TemporalPoolParams& p, int num_threads);
void temporal_pool_backward(const TemporalPoolParams& p, int num_threads);
// Products of the frames that bands[b, 0] counts: K[b, s, t] = ⟨ψ_s - ψ̄, ψ_t - ψ̄⟩ [clips, T, T], cross[b, t] =
// ⟨ψ_t - ψ̄, ψ̄⟩ [clips, T] and norm[b] = ‖ψ̄‖² [clips], ψ̄ the mean of ψ(z) over the frames. y, A and g play no part.
void gram(const TemporalPoolParams& p, double* K, double* cross, double* norm, int num_threads);
void solve(const SolverParams& p, int num_threads);  // solver.h
// "avx512vbmi", "avx512", "avx2" or "baseline": what runs here; `limit` (null: no limit) caps the choice, for tests and benchmarks.
const char* instruction_set();
void limit_instruction_set(const char* limit);
}  // namespace cpu

namespace cuda {
// Device memory that a launch needs beside its tensors; the caller keeps it until the stream has passed the launch.
using Allocate = void* (*)(int64_t bytes, void* allocator);
// `stream` is a cudaStream_t of `device`. All enqueue and return; errors of the launch throw std::runtime_error.
void temporal_pool(const TemporalPoolParams& p, int device, void* stream, Allocate allocate, void* allocator);
void temporal_pool_backward(const TemporalPoolParams& p, int device, void* stream, Allocate allocate, void* allocator);
// As cpu::gram, but y holds ψ̄, Acc, and plays a part.
void gram(const TemporalPoolParams& p, double* K, double* cross, double* norm, int device, void* stream,
          Allocate allocate, void* allocator);
void solve(const SolverParams& p, int device, void* stream);
int device_count();                  // 0 where there is no driver
const char* architectures();         // as compiled, "75,80,…"
const char* trouble_on(int device);  // why no kernel can ever run there; null if one may
}  // namespace cuda

}  // namespace dynpool
