// ∂L/∂x in the usual case: one row over all frames, weights that all clips share, neither mean nor std, pixels side by side
// in ∂L/∂x and g.
//
// A block writes whole kilobytes of one frame and then is done, as memory likes it; what it reads of g, blocks before it have
// read. Of frames of x that are no crops the words lie as those of ∂L/∂x do.
#pragma once
#include "gradient.cuh"
#include "launchers.h"
#include "patch.cuh"

namespace dynpool::cuda {
namespace {

// ψ'(z) less a factor that is the same for all z.
template <Nonlinearity psi, class X, bool normalized, class Acc>
__device__ __forceinline__ Acc slope_of(Acc z) {
  if constexpr (psi == Nonlinearity::identity) return Acc(1);
  // float16 has no pixels that are denormal numbers of Acc.
  const Acc slope = std::is_same_v<X, Half> && !normalized ? quick_inverse_root(magnitude(z))
                                                           : inverse_root(magnitude(z));
  return z == Acc(0) ? Acc(0) : slope;
}

struct PlainGradient {
  const void *g, *x;
  const float* weights;
  void* dx;
  uint32_t tiles, T;  // of an inner row; frames
  uint32_t size;      // elements of an inner row
  int64_t x_t, dx_t;
  Axis outer;  // the other axis, if any: mostly that of clips
  Extent y;    // of g
};
template <class X, Nonlinearity psi, Access access>
constexpr int kPiecesAtOnce = sizeof(X) == 2 && psi == Nonlinearity::identity && access == Access::shifted ? 4 : 2;

// n / divisor for n < 2^31, by a product: 2^(31 + l) / divisor, rounded up, is too large by less than 2^l / divisor, l the
// bits of the divisor.
class Divisor {
 public:
  explicit Divisor(uint32_t divisor) : value_(divisor) {
    while ((uint64_t{1} << (shift_ + 1)) < divisor) ++shift_;
    factor_ = static_cast<uint32_t>(((uint64_t{1} << (32 + shift_)) + divisor - 1) / divisor);
  }
  DYNPOOL_HOST_DEVICE uint32_t value() const { return value_; }
  DYNPOOL_HOST_DEVICE uint32_t quotient(uint32_t n) const {
    return static_cast<uint32_t>(uint64_t{n} * factor_ >> 32) >> shift_;
  }

 private:
  uint32_t value_, factor_ = 0, shift_ = 0;
};

// Where rows of x lie apart, as those of a crop do: a frame of ∂L/∂x is one row all the same.
struct CroppedGradient : PlainGradient {
  Divisor width, height;  // elements of a row of x; rows of a plane
  int row, plane;         // from one to the next
  uint32_t frames;        // of all clips; around all but the first and the last, words may be read
  Extent extent;          // of x

  // An element of a frame of x.
  struct Position {
    int offset, left, next;  // from the first; to the end of its row; offset of the next row
  };
  __device__ __forceinline__ Position position(uint32_t i) const {
    const uint32_t y = width.quotient(i), channel = height.quotient(y), line = y - channel * height.value();
    const int start = channel * plane + line * row, column = i - y * width.value();
    return {start + column, static_cast<int>(width.value()) - column,
            line + 1 == height.value() ? static_cast<int>(channel + 1) * plane : start + row};
  }
  // 16 bytes from a position on, of which those past the end of the row are wrong.
  template <bool checked, class X>
  __device__ __forceinline__ void begin(Patch<X, Access::shifted>& pixels, const X* frame, const Position& at) const {
    const X* first = frame + at.offset;
    if (!checked || fits(reinterpret_cast<uint64_t>(first), extent)) return pixels.load(first);
    pixels.load_each([&](int j) { return j < at.left ? bits_of(first[j]) : 0; });
  }
  // Aligns them, and makes those right.
  template <bool checked, class X>
  __device__ __forceinline__ void complete(Patch<X, Access::shifted>& pixels, const X* frame, const Position& at) const {
    pixels.align();
    if (at.left >= pixels.V) return;
    Patch<X, Access::shifted> rest;
    const X* first = frame + (at.next - at.left);
    if (!checked || fits(reinterpret_cast<uint64_t>(first), extent)) rest.load(first);
    else rest.load_each([&](int j) { return j < at.left ? 0 : bits_of(first[j]); });
    rest.align();
    pixels.end_as(rest, at.left);
  }
};
template <bool cropped>
using GradientOf = std::conditional_t<cropped, CroppedGradient, PlainGradient>;

// `shifted`: a frame's words may begin before it, and those of g anywhere.
template <class X, Nonlinearity psi, Access access, bool cropped = false>
__global__ void __launch_bounds__(kThreads) plain_gradient(const GradientOf<cropped> p) {
  using Frame = Patch<X, access>;
  static_assert(!cropped || access == Access::shifted, "a frame of ∂L/∂x may begin anywhere");
  constexpr int V = Frame::V, N = kPiecesAtOnce<X, psi, access>;
  constexpr bool shifted = access == Access::shifted, reads_x = psi != Nonlinearity::identity;
  const uint32_t frame = blockIdx.x / p.tiles, tile = blockIdx.x - frame * p.tiles;
  const uint32_t row = frame / p.T, t = frame - row * p.T;
  const X* g = static_cast<const X*>(p.g) + row * p.outer.y;
  const X* x = static_cast<const X*>(p.x) + row * p.outer.x + t * p.x_t;
  X* dx = static_cast<X*>(p.dx) + row * p.outer.dx + t * p.dx_t;
  const float weight = __ldg(p.weights + t) * (reads_x ? 0.5f : 1.0f);
  const int skew = shifted ? static_cast<int>(reinterpret_cast<uint64_t>(dx) % 16 / sizeof(X)) : 0;

  Frame gradient[N], pixels[N];
  [[maybe_unused]] std::conditional_t<cropped, CroppedGradient::Position, int> at[N];
  const auto multiply = [&](int u, float (&value)[V]) {
    gradient[u].align();
#pragma unroll
    for (int j = 0; j < V; ++j) {
      value[j] = weight * gradient[u][j];
      if constexpr (reads_x) value[j] *= slope_of<psi, X, false>(pixels[u][j]);
    }
  };

  // 1. Blocks all of whose words lie within the frame and may be read: nearly all.
  const int64_t begin = int64_t{tile} * (N * kThreads * V) - skew;
  constexpr int kBehind = (N * kThreads - 1) * V;  // from the first piece of a block to its last
  bool readable = true;
  if constexpr (cropped) readable = frame > 0 && frame + 1 < p.frames;
  if (begin >= 0 && begin + kBehind + V <= p.size &&
      (!shifted || (fits(reinterpret_cast<uint64_t>(g + begin), p.y) &&
                    fits(reinterpret_cast<uint64_t>(g + begin + kBehind), p.y))) &&
      readable) {
    const int first = static_cast<int>(begin) + threadIdx.x * V;
#pragma unroll
    for (int u = 0; u < N; ++u) {
      gradient[u].load(g + first + u * kThreads * V);
      if constexpr (cropped) {
        at[u] = p.position(first + u * kThreads * V);
        p.template begin<false>(pixels[u], x, at[u]);
      } else if constexpr (reads_x) {
        read_word(x + first + u * kThreads * V, pixels[u].word);
      }
    }
#pragma unroll
    for (int u = 0; u < N; ++u) {
      if constexpr (cropped) p.template complete<false>(pixels[u], x, at[u]);
      float value[V];
      multiply(u, value);
      store_word<true>(reinterpret_cast<uint4*>(dx + first + u * kThreads * V), bit_cast<uint4>(pack_of<X, V>(value)));
    }
    return;
  }

  // 2. The others. Columns of piece u, of which some may lie outside of the frame.
  const auto place_of_piece = [&](int u) {
    const int64_t column = begin + (u * kThreads + threadIdx.x) * V;
    const int outside = column < 0 ? static_cast<int>(-column) : 0;
    return Place<access>{0, column, 1, outside, static_cast<int>(min(int64_t{V}, int64_t{p.size} - column)), Row{}};
  };
#pragma unroll
  for (int u = 0; u < N; ++u) {
    const Place<access> place = place_of_piece(u);
    if (place.empty()) break;
    if constexpr (shifted) {
      if (place.template whole<V>() && fits(reinterpret_cast<uint64_t>(g + place.first), p.y)) {
        gradient[u].load(g + place.first);
      } else {
        gradient[u].load_singly(g, place);
      }
      if constexpr (cropped) {
        const auto pixel = [&](int j) { return x[p.position(static_cast<uint32_t>(place.column(j))).offset]; };
        at[u] = {0, V, 0};
        if (place.template whole<V>()) {
          at[u] = p.position(static_cast<uint32_t>(place.first));
          p.template begin<true>(pixels[u], x, at[u]);
        } else {
          pixels[u].load_each([&](int j) { return place.owns(j) ? bits_of(pixel(j)) : 0; });
        }
      } else if constexpr (reads_x) {
        if (place.template whole<V>()) read_word(x + place.first, pixels[u].word);
        else pixels[u].load_singly(x, place);
      }
    } else {
      gradient[u].load(g + place.first);
      if constexpr (reads_x) pixels[u].load(x + place.first);
    }
  }
#pragma unroll
  for (int u = 0; u < N; ++u) {
    const Place<access> place = place_of_piece(u);
    if (place.empty()) break;
    if constexpr (cropped) p.template complete<true>(pixels[u], x, at[u]);
    float value[V];
    multiply(u, value);
    if constexpr (shifted) {
      store_whole<true>(dx + place.first, place, value);
    } else {
      store_word<true>(reinterpret_cast<uint4*>(dx + place.first), bit_cast<uint4>(pack_of<X, V>(value)));
    }
  }
}

// --- launchers -------------------------------------------------------------------------------------------------------

// Whether the words of x begin where those of ∂L/∂x do.
template <class X>
bool alike(const TemporalPoolParams& p) {
  constexpr int V = patch_size<X, Access::shifted>;
  bool good = (reinterpret_cast<uintptr_t>(p.x) - reinterpret_cast<uintptr_t>(p.dx)) % 16 == 0;
  good = good && (p.T == 1 || (p.x_t - p.dx_t) % V == 0);
  for (int a = 0; a < p.num_axes; ++a) good = good && (p.axes[a].size == 1 || (p.axes[a].x - p.axes[a].dx) % V == 0);
  return good;
}

// Launches plain_gradient where it may be, and says whether.
template <class X, Nonlinearity psi>
bool launch_plain(const TemporalPoolParams& p, const Context& context) {
  constexpr int V = patch_size<X, Access::shifted>, kLeast = 16 * kThreads;  // elements that are worth blocks
  if (p.W > 1 || p.bands || p.mean || p.std || p.clips > 1 || p.num_axes > 2 || p.y_dtype != p.x_dtype) return false;
  const bool words = in_words(p, p.g);
  const Axis& inner = p.inner();
  const bool side_by_side = inner.dx == 1 && inner.y == 1 && (!p.x || (inner.x == 1 && alike<X>(p)));
  if (!words && !side_by_side) return false;
  if (inner.size < kLeast && !(words && p.num_axes == 1)) return false;
  const int64_t pieces = ceil_div(inner.size + (words ? 0 : V - 1), V),
                at_once = words ? kPiecesAtOnce<X, psi, Access::aligned> : kPiecesAtOnce<X, psi, Access::shifted>,
                tiles = ceil_div(pieces, kThreads * at_once);
  const int64_t blocks = tiles * p.T * p.num_outer();
  if (inner.size > INT32_MAX || blocks > INT32_MAX) return false;
  if (blocks == 0) return true;
  const PlainGradient gradient{p.g, p.x, static_cast<const float*>(p.weights), p.dx, static_cast<uint32_t>(tiles),
                               static_cast<uint32_t>(p.T), static_cast<uint32_t>(inner.size), p.x_t, p.dx_t,
                               p.num_axes > 1 ? p.axes[0] : Axis{},
                               extent_of(p, p.g, p.y_dtype, &Axis::y, p.y_w, p.W)};
  launch(words ? plain_gradient<X, psi, Access::aligned> : plain_gradient<X, psi, Access::shifted>,
         dim3(grid_size(blocks)), dim3(kThreads), context.stream, gradient);
  return true;
}

// Launches it for crops of other frames, and says whether they are.
template <class X>
bool launch_cropped(const TemporalPoolParams& p, const Context& context) {
  constexpr Nonlinearity psi = Nonlinearity::sqrt;
  constexpr int V = patch_size<X, Access::shifted>, kLeast = 16 * kThreads;
  if (p.W > 1 || p.bands || p.mean || p.std || p.clips > 1 || p.y_dtype != p.x_dtype || p.inner().x != 1) return false;
  int64_t size = 1;  // of a frame: of the axes from `first` on, which are side by side in g and ∂L/∂x
  int first = p.num_axes;
  for (; first > 0 && p.axes[first - 1].dx == size && p.axes[first - 1].y == size; --first) size *= p.axes[first - 1].size;
  const int inside = p.num_axes - first;
  const Axis& rows = p.axes[inside < 2 ? 0 : p.num_axes - 2];
  if (first > 1 || inside < 2 || inside > 3 || p.inner().size < V || rows.size < 2) return false;
  if (size < kLeast || size > INT32_MAX) return false;
  const int64_t tiles = ceil_div(ceil_div(size + V - 1, V), kThreads * kPiecesAtOnce<X, psi, Access::shifted>);
  const int64_t blocks = tiles * p.T * (first ? p.axes[0].size : 1);
  if (blocks > INT32_MAX) return false;
  if (blocks == 0) return true;
  const PlainGradient gradient{p.g, p.x, static_cast<const float*>(p.weights), p.dx, static_cast<uint32_t>(tiles),
                               static_cast<uint32_t>(p.T), static_cast<uint32_t>(size), p.x_t, p.dx_t,
                               first ? p.axes[0] : Axis{}, extent_of(p, p.g, p.y_dtype, &Axis::y, p.y_w, p.W)};
  const int64_t row = rows.x, plane = inside == 3 ? p.axes[first].x : 0, planes = inside == 3 ? p.axes[first].size : 1;
  if (rows.size * row + planes * plane > INT32_MAX - p.inner().size) return false;
  constexpr int64_t kApart = 4 * V;  // that words around a frame are of the tensor
  if (p.x_t < kApart || (first && p.axes[0].x < kApart)) return false;
  const CroppedGradient crop{gradient,
                             Divisor(static_cast<uint32_t>(p.inner().size)),
                             Divisor(static_cast<uint32_t>(rows.size)),
                             static_cast<int>(row),
                             static_cast<int>(plane),
                             static_cast<uint32_t>(blocks / tiles),
                             extent_of(p)};
  launch(plain_gradient<X, psi, Access::shifted, true>, dim3(grid_size(blocks)), dim3(kThreads), context.stream, crop);
  return true;
}

}  // namespace
}  // namespace dynpool::cuda
