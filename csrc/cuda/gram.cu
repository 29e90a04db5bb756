// Products of the frames of a clip, for exact rank pooling. A block multiplies kSide frames with kSide others over a
// share of the pixels, ψ less its mean over the frames, in float32 (float64 for float64 frames); sums over kSegment
// pixels are float, over more double, and the shares are added up in a fixed order. Row T of the products is that of
// the mean with everything else.
#include "launchers.h"

namespace dynpool::cuda {
namespace {

constexpr int kSide = 64;       // frames
constexpr int kDepth = 32;      // pixels in shared memory at a time
constexpr int kSegment = 1024;  // pixels
constexpr int kAcross = 8, kDown = kThreads / kAcross;  // threads of a block
constexpr int kColumns = kSide / kAcross, kRows = kSide / kDown;

struct GramShape {
  int64_t segments_of_row, segments, chunks;  // of a clip
  int sides, tiles;                           // kSide frames; pairs of such
};

template <class X>
struct GramLoader {
  using Acc = typename Accumulate<X>::type;
  const TemporalPoolParams& p;
  const X* x;          // element 0 of the inner row in frame 0
  const Acc* average;  // element 0 of it
  Row row;
  int64_t T;           // frames of the clip

  // What frame t has at inner element i, or the mean for t = p.T.
  __device__ __forceinline__ Acc operator()(int64_t t, int64_t i) const {
    const Acc mean = average[i * p.inner().y];
    if (t >= T) return t == p.T ? mean : 0;
    const Normalization<Acc> n = normalization_of<Acc>(p, channel_of(p, row, i));
    const Acc z = (load(x[t * p.x_t + i * p.inner().x]) - n.mean) * n.inverse_std;
    return (p.nonlinearity == Nonlinearity::identity ? z : apply_psi<Nonlinearity::sqrt>(z)) - mean;
  }
};

template <class X>
__global__ void __launch_bounds__(kThreads)
    gram_kernel(TemporalPoolParams p, GramShape shape, double* partials) {
  using Acc = typename Accumulate<X>::type;
  __shared__ Acc left[kDepth][kSide + 1], right[kDepth][kSide + 1];

  int tile = static_cast<int>(blockIdx.x % shape.tiles), down = 0;  // of the lower triangle
  const int64_t share = blockIdx.x / shape.tiles, clip = share / shape.chunks, chunk = share % shape.chunks;
  while (tile > down) tile -= ++down;
  const int64_t first_row = int64_t{down} * kSide, first_column = int64_t{tile} * kSide;
  const int thread = static_cast<int>(threadIdx.x), mine_down = thread / kAcross, mine_across = thread % kAcross;
  const int64_t T = band_of(p, clip, 0).count, rows_of_clip = p.num_outer() / p.clips, inner = p.inner().size;

  double total[kRows][kColumns] = {};
  const int64_t end = shape.segments * (chunk + 1) / shape.chunks;
  for (int64_t segment = shape.segments * chunk / shape.chunks; segment < end; ++segment) {
    const Row row = locate_row(p, clip * rows_of_clip + segment / shape.segments_of_row);
    const GramLoader<X> value{p, static_cast<const X*>(p.x) + row.x, static_cast<const Acc*>(p.y) + row.y, row, T};
    const int64_t begin = segment % shape.segments_of_row * kSegment;
    const int64_t stop = min(begin + kSegment, inner);
    Acc sum[kRows][kColumns] = {};
    for (int64_t pixel = begin; pixel < stop; pixel += kDepth) {
      for (int e = thread; e < kSide * kDepth; e += kThreads) {
        const int64_t i = pixel + e % kDepth;
        left[e % kDepth][e / kDepth] = i < stop ? value(first_row + e / kDepth, i) : 0;
        right[e % kDepth][e / kDepth] = i < stop ? value(first_column + e / kDepth, i) : 0;
      }
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kDepth; ++k) {
        Acc a[kRows], b[kColumns];
#pragma unroll
        for (int r = 0; r < kRows; ++r) a[r] = left[k][mine_down + r * kDown];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) b[c] = right[k][mine_across + c * kAcross];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int c = 0; c < kColumns; ++c) sum[r][c] += a[r] * b[c];
      }
      __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int c = 0; c < kColumns; ++c) total[r][c] += sum[r][c];
  }
  double* out = partials + share * (p.T + 1) * (p.T + 1);
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const int64_t s = first_row + mine_down + r * kDown, t = first_column + mine_across + c * kAcross;
      if (s <= p.T && t <= s) out[s * (p.T + 1) + t] = total[r][c];
    }
}

__global__ void __launch_bounds__(kThreads)
    add_products(const double* partials, int64_t T, int64_t clips, int64_t chunks, double* K, double* cross, double* norm) {
  const int64_t size = (T + 1) * (T + 1), step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = int64_t{kThreads} * blockIdx.x + threadIdx.x; i < clips * size; i += step) {
    const int64_t clip = i / size, s = i % size / (T + 1), t = i % (T + 1);
    if (t > s) continue;
    double sum = 0;
    for (int64_t c = 0; c < chunks; ++c) sum += partials[(clip * chunks + c) * size + s * (T + 1) + t];
    if (s < T) {
      K[(clip * T + s) * T + t] = K[(clip * T + t) * T + s] = sum;
    } else if (t < T) {
      cross[clip * T + t] = sum;
    } else {
      norm[clip] = sum;
    }
  }
}

template <class X>
void gram_of(const TemporalPoolParams& p, double* K, double* cross, double* norm, const Context& context) {
  GramShape shape;
  const int64_t elements = p.num_outer() * p.inner().size;
  shape.segments_of_row = std::max<int64_t>(1, ceil_div(p.inner().size, kSegment));
  shape.segments = elements ? p.num_outer() / p.clips * shape.segments_of_row : 0;
  shape.sides = static_cast<int>(ceil_div(p.T + 1, kSide));
  shape.tiles = shape.sides * (shape.sides + 1) / 2;
  const int64_t size = (p.T + 1) * (p.T + 1);
  const int64_t wanted = ceil_div(context.blocks_wanted(), shape.tiles * p.clips);
  const int64_t room = std::max<int64_t>(1, (int64_t{32} << 20) / (p.clips * size));  // partial sums of 256 MB, or one each
  shape.chunks = std::max<int64_t>(1, std::min({wanted, room, shape.segments}));
  double* partials = context.memory<double>(p.clips * shape.chunks * size);
  launch(gram_kernel<X>, dim3(grid_size(shape.tiles * shape.chunks * p.clips)), dim3(kThreads), context.stream, p, shape,
         partials);
  const int64_t blocks = std::min<int64_t>(ceil_div(p.clips * size, kThreads), context.blocks_wanted());
  launch(add_products, dim3(grid_size(blocks)), dim3(kThreads), context.stream, partials, p.T, p.clips, shape.chunks, K,
         cross, norm);
}

}  // namespace

void gram(const TemporalPoolParams& p, double* K, double* cross, double* norm, int device, void* stream,
          Allocate allocate, void* allocator) {
  if (p.clips == 0) return;
  if (p.T > 1 << 15) throw std::invalid_argument("T must be at most 32768 on CUDA, got " + std::to_string(p.T));
  const DeviceGuard guard(device);
  const Context context{device, static_cast<cudaStream_t>(stream), allocate, allocator};
  switch (p.x_dtype) {
    case DType::uint8: return gram_of<uint8_t>(p, K, cross, norm, context);
    case DType::float16: return gram_of<Half>(p, K, cross, norm, context);
    case DType::bfloat16: return gram_of<BFloat16>(p, K, cross, norm, context);
    case DType::float32: return gram_of<float>(p, K, cross, norm, context);
    case DType::float64: return gram_of<double>(p, K, cross, norm, context);
  }
}

}  // namespace dynpool::cuda
