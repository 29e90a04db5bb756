// CPU kernels: plain loops for the compiler to vectorise, compiled once for each instruction set (DYNPOOL_ISA).
//
// A task is a tile: up to kTile elements of one inner row. Its accumulators stay in the first-level cache while the
// frames stream past, several at a time, so that a frame is read once and an output written once.
#pragma once
#include <memory>

#include "../pixel.h"
#include "../temporal_pool.h"
#include "lookup.h"
#include "rows.h"
#include "tasks.h"
#include "transpose.h"
#include "vectors.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

constexpr int kFrames = 16;  // frames summed between a load and a store of the accumulators
constexpr int64_t kPart = 256;  // pixels of a tile at a time, where rows share frames

// Pixels of a tile: mean and 1/std of each element, filled only where a kernel asks for them, or ψ(z) by table.
template <class Acc>
struct TilePixels {
  Acc mean[kTile], inverse_std[kTile];
  const LookupTable* table = nullptr;  // sums are then in the table's lane order

  void fill(const TemporalPoolParams& p, const Row& row, int64_t begin, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
      const Normalization<Acc> c = normalization_of<Acc>(p, channel_of(p, row, begin + i));
      mean[i] = c.mean;
      inverse_std[i] = c.inverse_std;
    }
  }
};

template <class Acc, bool normalized, class X>
inline __attribute__((always_inline)) Acc normalize(X x, const TilePixels<Acc>& pixels, int64_t i) {
  if constexpr (normalized) return (load(x) - pixels.mean[i]) * pixels.inverse_std[i];
  return load(x);
}

// Where frames lie: at equal distances, or each anywhere.
template <class X>
struct Strided {
  const X* x;
  int64_t stride;
  const X* operator[](int64_t t) const { return x + t * stride; }
  Strided from(int64_t t) const { return {x + t * stride, stride}; }
};
template <class X>
struct Scattered {
  const X* const* x;
  const X* operator[](int64_t t) const { return x[t]; }
  Scattered from(int64_t t) const { return {x + t}; }
};

// --- forward -------------------------------------------------------------------------------------------------------

// Zeros for n elements, in whole blocks: a table's lane order fills the last one.
template <class Acc>
void clear(Acc* acc, int64_t n) {
  for (int64_t i = 0; i < (n + kBlock - 1) / kBlock * kBlock; ++i) acc[i] = 0;
}

template <Nonlinearity psi, class X>
inline __attribute__((always_inline)) auto psi_vector(const X* x) {
  if constexpr (psi == Nonlinearity::identity) return floats_of(x);
  else return signed_root<X>(floats_of(x));
}

// acc[i] += Σ_u a[u] ψ(z[u, i]) for the frames u = U….
template <Nonlinearity psi, bool normalized, class Acc, class Frames, int... U>
void add_frames(Acc* __restrict acc, const Frames& x, const Acc* a, const TilePixels<Acc>& pixels, int64_t n,
                std::integer_sequence<int, U...>) {
  using X = std::decay_t<decltype(*x[0])>;
  const X* const frame[] = {x[U]...};
  const Acc weight[] = {a[U]...};
  int64_t i = 0;
  if constexpr (has_vectors<X, psi> && !normalized) {
    for (; i + kVector <= n; i += kVector) {
      Floats sum;
      memcpy(&sum, acc + i, sizeof(sum));
      ((sum += weight[U] * psi_vector<psi>(frame[U] + i)), ...);
      memcpy(acc + i, &sum, sizeof(sum));
    }
  }
#pragma GCC ivdep
  for (; i < n; ++i) {
    Acc sum = acc[i];
    ((sum += weight[U] * apply_psi<psi>(normalize<Acc, normalized>(frame[U][i], pixels, i))), ...);
    acc[i] = sum;
  }
}

// add(`rest` frames), of which there are 1 + one of `lengths`, or none.
template <class Add, int... lengths>
inline __attribute__((always_inline)) void add_rest(int64_t rest, const Add& add, std::integer_sequence<int, lengths...>) {
  ((rest == 1 + lengths ? add(std::make_integer_sequence<int, 1 + lengths>()) : void()), ...);
}

// acc[i] += Σ_{t < count} a[t] ψ(z[t, i])
template <Nonlinearity psi, bool normalized, class Acc, class Frames>
void accumulate(Acc* acc, const Frames& x, const Acc* a, int64_t count, const TilePixels<Acc>& pixels, int64_t n) {
  if constexpr (looks_up<std::decay_t<decltype(*x[0])>, psi>)
    if (pixels.table) return accumulate_by_table(acc, x, a, count, *pixels.table, n);
  int64_t t = 0;
  const auto add = [&](auto frames) {
    for (; t + static_cast<int64_t>(frames.size()) <= count; t += frames.size())
      add_frames<psi, normalized>(acc, x.from(t), a + t, pixels, n, frames);
  };
  add(std::make_integer_sequence<int, kFrames>());
  if constexpr (psi == Nonlinearity::identity && !normalized) {  // the end in one pass: windows end anywhere in a block
    add_rest(count - t, add, std::make_integer_sequence<int, kFrames - 1>());
  } else {
    add(std::make_integer_sequence<int, kFrames / 2>());  // windows are often of ten
    add(std::make_integer_sequence<int, 2>());
    add(std::make_integer_sequence<int, 1>());
  }
}

// Elements from row to row of a tile's buffers: whole blocks, and a cache line more, since rows a power of two apart would
// share the few places that a cache has for them.
template <class X>
int64_t row_pitch(const Tasks& tasks) {
  const int64_t longest = tasks.inner < tasks.length ? tasks.inner : tasks.length;
  return (longest + kBlock - 1) / kBlock * kBlock + 64 / static_cast<int64_t>(sizeof(X));
}

// A tile's frames with unit stride: the tensor itself, or copies of kFrames frames at a time.
template <class X>
struct TileFrames {
  const X* x;  // element 0 of the tile in frame 0
  int64_t frame_stride, element_stride, n;
  X* packed;  // [frames of a block, pitch], used where element_stride is not 1
  int64_t pitch;

  const X* block(int64_t t, int64_t frames, int64_t* stride) const {
    if (element_stride == 1) {
      *stride = frame_stride;
      return x + t * frame_stride;
    }
    pack(packed, pitch, x + t * frame_stride, frame_stride, element_stride, frames, n);
    *stride = pitch;
    return packed;
  }
  int64_t block_length(int64_t count) const {
    return element_stride == 1 || count < kFrames ? count : kFrames;
  }
};

// Σ_i g[i] ψ(z[i])
template <Nonlinearity psi, bool normalized, class Acc, class X>
Acc dot(const Acc* g, const X* x, const TilePixels<Acc>& pixels, int64_t n) {
  Acc sum = 0;
  int64_t done = 0;
  if constexpr (has_vectors<X, psi> && !normalized) {
    constexpr int64_t kSums = 4;  // or each addition waits for the one before
    Floats sums[kSums] = {};
    for (; done + kSums * kVector <= n; done += kSums * kVector) {
      for (int64_t k = 0; k < kSums; ++k) {
        Floats factor;
        memcpy(&factor, g + done + k * kVector, sizeof(factor));
        sums[k] += factor * psi_vector<psi>(x + done + k * kVector);
      }
    }
    const Floats all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    float lanes[kVector];
    memcpy(lanes, &all, sizeof(lanes));
    for (const float lane : lanes) sum += lane;
  }
#pragma omp simd reduction(+ : sum)
  for (int64_t i = done; i < n; ++i) sum += g[i] * apply_psi<psi>(normalize<Acc, normalized>(x[i], pixels, i));
  return sum;
}

#ifdef __AVX512F__
// acc[i] += Σ_{t < count} a[t] x[i stride + t], of 16 pixels at a time.
template <class X>
void add_dots_across(float* acc, const X* x, int64_t stride, const float* a, int64_t count, int64_t n) {
  const int rest = static_cast<int>(count % kVector);
  for (int64_t i = 0; i < n; i += kVector) {
    const int64_t pixels = n - i < kVector ? n - i : kVector;
    Floats sums[kVector] = {};
    int64_t t = 0;
    for (; t + kVector <= count; t += kVector)
      for (int k = 0; k < kVector; ++k)
        sums[k] += floats_of(a + t) * floats_of(x + (i + (k < pixels ? k : 0)) * stride + t);
    for (int k = 0; rest && k < kVector; ++k)
      sums[k] += floats_of(a + t, rest) * floats_of(x + (i + (k < pixels ? k : 0)) * stride + t, rest);
    const Floats all = lane_sums(sums);
    const __mmask16 inside = static_cast<__mmask16>((1 << pixels) - 1);
    _mm512_mask_storeu_ps(acc + i, inside, _mm512_maskz_loadu_ps(inside, acc + i) + all);
  }
}
#endif

// Whether a pixel's frames lie together, and are enough for whole vectors.
template <class X, Nonlinearity psi, bool normalized>
bool lie_across(int64_t frame_stride, int64_t element_stride, int64_t count) {
  constexpr int64_t kEnough = kVector == 16 ? 8 : sizeof(X) < 4 ? 64 : 16;
  return psi == Nonlinearity::identity && !normalized && frame_stride == 1 && element_stride != 1 && count >= kEnough;
}

template <Nonlinearity psi, bool normalized, class Acc, class X>
void accumulate_band(Acc* acc, const TileFrames<X>& frames, Band band, const Acc* a, const TilePixels<Acc>& pixels) {
  if (lie_across<X, psi, normalized>(frames.frame_stride, frames.element_stride, band.count)) {
    const X* x = frames.x + band.first;
#ifdef __AVX512F__
    if constexpr (std::is_same<Acc, float>::value)
      return add_dots_across(acc, x, frames.element_stride, a, band.count, frames.n);
#endif
    for (int64_t i = 0; i < frames.n; ++i, x += frames.element_stride)
      acc[i] += dot<psi, normalized>(a, x, pixels, band.count);
    return;
  }
  for (int64_t k = 0; k < band.count;) {
    const int64_t length = frames.block_length(band.count - k);
    int64_t stride;
    const X* x = frames.block(band.first + k, length, &stride);
    accumulate<psi, normalized>(acc, Strided<X>{x, stride}, a + k, length, pixels, frames.n);
    k += length;
  }
}

// ψ(z[i]) of a frame.
template <Nonlinearity psi, bool normalized, class Acc, class X>
void fill_psi(Acc* __restrict psi_frame, const X* __restrict x, const TilePixels<Acc>& pixels, int64_t n) {
  if constexpr (looks_up<X, psi>)
    if (pixels.table) return look_frame_up(psi_frame, x, *pixels.table, n);
  int64_t done = 0;
  if constexpr (has_vectors<X, psi> && !normalized) {
    for (; done + kVector <= n; done += kVector) {
      const Floats values = psi_vector<psi>(x + done);
      memcpy(psi_frame + done, &values, sizeof(values));
    }
  }
#pragma GCC ivdep
  for (int64_t i = done; i < n; ++i) psi_frame[i] = apply_psi<psi>(normalize<Acc, normalized>(x[i], pixels, i));
}

// Sums of kTogether rows that weigh the same frames: a vector of frames is read once for all of them, whose sums stay in
// registers. Where the compiler's loops are not as good.
constexpr int kTogether = 4;

template <class X>
constexpr bool sums_together = kVector > 1 && (std::is_same<X, float>::value || has_vectors<X, Nonlinearity::identity>);

template <int vectors, class X>
inline __attribute__((always_inline)) void add_vectors(float* const* sums, const Strided<X>& x, const float* const* a,
                                                       int64_t step, int64_t count, int64_t i) {
  Floats sum[kTogether][vectors];
  for (int r = 0; r < kTogether; ++r)
    for (int v = 0; v < vectors; ++v) memcpy(&sum[r][v], sums[r] + i + v * kVector, sizeof(Floats));
  for (int64_t u = 0; u < count; ++u) {
    Floats values[vectors];
    for (int v = 0; v < vectors; ++v) values[v] = floats_of(x[u] + i + v * kVector);
    for (int r = 0; r < kTogether; ++r)
      for (int v = 0; v < vectors; ++v) sum[r][v] += a[r][u * step] * values[v];
  }
  for (int r = 0; r < kTogether; ++r)
    for (int v = 0; v < vectors; ++v) memcpy(sums[r] + i + v * kVector, &sum[r][v], sizeof(Floats));
}

// sums[r][i] += Σ_{u < count} a[r][u step] x[u, i]
template <class X>
void add_together(float* const* sums, const Strided<X>& x, const float* const* a, int64_t step, int64_t count, int64_t n) {
  constexpr int kVectors = kVector == 16 ? 4 : 2;  // as many sums as there are registers for
  int64_t i = 0;
  for (; i + kVectors * kVector <= n; i += kVectors * kVector) add_vectors<kVectors>(sums, x, a, step, count, i);
  for (; i + kVector <= n; i += kVector) add_vectors<1>(sums, x, a, step, count, i);
  for (; i < n; ++i)
    for (int r = 0; r < kTogether; ++r)
      for (int64_t u = 0; u < count; ++u) sums[r][i] += a[r][u * step] * load(x[u][i]);
}

// The same for elements begin + i of rows w to w + kTogether, or false.
template <class Acc, class X>
bool accumulate_together(const RowRing<Acc>& rows, int64_t w, int64_t begin, const Strided<X>& x, const Acc* a,
                         int64_t pitch, int64_t count, int64_t n) {
  if constexpr (sums_together<X>) {
    float* const sums[] = {rows[w] + begin, rows[w + 1] + begin, rows[w + 2] + begin, rows[w + 3] + begin};
    const float* const weights[] = {a, a + pitch, a + 2 * pitch, a + 3 * pitch};
    add_together(sums, x, weights, 1, count, n);
  }
  return sums_together<X>;
}

// Rows that share frames: ψ of kFrames frames at a time, of as many pixels as the nearest cache holds, then every row that
// weighs them. finish(w) comes when a row is over, in order.
template <Nonlinearity psi, bool normalized, class Acc, class X, class Finish>
void accumulate_rows(const RowRing<Acc>& sums, Acc* psi_frames, const TileFrames<X>& frames, const TemporalPoolParams& p,
                     int64_t clip, const TilePixels<Acc>& pixels, Finish finish) {
  const Acc* weights = static_cast<const Acc*>(p.weights) + clip * p.W * p.K;
  const int64_t part = normalized && !pixels.table ? sums.pitch : kPart;  // means are those of a whole tile
  OpenRows rows(p, clip);
  int64_t begun = 0, finished = 0;
  const auto finish_until = [&](int64_t end) {
    for (; finished < end; finish(finished++))
      if (finished == begun) clear(sums[begun++], frames.n);  // without a frame
  };
  for (int64_t t = 0; t < p.T; t += kFrames) {
    const int64_t end = t + kFrames < p.T ? t + kFrames : p.T;
    const X* x = nullptr;
    int64_t stride = 0;
    const RowRange open = rows.of(t, end);
    finish_until(open.begin);
    for (; begun < open.end; ++begun) clear(sums[begun], frames.n);
    for (int64_t begin = 0; begin < frames.n; begin += part) {
      const int64_t n = frames.n - begin < part ? frames.n - begin : part;
      bool ready = false;
      for (int64_t w = open.begin; w < open.end; ++w) {
        const Band band = band_of(p, clip, w);
        const int64_t from = band.first > t ? band.first : t;
        const int64_t to = band.first + band.count < end ? band.first + band.count : end;
        if (from >= to) continue;
        if (!x) x = frames.block(t, end - t, &stride);
        const Acc* a = weights + w * p.K + from - band.first;
        const bool together = !p.bands && w + kTogether <= open.end;
        if constexpr (psi == Nonlinearity::identity) {
          const Strided<X> block{x + (from - t) * stride + begin, stride};
          if (together && accumulate_together(sums, w, begin, block, a, p.K, to - from, n)) {
            w += kTogether - 1;
          } else {
            accumulate<psi, false>(sums[w] + begin, block, a, to - from, pixels, n);
          }
        } else {
          for (int64_t u = 0; !ready && u < end - t; ++u)
            fill_psi<psi, normalized>(psi_frames + u * part, x + u * stride + begin, pixels, n);
          ready = true;
          const Strided<Acc> block{psi_frames + (from - t) * part, part};
          const int64_t length = pixels.table ? (n + kBlock - 1) / kBlock * kBlock : n;
          if (together && accumulate_together(sums, w, begin, block, a, p.K, to - from, length)) {
            w += kTogether - 1;
          } else {
            accumulate<Nonlinearity::identity, false>(sums[w] + begin, block, a, to - from, pixels, length);
          }
        }
      }
    }
  }
  finish_until(p.W);
}

// Sums of rows that lie a pitch apart, to where they belong.
template <class Y, class Acc>
void store_rows(Y* y, int64_t y_w, int64_t stride, const Acc* values, int64_t pitch, int64_t rows, int64_t n) {
  if constexpr (std::is_same<Y, Acc>::value)
    if (rows > 1) return unpack(y, y_w, stride, values, pitch, rows, n);
  for (int64_t i = 0; stride == 1 && i < n; ++i) y[i] = store<Y>(values[i]);
  for (int64_t i = 0; stride != 1 && i < n; ++i)
    for (int64_t r = 0; r < rows; ++r) y[r * y_w + i * stride] = store<Y>(values[r * pitch + i]);
}

template <class Acc>
void store_rows(const TemporalPoolParams& p, int64_t offset, const Acc* values, int64_t pitch, int64_t rows, int64_t n) {
  const auto to = [&](auto* y) { store_rows(y + offset, p.y_w, p.inner().y, values, pitch, rows, n); };
  switch (p.y_dtype) {
    case DType::float16: return to(static_cast<Half*>(p.y));
    case DType::bfloat16: return to(static_cast<BFloat16*>(p.y));
    case DType::float32: return to(static_cast<float*>(p.y));
    default: return to(static_cast<double*>(p.y));
  }
}

// What normalisation leaves to do after the sum over frames (pixel.h).
template <Nonlinearity psi, class Acc>
void normalize_sum(Acc* acc, const Acc* a, int64_t count, const TilePixels<Acc>& pixels, int64_t n) {
  Acc weight_sum = 0;
  for (int64_t k = 0; k < count; ++k) weight_sum += a[k];
  for (int64_t i = 0; i < n; ++i) {
    if constexpr (psi == Nonlinearity::identity) {
      acc[i] = (acc[i] - pixels.mean[i] * weight_sum) * pixels.inverse_std[i];
    } else {
      acc[i] *= apply_psi<psi>(pixels.inverse_std[i]);
    }
  }
}

// The table of a tile whose pixels share a channel, where it is worth its filling; kept until the channel changes.
template <Nonlinearity psi, bool inside>
class TileTable {
 public:
  const LookupTable* of(const TemporalPoolParams& p, const Row& row, int64_t n) {
    const bool one_channel = !inside || (p.channel_period == 0 && p.inner().channel == 0);
    if (!one_channel || n * p.T < 8192) return nullptr;
    const int64_t channel = inside ? row.channel : 0;
    if (channel != filled_) {
      table_.template fill<psi>(inside ? normalization_of<float>(p, channel) : Normalization<float>{0, 1});
      filled_ = channel;
    }
    return &table_;
  }

 private:
  LookupTable table_;
  int64_t filled_ = -1;
};

// Tasks [begin, end) of the forward pass.
template <class X, Nonlinearity psi, bool inside>
void forward_tasks(const TemporalPoolParams& p, int64_t begin, int64_t end) {
  using Acc = typename Accumulate<X>::type;
  const Tasks tasks(p);
  const bool shared = rows_share_frames(p) && !(p.bands && lie_across<X, psi, inside>(p.x_t, p.inner().x, p.K));
  const bool outside = !inside && (p.mean || p.std);
  int64_t slots = 1;
  for (int64_t clip = 0; shared && clip < p.clips; ++clip) {
    const int64_t most = OpenRows::most(p, clip, kFrames);
    slots = most > slots ? most : slots;
  }
  const int64_t pitch = row_pitch<Acc>(tasks);
  const std::unique_ptr<TilePixels<Acc>> pixels(new TilePixels<Acc>);
  const std::unique_ptr<Acc[]> acc(new Acc[slots * pitch + (shared ? kFrames * (pitch > kPart ? pitch : kPart) : 0)]);
  const RowRing<Acc> sums{acc.get(), pitch, slots};
  const int64_t packed_pitch = row_pitch<X>(tasks);
  const std::unique_ptr<X[]> packed(p.inner().x == 1 ? nullptr : new X[kFrames * packed_pitch]);
  TileTable<psi, inside> table;
  const bool transposes = p.W > 1 && p.y_w < p.inner().y;  // rows that are over wait for others, to be stored pixel by pixel
  const std::unique_ptr<Acc[]> over(transposes ? new Acc[kFrames * pitch] : nullptr);

  for (int64_t task = begin; task < end; ++task) {
    const Tile tile = tasks.tile(task);
    const Row row = locate_row(p, tile.outer);
    const TileFrames<X> frames{static_cast<const X*>(p.x) + row.x + tile.begin * p.inner().x, p.x_t, p.inner().x,
                               tile.n, packed.get(), packed_pitch};
    if constexpr (looks_up<X, psi>) pixels->table = table.of(p, row, tile.n);
    if (outside || (inside && !pixels->table)) pixels->fill(p, row, tile.begin, tile.n);
    const Acc* weights = static_cast<const Acc*>(p.weights) + row.clip * p.W * p.K;
    const auto finish = [&](int64_t w) {
      if constexpr (looks_up<X, psi>)
        if (pixels->table) natural_order(sums[w], tile.n);
      if (outside) normalize_sum<psi>(sums[w], weights + w * p.K, band_of(p, row.clip, w).count, *pixels, tile.n);
      const int64_t y = row.y + tile.begin * p.inner().y;
      if (!transposes) return store_rows(p, y + w * p.y_w, sums[w], pitch, 1, tile.n);
      const int64_t waiting = w % kFrames + 1;
      memcpy(over.get() + (waiting - 1) * pitch, sums[w], tile.n * sizeof(Acc));
      if (waiting == kFrames || w + 1 == p.W)
        store_rows(p, y + (w + 1 - waiting) * p.y_w, over.get(), pitch, waiting, tile.n);
    };
    if (shared) {
      accumulate_rows<psi, inside>(sums, acc.get() + slots * pitch, frames, p, row.clip, *pixels, finish);
      continue;
    }
    for (int64_t w = 0; w < p.W; ++w) {
      clear(sums[w], tile.n);
      accumulate_band<psi, inside>(sums[w], frames, band_of(p, row.clip, w), weights + w * p.K, *pixels);
      finish(w);
    }
  }
}

template <class X>
void forward_of(const TemporalPoolParams& p, int64_t begin, int64_t end) {
  if (p.nonlinearity == Nonlinearity::identity) return forward_tasks<X, Nonlinearity::identity, false>(p, begin, end);
  if (normalizes_inside<Nonlinearity::sqrt>(p)) return forward_tasks<X, Nonlinearity::sqrt, true>(p, begin, end);
  return forward_tasks<X, Nonlinearity::sqrt, false>(p, begin, end);
}

}  // namespace
}  // namespace DYNPOOL_ISA
}  // namespace dynpool
