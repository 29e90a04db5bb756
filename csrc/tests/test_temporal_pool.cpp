// CPU kernels and emulated CUDA kernels against the oracle, over dtypes, layouts, bands, normalisations and outputs.
// Tensors stand beside memory that no one may touch, so that any step outside is seen.
#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "../solver.h"
#include "check.h"
#include "guarded.h"
#include "oracle.h"

namespace dynpool::test {
namespace {

// --- the two devices -------------------------------------------------------------------------------------------------

using Memory = std::vector<std::unique_ptr<char[]>>;

void* allocate(int64_t bytes, void* memory) {
  static_cast<Memory*>(memory)->emplace_back(new char[bytes]);
  std::memset(static_cast<Memory*>(memory)->back().get(), 0xff, bytes);  // NaN
  return static_cast<Memory*>(memory)->back().get();
}

struct Device {
  const char* name;
  void (*forward)(const TemporalPoolParams& p);
  void (*backward)(const TemporalPoolParams& p);
};

template <const char* instruction_set>
void forward_on_cpu(const TemporalPoolParams& p) {
  cpu::limit_instruction_set(instruction_set);
  cpu::temporal_pool(p, 2);
}
template <const char* instruction_set>
void backward_on_cpu(const TemporalPoolParams& p) {
  cpu::limit_instruction_set(instruction_set);
  cpu::temporal_pool_backward(p, 2);
}
[[maybe_unused]] constexpr char kAvx2[] = "avx2", kBaseline[] = "baseline";

const Device kDevices[] = {
    {"cuda",
     [](const TemporalPoolParams& p) {
       Memory memory;
       cuda::temporal_pool(p, 0, nullptr, allocate, &memory);
     },
     [](const TemporalPoolParams& p) {
       Memory memory;
       cuda::temporal_pool_backward(p, 0, nullptr, allocate, &memory);
     }},
    {"cpu", forward_on_cpu<nullptr>, backward_on_cpu<nullptr>},
#ifdef DYNPOOL_TEST_INSTRUCTION_SETS
    {"cpu, avx2", forward_on_cpu<kAvx2>, backward_on_cpu<kAvx2>},
    {"cpu, baseline", forward_on_cpu<kBaseline>, backward_on_cpu<kBaseline>},
#endif
};

// --- cases -----------------------------------------------------------------------------------------------------------

using Sizes = std::vector<int64_t>;

// Frames [B, T, C, H, W']. `order`: dimensions, outermost in memory first. `slack` widens each dimension of the buffer
// that they are a slice of; `step` is the stride of the innermost; `expanded` channels share their memory.
struct Layout {
  const char* name;
  Sizes order;
  Sizes slack = {0, 0, 0, 0, 0};
  int64_t step = 1;
  bool expanded = false;
};

const Layout kLayouts[] = {
    {"NCHW", {0, 1, 2, 3, 4}},
    {"NHWC", {0, 1, 3, 4, 2}},
    {"T innermost", {0, 2, 3, 4, 1}},
    {"T outermost", {1, 0, 2, 3, 4}},
    {"B innermost", {1, 2, 3, 4, 0}},
    {"sliced", {0, 1, 2, 3, 4}, {0, 1, 1, 2, 3}},
    {"sliced NHWC", {0, 1, 3, 4, 2}, {0, 0, 2, 1, 0}},
    {"padded to words", {0, 1, 2, 3, 4}, {0, 0, 0, 0, 16}},
    {"strided inner", {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}, 2},
    {"expanded", {0, 1, 2, 3, 4}, {0, 0, 0, 0, 0}, 1, true},
};

enum class Bands { none, lengths, windows, disjoint, arbitrary, malformed };
const char* const kBands[] = {"dense", "lengths", "windows", "disjoint", "arbitrary", "malformed"};

enum class Statistics { none, std, mean, both, channel_std, channels };
const char* const kStatistics[] = {"none", "std", "mean", "mean+std", "std[C]", "mean+std[C]"};

const char* const kDTypes[] = {"uint8", "float16", "bfloat16", "float32", "float64"};

struct Case {
  DType x_dtype, y_dtype;
  Nonlinearity psi;
  Layout layout, y_layout;
  Bands bands;
  Statistics statistics;
  bool per_clip;
  int64_t W;
  Sizes sizes;
  int subset = 0;     // backward: of dx, dA, dmean, dstd
  bool nan = false;   // some pixels inside the bands are NaN
  bool crop = false;  // ∂L/∂x has no slack

  std::string describe(const char* device) const {
    char text[400];
    std::snprintf(text, sizeof(text), "%s %s→%s %s %s→%s %s W=%d %s %s [%d,%d,%d,%d,%d] subset %d%s", device,
                  kDTypes[static_cast<int>(x_dtype)], kDTypes[static_cast<int>(y_dtype)],
                  psi == Nonlinearity::sqrt ? "sqrt" : "identity", layout.name, y_layout.name,
                  kBands[static_cast<int>(bands)], static_cast<int>(W), kStatistics[static_cast<int>(statistics)],
                  per_clip ? "per clip" : "shared", static_cast<int>(sizes[0]), static_cast<int>(sizes[1]),
                  static_cast<int>(sizes[2]), static_cast<int>(sizes[3]), static_cast<int>(sizes[4]), subset,
                  nan ? " NaN" : "");
    return text;
  }
};

// --- tensors ---------------------------------------------------------------------------------------------------------

struct Buffer {
  DType dtype;
  Sizes sizes, strides;
  int64_t length = 0;  // elements, to the last one
  std::unique_ptr<Guarded> guarded;

  Buffer(DType dtype, const Sizes& sizes, const Layout& layout) : dtype(dtype), sizes(sizes), strides(sizes.size()) {
    int64_t stride = layout.step;
    for (int n = 4; n >= 0; --n) {
      const int64_t d = layout.order[n];
      strides[d] = layout.expanded && d == 2 ? 0 : stride;
      if (strides[d]) stride *= sizes[d] + layout.slack[d];
    }
    length = 1;
    for (int d = 0; d < 5; ++d) {
      length += (sizes[d] - 1) * strides[d];
      if (sizes[d] == 0) length = 0;
    }
    length = std::max<int64_t>(length, 0);
    for (int64_t size : sizes) length = size == 0 ? 0 : length;
    static int count = 0;
    guarded.reset(new Guarded(length * bytes_of(dtype), count++ % 4 != 0));
    poison();
  }
  char* data() const { return guarded->as<char>(); }
  void poison() { std::memset(data(), 0xff, length * bytes_of(dtype)); }

  int64_t frames() const { return sizes[1]; }
  int64_t elements() const { return sizes[0] * sizes[2] * sizes[3] * sizes[4]; }
  // Of element e (in order B, C, H, W') of frame t.
  int64_t offset(int64_t t, int64_t e) const {
    int64_t offset = t * strides[1];
    for (int d : {4, 3, 2, 0}) {
      offset += e % sizes[d] * strides[d];
      e /= sizes[d];
    }
    return offset;
  }
  double at(int64_t t, int64_t e) const { return decode(data(), dtype, offset(t, e)); }
  std::vector<double> values() const {
    std::vector<double> v(frames() * elements());
    for (int64_t t = 0; t < frames(); ++t)
      for (int64_t e = 0; e < elements(); ++e) v[t * elements() + e] = at(t, e);
    return v;
  }
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  int64_t integer(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  double real() { return std::normal_distribution<double>()(engine_); }

  // A value of moderate size; some are zero.
  void write(Buffer& buffer, int64_t offset) {
    const bool zero = integer(0, 15) == 0;
    const uint32_t sign = static_cast<uint32_t>(integer(0, 1)), mantissa = static_cast<uint32_t>(integer(0, 1023));
    char* p = buffer.data() + offset * bytes_of(buffer.dtype);
    switch (buffer.dtype) {
      case DType::uint8: *p = static_cast<char>(zero ? 0 : integer(0, 255)); break;
      case DType::float16: return put(p, zero ? 0 : sign << 15 | exponent(12, 16) << 10 | mantissa);
      case DType::bfloat16: return put(p, zero ? 0 : sign << 15 | exponent(124, 128) << 7 | mantissa >> 3);
      case DType::float32: return put(p, zero ? 0.0f : static_cast<float>(real()));
      default: put(p, zero ? 0.0 : real());
    }
  }
  void fill(Buffer& buffer) {
    for (int64_t t = 0; t < buffer.frames(); ++t)
      for (int64_t e = 0; e < buffer.elements(); ++e) write(buffer, buffer.offset(t, e));
  }

 private:
  uint32_t exponent(int64_t low, int64_t high) { return static_cast<uint32_t>(integer(low, high)); }
  static void put(char* p, uint32_t bits) { std::memcpy(p, &bits, 2); }
  static void put(char* p, float v) { std::memcpy(p, &v, 4); }
  static void put(char* p, double v) { std::memcpy(p, &v, 8); }
  std::mt19937 engine_;
};

void make_nan(Buffer& x, int64_t offset) {
  std::memset(x.data() + offset * bytes_of(x.dtype), 0xff, bytes_of(x.dtype));
}

// Values of Acc, in a buffer of their own length.
struct AccArray {
  bool wide;
  int64_t size;
  std::unique_ptr<char[]> data;

  AccArray(bool wide, int64_t size) : wide(wide), size(size), data(new char[size * (wide ? 8 : 4)]) { poison(); }
  AccArray(bool wide, std::vector<double>& values) : AccArray(wide, static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < size; ++i) {
      if (wide) reinterpret_cast<double*>(data.get())[i] = values[i];
      if (!wide) reinterpret_cast<float*>(data.get())[i] = static_cast<float>(values[i]);
      values[i] = at(i);
    }
  }
  void poison() { std::memset(data.get(), 0xff, bytes()); }
  int64_t bytes() const { return size * (wide ? 8 : 4); }
  double at(int64_t i) const { return decode(data.get(), wide ? DType::float64 : DType::float32, i); }
};

// --- a problem in memory ---------------------------------------------------------------------------------------------

// Bands as a user, or a bug, may give them.
std::vector<int64_t> make_bands(const Case& c, int64_t clips, Random& random) {
  const int64_t T = c.sizes[1], stride = random.integer(1, 3), window = random.integer(1, 17);
  std::vector<int64_t> bands;
  for (int64_t clip = 0; clip < clips; ++clip) {
    for (int64_t w = 0, end = 0; w < c.W; ++w) {
      int64_t first = 0, count = 0;
      switch (c.bands) {
        case Bands::lengths: count = random.integer(0, T); break;
        case Bands::windows: first = std::min(stride * w, T - 1), count = std::min(window, T - first); break;
        case Bands::disjoint:
          first = std::min(end, T - 1);
          count = end < T ? std::min(random.integer(0, T / 2), T - end) : 0;
          end += count;
          break;
        case Bands::malformed: {
          const int64_t bad[] = {-1, 0, 1, T - 1, T, T + 5, INT64_MAX, INT64_MIN};
          first = bad[random.integer(0, 7)], count = bad[random.integer(0, 7)];
          break;
        }
        default: first = random.integer(0, T - 1), count = random.integer(0, T - first);
      }
      bands.insert(bands.end(), {first, count});
    }
  }
  return bands;
}

// As TemporalPoolParams::overlap says; 0 where bands are no such windows.
int64_t overlap_of(const std::vector<int64_t>& bands) {
  int64_t overlap = 0;
  for (size_t w = 0, oldest = 0; w < bands.size() / 2; ++w) {
    const int64_t first = bands[2 * w], end = first + bands[2 * w + 1];
    if (end <= first || (w > 0 && (first <= bands[2 * w - 2] || end <= bands[2 * w - 2] + bands[2 * w - 1]))) return 0;
    while (bands[2 * oldest] + bands[2 * oldest + 1] <= first) ++oldest;
    overlap = std::max(overlap, static_cast<int64_t>(w - oldest + 1));
  }
  return overlap;
}

struct Setup {
  Case c;
  Problem problem;
  Buffer x, y;
  std::unique_ptr<AccArray> A, mean, std;
  std::unique_ptr<int64_t[]> bands;
  TemporalPoolParams p;

  static Sizes pooled(Sizes sizes, int64_t W) {
    sizes[1] = W;
    return sizes;
  }

  Setup(const Case& c, Random& random)
      : c(c), x(c.x_dtype, c.sizes, c.layout), y(c.y_dtype, pooled(c.sizes, c.W), c.y_layout) {
    random.fill(x);
    make_problem(random);
    make_params();
  }

  void make_problem(Random& random) {
    const int64_t B = c.sizes[0], C = c.sizes[2], pixels = c.sizes[3] * c.sizes[4];
    const bool wide = c.x_dtype == DType::float64, per_channel = c.statistics >= Statistics::channel_std;
    Problem& q = problem;
    q.T = c.sizes[1];
    q.W = c.W;
    q.K = c.bands == Bands::malformed ? std::min<int64_t>(3, q.T) : q.T;
    q.clips = c.per_clip && B > 1 ? B : 1;
    q.channels = per_channel && C > 1 ? C : 1;
    q.elements = x.elements();
    q.psi = c.psi;
    q.has_bands = c.bands != Bands::none && q.T > 0;
    if (q.has_bands) q.bands = make_bands(c, q.clips, random);
    q.A.resize(q.clips * q.W * q.K);
    for (double& a : q.A) a = random.real();
    A.reset(new AccArray(wide, q.A));
    const double unit = c.x_dtype == DType::uint8 ? 100 : 1;
    if (c.statistics != Statistics::none && c.statistics != Statistics::mean) {
      for (int64_t i = 0; i < q.channels; ++i)
        q.std.push_back((i % 2 ? -unit : unit) * static_cast<double>(random.integer(50, 150)) / 100);
      std.reset(new AccArray(wide, q.std));
    }
    if (c.statistics == Statistics::mean || c.statistics == Statistics::both || c.statistics == Statistics::channels) {
      for (int64_t i = 0; i < q.channels; ++i)
        q.mean.push_back(c.x_dtype == DType::uint8 ? static_cast<double>(random.integer(0, 200)) : random.real());
      mean.reset(new AccArray(wide, q.mean));
    }
    for (int64_t e = 0; e < q.elements; ++e) {
      q.clip_of.push_back(q.clips > 1 ? e / (C * pixels) : 0);
      q.channel_of.push_back(q.channels > 1 ? e / pixels % C : 0);
    }
    if (c.x_dtype != DType::uint8) poison_frames(random);
    q.x = x.values();
  }

  // Frames outside every band are NaN, and with c.nan a few pixels inside.
  void poison_frames(Random& random) {
    for (int64_t t = 0; t < problem.T; ++t) {
      for (int64_t e = 0; e < problem.elements; ++e) {
        bool weighed = c.layout.expanded;
        for (int64_t w = 0, k; w < problem.W; ++w) weighed = weighed || problem.in_band(problem.clip_of[e], w, t, &k);
        if (!weighed || (c.nan && random.integer(0, 30) == 0)) make_nan(x, x.offset(t, e));
      }
    }
  }

  void make_params() {
    p.x = x.data();
    p.x_dtype = c.x_dtype;
    p.y_dtype = c.y_dtype;
    p.nonlinearity = c.psi;
    p.weights = A->data.get();
    p.W = problem.W;
    p.K = problem.K;
    p.clips = problem.clips;
    p.channels = problem.channels;
    if (mean) p.mean = mean->data.get();
    if (std) p.std = std->data.get();
    if (problem.has_bands) {
      bands.reset(new int64_t[problem.bands.size()]);
      std::copy(problem.bands.begin(), problem.bands.end(), bands.get());
      p.bands = bands.get();
      if (p.clips == 1 && c.bands != Bands::malformed) p.overlap = overlap_of(problem.bands);
    }
  }

  void lay_out(const Buffer* dx) {
    make_axes(p, {5, x.sizes.data(), x.strides.data(), y.strides.data(), dx ? dx->strides.data() : nullptr, 1,
                  problem.channels > 1 ? 2 : -1});
  }
};

// --- comparisons -----------------------------------------------------------------------------------------------------

struct Tolerance {
  double sum;       // relative to the terms
  double value;     // relative to the value: rounding to the output's type
  double absolute;
};

Tolerance tolerance(const Setup& s, DType out) {
  // Sums of n roundings, each below u; the roots and reciprocals of the GPU add a few.
  const double u = s.c.x_dtype == DType::float64 ? 0x1p-53 : 0x1p-24;
  return {u * (16 + static_cast<double>(s.problem.T + s.problem.W)), 1.01 * rounding(out), smallest(out)};
}

bool close(double got, const Bound& want, const Tolerance& tolerance) {
  if (std::isnan(want.value)) return std::isnan(got);
  return std::fabs(got - want.value) <=
         tolerance.sum * want.terms + tolerance.value * std::fabs(want.value) + tolerance.absolute;
}

void compare(const Buffer& got, const std::vector<Bound>& want, const Tolerance& tolerance, const char* what,
             const std::string& name) {
  int wrong = 0;
  for (int64_t t = 0; t < got.frames(); ++t) {
    for (int64_t e = 0; e < got.elements(); ++e) {
      const Bound& bound = want[t * got.elements() + e];
      if (close(got.at(t, e), bound, tolerance) || wrong++) continue;
      CHECK(false, "%s: %s[%d, %d] is %g, not %g", name.c_str(), what, static_cast<int>(t), static_cast<int>(e),
            got.at(t, e), bound.value);
    }
  }
  CHECK(wrong == 0, "%s: %d elements of %s are wrong", name.c_str(), wrong, what);
}

void compare(const AccArray& got, const std::vector<Bound>& want, const Tolerance& tolerance, const char* what,
             const std::string& name) {
  for (int64_t i = 0; i < got.size; ++i)
    CHECK(close(got.at(i), want[i], tolerance), "%s: %s[%d] is %g, not %g ± %g", name.c_str(), what, static_cast<int>(i),
          got.at(i), want[i].value, tolerance.sum * want[i].terms);
}

// What lies between the elements of a slice was 0xff and stays so.
void check_gaps(const Buffer& buffer, const char* what, const std::string& name) {
  const int64_t bytes = bytes_of(buffer.dtype);
  std::vector<bool> written(buffer.length);
  for (int64_t t = 0; t < buffer.frames(); ++t)
    for (int64_t e = 0; e < buffer.elements(); ++e) written[buffer.offset(t, e)] = true;
  bool untouched = true;
  for (int64_t i = 0; i < buffer.length; ++i)
    for (int64_t b = 0; b < bytes && !written[i]; ++b) untouched = untouched && buffer.data()[i * bytes + b] == '\xff';
  CHECK(untouched, "%s: wrote between the elements of %s", name.c_str(), what);
}

// --- forward and backward --------------------------------------------------------------------------------------------

std::vector<char> bytes(const void* data, int64_t size) {
  const char* p = static_cast<const char*>(data);
  return std::vector<char>(p, p + size);
}

void test_forward(const Case& c, uint32_t seed) {
  Random random(seed);
  Setup s(c, random);
  s.p.y = s.y.data();
  s.lay_out(nullptr);
  const std::vector<Bound> want = pool(s.problem);
  for (const Device& device : kDevices) {
    const std::string name = c.describe(device.name);
    s.y.poison();
    device.forward(s.p);
    compare(s.y, want, tolerance(s, c.y_dtype), "y", name);
    check_gaps(s.y, "y", name);
    const std::vector<char> first = bytes(s.y.data(), s.y.length * bytes_of(c.y_dtype));
    s.y.poison();
    device.forward(s.p);
    CHECK(first == bytes(s.y.data(), first.size()), "%s: a second run differs", name.c_str());
  }
}

// Gradients in memory, of which a subset is asked for.
struct Outputs {
  Buffer dx;
  AccArray dweights, dmean, dstd;

  Outputs(const Setup& s, bool wide)
      : dx(s.c.x_dtype, s.c.sizes, dx_layout(s.c)), dweights(wide, s.problem.clips * s.problem.W * s.problem.K),
        dmean(wide, s.problem.channels), dstd(wide, s.problem.channels) {}

  static Layout dx_layout(const Case& c) {
    Layout layout = c.layout;
    layout.expanded = false;
    if (c.crop) layout.slack = {0, 0, 0, 0, 0};
    return layout;
  }
  void ask(TemporalPoolParams& p, int subset) {
    dx.poison(), dweights.poison(), dmean.poison(), dstd.poison();
    p.dx = subset & 1 ? dx.data() : nullptr;
    p.dweights = subset & 2 ? dweights.data.get() : nullptr;
    p.dmean = subset & 4 ? dmean.data.get() : nullptr;
    p.dstd = subset & 8 ? dstd.data.get() : nullptr;
  }
  std::vector<char> all() const {
    std::vector<char> all = bytes(dx.data(), dx.length * bytes_of(dx.dtype));
    for (const AccArray* a : {&dweights, &dmean, &dstd}) all.insert(all.end(), a->data.get(), a->data.get() + a->bytes());
    return all;
  }
};

void test_backward(const Case& c, uint32_t seed) {
  Random random(seed);
  Setup s(c, random);
  random.fill(s.y);
  s.problem.g = s.y.values();
  s.p.g = s.y.data();
  const bool wide = c.x_dtype == DType::float64;
  const int subset = c.x_dtype == DType::uint8 ? c.subset & ~1 : c.subset;
  Outputs out(s, wide);
  s.lay_out(&out.dx);
  if (c.psi == Nonlinearity::identity && subset == 1) s.p.x = nullptr;  // not needed

  const Gradients want = pool_backward(s.problem);
  const DType acc = wide ? DType::float64 : DType::float32;
  Tolerance sums = tolerance(s, acc);
  sums.sum *= 4;  // longer sums, of values that are rounded already
  for (const Device& device : kDevices) {
    const std::string name = c.describe(device.name);
    out.ask(s.p, subset);
    device.backward(s.p);
    if (subset & 1) compare(out.dx, want.dx, tolerance(s, c.x_dtype), "dx", name), check_gaps(out.dx, "dx", name);
    if (subset & 2) compare(out.dweights, want.dweights, sums, "dweights", name);
    if (subset & 4) compare(out.dmean, want.dmean, sums, "dmean", name);
    if (subset & 8) compare(out.dstd, want.dstd, sums, "dstd", name);
    const std::vector<char> first = out.all();
    out.ask(s.p, subset);
    device.backward(s.p);
    CHECK(first == out.all(), "%s: a second run of backward differs", name.c_str());
  }
}

// --- the tables ------------------------------------------------------------------------------------------------------

// Every dtype × ψ × layout × bands × clips; statistics, output types, sizes and subsets take turns.
void test_combinations() {
  const Sizes kSizes[] = {{2, 7, 3, 5, 7}, {2, 7, 3, 4, 16}, {3, 13, 2, 1, 32}, {1, 7, 3, 13, 17}};
  const DType kOutputs[] = {DType::float32, DType::float16, DType::bfloat16, DType::float64};
  const int64_t kRows[] = {1, 7, 2, 3};
  uint32_t n = 0;
  for (int dtype = 0; dtype < 5; ++dtype)
    for (Nonlinearity psi : {Nonlinearity::identity, Nonlinearity::sqrt})
      for (const Layout& layout : kLayouts)
        for (int bands = 0; bands < 6; ++bands)
          for (bool per_clip : {false, true}) {
            Case c{static_cast<DType>(dtype), kOutputs[n % 4], psi, layout, layout, static_cast<Bands>(bands),
                   static_cast<Statistics>((n / 5 + n) % 6), per_clip, kRows[(n / 3 + n / 2) % 4], kSizes[(n + n / 7) % 4]};
            c.y_layout.slack = {0, 0, 0, 0, 0};
            c.y_layout.step = 1;
            c.y_layout.expanded = false;
            c.subset = 1 + static_cast<int>(n % 15);
            c.nan = n % 5 == 0 && dtype > 0;
            test_forward(c, n);
            test_backward(c, n);
            ++n;
          }
}

// y laid out otherwise than x, and strided; g expanded.
void test_output_layouts() {
  uint32_t n = 1000;
  for (const Layout& x : kLayouts)
    for (const Layout& y : kLayouts)
      for (DType dtype : {DType::uint8, DType::float16, DType::float32}) {
        Case c{dtype, n % 2 ? DType::float32 : DType::float16, Nonlinearity::sqrt, x, y, Bands::windows,
               Statistics::channels, true, 2, {2, 6, 3, 2, 16}};
        c.subset = 15;
        if (!y.expanded) test_forward(c, n);
        test_backward(c, n++);
      }
}

// Few elements and many frames or rows: the emulated card splits T, or W, over its blocks.
void test_long() {
  uint32_t n = 2000;
  for (DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::float64})
    for (const Sizes& sizes : {Sizes{1, 67, 1, 1, 16}, Sizes{1, 128, 1, 1, 5}, Sizes{2, 40, 3, 1, 3}, Sizes{1, 1000, 1, 1, 1}})
      for (int bands = 0; bands < 6; ++bands)
        for (int64_t W : {1, 7, 40}) {
          if (sizes[1] == 1000 && W > 7) continue;
          const Layout& layout = kLayouts[n / 2 % 2 ? 2 : 0];
          Case c{dtype, DType::float32, n % 2 ? Nonlinearity::sqrt : Nonlinearity::identity, layout, kLayouts[0],
                 static_cast<Bands>(bands), static_cast<Statistics>(n % 6), n % 3 == 0, W, sizes};
          c.subset = 15;
          test_forward(c, n);
          test_backward(c, n++);
        }
}

// More elements than the emulated card has threads.
void test_wide() {
  uint32_t n = 3000;
  for (DType dtype : {DType::uint8, DType::float16, DType::float32, DType::float64})
    for (const Sizes& sizes : {Sizes{2, 4, 3, 40, 48}, Sizes{2, 4, 3, 37, 41}})
      for (int layout : {0, 1, 5, 6}) {
        Case c{dtype, DType::float32, Nonlinearity::sqrt, kLayouts[layout], kLayouts[layout], Bands::none,
               Statistics::channels, false, 1 + 4 * (n % 2), sizes};
        c.subset = 15;
        test_forward(c, n);
        test_backward(c, n++);
      }
}

// Crops: rows that lie apart, whose gradient lies side by side.
void test_crops() {
  uint32_t n = 7000;
  const Sizes kSlack[] = {{0, 0, 0, 0, 1}, {0, 0, 0, 2, 5}, {0, 1, 0, 1, 3}, {0, 0, 1, 3, 0}, {1, 0, 0, 0, 40}};
  for (DType dtype : {DType::float16, DType::bfloat16, DType::float32})
    for (const Sizes& sizes : {Sizes{2, 5, 3, 29, 37}, Sizes{1, 4, 3, 31, 40}, Sizes{3, 3, 1, 61, 67}, Sizes{1, 6, 5, 60, 9}})
      for (const Sizes& slack : kSlack) {
        Layout layout = kLayouts[0];
        layout.name = "cropped", layout.slack = slack;
        Case c{dtype, dtype, Nonlinearity::sqrt, layout, kLayouts[0], Bands::none, Statistics::none, false, 1, sizes};
        c.subset = 1;
        c.crop = true;
        test_forward(c, n);
        test_backward(c, n++);
      }
}

// Enough tiles that a thread walks through more rows than it has slots for.
void test_many_rows() {
  uint32_t n = 5000;
  for (DType dtype : {DType::uint8, DType::float16, DType::float32, DType::float64})
    for (const Sizes& sizes : {Sizes{2, 13, 1, 64, 80}, Sizes{2, 13, 1, 47, 41}})
      for (int bands = 0; bands < 6; ++bands) {
        Case c{dtype, DType::float32, n % 2 ? Nonlinearity::sqrt : Nonlinearity::identity, kLayouts[0], kLayouts[0],
               static_cast<Bands>(bands), static_cast<Statistics>(n % 4), n % 3 == 0, 11, sizes};
        c.subset = 3;
        test_forward(c, n);
        test_backward(c, n++);
      }
}

void test_small() {
  uint32_t n = 4000;
  const Sizes kSmall[] = {{1, 1, 1, 1, 1}, {1, 1, 3, 5, 7}, {3, 1, 1, 1, 1}, {1, 5, 1, 1, 1}, {0, 5, 3, 2, 2},
                          {2, 5, 3, 0, 2}, {2, 0, 3, 2, 2}, {2, 0, 3, 2, 16}};
  for (int dtype = 0; dtype < 5; ++dtype)
    for (const Sizes& sizes : kSmall)
      for (int64_t W : {0, 1, 7})
        for (int bands : {0, 1}) {
          Case c{static_cast<DType>(dtype), DType::float32, n % 2 ? Nonlinearity::sqrt : Nonlinearity::identity,
                 kLayouts[0], kLayouts[0], static_cast<Bands>(bands), static_cast<Statistics>(n % 6), n % 3 == 0, W, sizes};
          c.subset = 15;
          test_forward(c, n);
          test_backward(c, n++);
        }
}

// Offsets past 2^31 and 2^32 elements. The memory between the frames is never touched.
void test_far() {
  constexpr int64_t kInner = 37, kStride = (int64_t{1} << 32) + 3, kFrames = 3;
  const int64_t length = (kFrames - 1) * kStride + kInner;
  void* memory = mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return;
  uint8_t* x = static_cast<uint8_t*>(memory);
  for (int64_t t = 0; t < kFrames; ++t)
    for (int64_t i = 0; i < kInner; ++i) x[t * kStride + i] = static_cast<uint8_t>(7 * t + i);
  const float weights[] = {1, 10, 100};
  float y[kInner];
  const int64_t sizes[] = {kFrames, kInner}, x_strides[] = {kStride, 1}, y_strides[] = {kInner, 1};
  TemporalPoolParams p;
  p.x = x, p.x_dtype = DType::uint8, p.weights = weights, p.y = y, p.W = 1, p.K = kFrames;
  make_axes(p, {2, sizes, x_strides, y_strides, nullptr, 0, -1});
  for (const Device& device : kDevices) {
    std::memset(y, 0xff, sizeof(y));
    device.forward(p);
    for (int64_t i = 0; i < kInner; ++i)
      CHECK(y[i] == static_cast<float>(i + 10 * (7 + i) + 100 * (14 + i)), "%s, far frames: y[%d] is %g", device.name,
            static_cast<int>(i), y[i]);
  }
  munmap(memory, length);
}

void test_errors() {
  Random random(1);
  Setup s({DType::uint8, DType::float32, Nonlinearity::identity, kLayouts[0], kLayouts[0], Bands::none, Statistics::none,
           false, 1, {1, 3, 1, 2, 2}}, random);
  s.p.g = s.y.data();
  s.lay_out(nullptr);
  s.p.dx = s.x.data();
  bool refused = false;
  try {
    kDevices[0].backward(s.p);
  } catch (const std::invalid_argument&) {
    refused = true;
  }
  CHECK(refused, "uint8 frames were given a gradient");
  CHECK(cuda::device_count() == 1, "the emulated card is missing");
  CHECK(!cuda::trouble_on(0) && cuda::trouble_on(1), "kernels run on the emulated card alone");
}

// Products of frames, over numbers of frames and pixels around the blocks, of unit and other strides, with a short clip.
template <class X>
void check_gram(DType dtype, Nonlinearity psi, int64_t T, int64_t D, int64_t step, const char* instruction_set) {
  constexpr int64_t clips = 2;
  std::vector<X> x(((clips * T - 1) * D + D - 1) * step + 1);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<X>((i * 7919) % 251);
  const int64_t bands[2 * clips] = {0, T, 0, std::max<int64_t>(1, T - 2)};
  TemporalPoolParams p;
  p.x = x.data();
  p.x_dtype = dtype;
  p.nonlinearity = psi;
  p.bands = bands;
  p.clips = clips;
  p.W = 1;
  p.K = T;
  const int64_t sizes[] = {clips, T, D}, strides[] = {T * D * step, D * step, step};
  make_axes(p, {3, sizes, strides, strides, nullptr, 1, -1});
  std::vector<double> K(clips * T * T, NAN), cross(clips * T, NAN), norm(clips, NAN);
  cpu::limit_instruction_set(instruction_set);
  cpu::gram(p, K.data(), cross.data(), norm.data(), 2);

  for (int64_t b = 0; b < clips; ++b) {
    const int64_t length = bands[2 * b + 1];
    std::vector<double> average(D), f(T * D);
    for (int64_t t = 0; t < length; ++t)
      for (int64_t d = 0; d < D; ++d) {
        f[t * D + d] = static_cast<double>(x[((b * T + t) * D + d) * step]);
        if (psi == Nonlinearity::sqrt) f[t * D + d] = std::sqrt(f[t * D + d]);
        average[d] += f[t * D + d] / length;
      }
    double want_norm = 0;
    for (int64_t d = 0; d < D; ++d) want_norm += average[d] * average[d];
    const double largest = psi == Nonlinearity::sqrt ? 250 : 62500;  // of a product; they are float32
    const double limit = 1e-5 * (want_norm + largest * D);
    for (int64_t s = 0; s < T; ++s)
      for (int64_t t = 0; t < T; ++t) {
        double want = 0;
        for (int64_t d = 0; d < D && s < length && t < length; ++d)
          want += (f[s * D + d] - average[d]) * (f[t * D + d] - average[d]);
        CHECK(std::abs(K[(b * T + s) * T + t] - want) <= limit, "gram, T = %d, D = %d, step = %d, (%d, %d): %g, want %g",
              int(T), int(D), int(step), int(s), int(t), K[(b * T + s) * T + t], want);
      }
    CHECK(std::abs(norm[b] - want_norm) <= limit, "gram, norm of T = %d, D = %d", int(T), int(D));
    for (int64_t t = 0; t < T; ++t) {
      double want = 0;
      for (int64_t d = 0; d < D && t < length; ++d) want += (f[t * D + d] - average[d]) * average[d];
      CHECK(std::abs(cross[b * T + t] - want) <= limit, "gram, cross of T = %d, D = %d", int(T), int(D));
    }
  }
}

void test_gram() {
  const char* sets[] = {
#ifdef DYNPOOL_TEST_INSTRUCTION_SETS
      kAvx2, kBaseline,
#endif
      nullptr};
  for (const char* set : sets)
    for (int64_t T : {1, 2, 5, 13, 50})
      for (int64_t D : {1, 17, 1023, 1024, 2311})
        for (int64_t step : {1, 2})
          for (Nonlinearity psi : {Nonlinearity::sqrt, Nonlinearity::identity}) {
            check_gram<uint8_t>(DType::uint8, psi, T, D, step, set);
            check_gram<float>(DType::float32, psi, T, D, step, set);
            check_gram<double>(DType::float64, psi, T, D, step, set);
          }
}

// Solutions have the value they claim, a feasible dual point within the tolerance, and stay away from frames that do not
// count; with frames that are alike, and large and small C.
void check_solver(Objective objective, int64_t T, double C, Random& random) {
  constexpr int64_t clips = 2, D = 6;
  constexpr double kEpsilon = 0.1;
  const int64_t lengths[clips] = {T, std::max<int64_t>(1, T - 2)};
  std::vector<double> V(clips * T * D), K(clips * T * T);
  for (double& v : V) v = random.real();
  if (T > 4) std::copy_n(&V[2 * D], D, &V[3 * D]);
  for (int64_t b = 0; b < clips; ++b)
    for (int64_t s = 0; s < T; ++s)
      for (int64_t t = 0; t < T; ++t)
        for (int64_t d = 0; d < D; ++d) K[(b * T + s) * T + t] += V[(b * T + s) * D + d] * V[(b * T + t) * D + d];
  std::vector<double> u(clips * T, NAN), value(clips, NAN), gap(clips, NAN), b(clips * T * T, NAN);
  std::vector<double> scratch(clips * T * (T + 8), NAN);
  std::vector<int64_t> iterations(clips);
  std::vector<int32_t> pairs(clips * T * (T - 1) / 2);
  cpu::solve({objective, clips, T, lengths, K.data(), C, kEpsilon, 1e-4, 1000, u.data(), value.data(), gap.data(),
              iterations.data(), b.data(), pairs.data(), scratch.data()}, 2);
  for (int64_t clip = 0; clip < clips; ++clip) {
    const int64_t n = lengths[clip];
    const double scale = n < 2 ? 0 : 2 * C / (n * (n - 1.0));
    const double *k = &K[clip * T * T], *w = &u[clip * T];
    std::vector<double> s(T);
    double want = 0;
    for (int64_t q = 0; q < T; ++q) {
      for (int64_t t = 0; t < T; ++t) s[q] += k[q * T + t] * w[t];
      want += w[q] * s[q] / 2;
      CHECK(q < n || w[q] == 0, "solver: frame %d, past the end, weighs %g", int(q), w[q]);
    }
    for (int64_t q = 0; q < n; ++q) {
      if (objective == Objective::svr) want += C * std::pow(std::max(0.0, std::abs(q + 1 - s[q]) - kEpsilon), 2);
      for (int64_t t = 0; t < q && objective != Objective::svr; ++t) {
        const double loss = std::max(0.0, 1 - s[q] + s[t]);
        want += scale * (objective == Objective::ranksvm_squared ? loss * loss : loss);
      }
    }
    const int kind = static_cast<int>(objective);
    CHECK(std::abs(value[clip] - want) <= 1e-9 * want, "solver %d, T = %d, C = %g: %g, want %g", kind, int(T), C,
          value[clip], want);
    // Sums of T² products of doubles may leave the dual value that far above.
    CHECK(gap[clip] >= -1e-12 * value[clip] && gap[clip] <= 1e-4 * value[clip],
          "solver %d, T = %d, C = %g: gap %g of %g", kind, int(T), C, gap[clip], value[clip]);
  }
}

void test_solver() {
  Random random(2);
  for (int64_t T : {1, 2, 3, 7, 29})
    for (Objective objective : {Objective::ranksvm, Objective::ranksvm_squared, Objective::svr})
      for (double C : {1e-6, 1e-2, 1.0, 100.0}) check_solver(objective, T, C, random);
}

}  // namespace
}  // namespace dynpool::test

// All tests, or those named.
int main(int count, char** names) {
  using namespace dynpool::test;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  const std::pair<const char*, void (*)()> tests[] = {
      {"combinations", test_combinations}, {"output layouts", test_output_layouts}, {"crops", test_crops},
      {"long", test_long}, {"wide", test_wide}, {"many rows", test_many_rows}, {"small", test_small}, {"far", test_far},
      {"errors", test_errors}, {"gram", test_gram}, {"solver", test_solver}};
  for (const auto& [name, test] : tests) {
    if (count > 1 && std::find(names + 1, names + count, std::string(name)) == names + count) continue;
    const int before = failures;
    test();
    std::printf("%-16s %s\n", name, failures == before ? "passed" : "FAILED");
  }
  std::printf("%d checks, %d failures\n", checks, failures);
  return failures != 0;
}
