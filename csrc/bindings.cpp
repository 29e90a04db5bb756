// Python module: addresses, sizes and strides in, nothing out. Tensors are allocated by dynpool/ops.py and binary.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <vector>

#include "calls.h"
#include "picture.h"
#include "planes.h"
#include "solver.h"
#include "temporal_pool.h"

namespace py = pybind11;

namespace {

using dynpool::TemporalPoolParams;
using Address = uintptr_t;  // 0: absent
using Sizes = std::vector<int64_t>;

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// Shapes, strides and dtypes of a call, worked out once for all calls on such tensors. The strides of y are those of its
// gradient, too; dx_strides is empty where only the forward pass is wanted.
TemporalPoolParams make_layout(int x_dtype, const Sizes& sizes, const Sizes& x_strides, int dim, int y_dtype,
                               const Sizes& y_strides, const Sizes& dx_strides, int64_t clips, int64_t W, int64_t K,
                               int64_t overlap, int64_t channels, int channel_dim, int nonlinearity) {
  require(dim >= 0 && static_cast<size_t>(dim) < sizes.size(), "dim is out of range");
  require(x_strides.size() == sizes.size() && y_strides.size() == sizes.size() &&
              (dx_strides.empty() || dx_strides.size() == sizes.size()),
          "one stride a dimension is needed");
  TemporalPoolParams p;
  p.x_dtype = static_cast<dynpool::DType>(x_dtype);
  p.y_dtype = static_cast<dynpool::DType>(y_dtype);
  p.nonlinearity = static_cast<dynpool::Nonlinearity>(nonlinearity);
  p.clips = clips;
  p.W = W;
  p.K = K;
  p.overlap = overlap;
  p.channels = channels;
  dynpool::make_axes(p, {static_cast<int>(sizes.size()), sizes.data(), x_strides.data(), y_strides.data(),
                         dx_strides.empty() ? nullptr : dx_strides.data(), dim, channel_dim});
  return p;
}

TemporalPoolParams with_inputs(const TemporalPoolParams& layout, Address x, Address weights, Address bands,
                               Address mean, Address std) {
  TemporalPoolParams p = layout;
  p.x = pointer(x);
  p.weights = pointer(weights);
  p.bands = static_cast<const int64_t*>(pointer(bands));
  p.mean = pointer(mean);
  p.std = pointer(std);
  return p;
}

constexpr char kNotInterlaced[] = "only lines that share chroma are interlaced";
constexpr char kNull[] = "null pointer: a tensor has no data, as fake and meta ones, or its storage was freed";

TemporalPoolParams forward_params(const TemporalPoolParams& layout, Address x, Address weights, Address bands,
                                  Address mean, Address std, Address y) {
  TemporalPoolParams p = with_inputs(layout, x, weights, bands, mean, std);
  p.y = pointer(y);
  const int64_t elements = p.num_outer() * p.inner().size;
  require((weights && y) || elements * p.W == 0, kNull);
  require(x || elements * p.T == 0, kNull);
  return p;
}

TemporalPoolParams backward_params(const TemporalPoolParams& layout, Address x, Address weights, Address bands,
                                   Address mean, Address std, Address g, Address dx, Address dweights, Address dmean,
                                   Address dstd) {
  TemporalPoolParams p = with_inputs(layout, x, weights, bands, mean, std);
  p.g = pointer(g);
  p.dx = pointer(dx);
  p.dweights = pointer(dweights);
  p.dmean = pointer(dmean);
  p.dstd = pointer(dstd);
  const int64_t elements = p.num_outer() * p.inner().size;
  require((weights && g) || elements * p.W == 0, kNull);
  const bool reads_x = p.nonlinearity != dynpool::Nonlinearity::identity || dweights || dmean || dstd;
  require(x || !reads_x || elements * p.T == 0, "x is needed, and is a null pointer");
  return p;
}

dynpool::SolverParams solver_params(int objective, int64_t clips, int64_t T, Address lengths, Address K, double C,
                                    double epsilon, double tol, int64_t max_iter, Address u, Address value, Address gap,
                                    Address iterations, Address b, Address pairs, Address scratch) {
  const auto kind = static_cast<dynpool::Objective>(objective);
  const bool ranks = kind != dynpool::Objective::svr;
  require(clips == 0 || (lengths && K && u && value && gap && iterations && scratch), kNull);
  require(clips == 0 || !ranks || (b && (pairs || T < 2)), kNull);
  const auto doubles = [](Address address) { return static_cast<double*>(pointer(address)); };
  return {kind, clips, T, static_cast<const int64_t*>(pointer(lengths)), doubles(K), C, epsilon, tol, max_iter, doubles(u),
          doubles(value), doubles(gap), static_cast<int64_t*>(pointer(iterations)), doubles(b),
          static_cast<int32_t*>(pointer(pairs)), doubles(scratch)};
}

// What is the same for all frames of a video.
struct PlanesLayout {
  int num_planes;
  dynpool::Plane plane[dynpool::kMaxPlanes];
  std::optional<dynpool::Colour> colour;
};

PlanesLayout make_planes_layout(const Sizes& widths, const Sizes& heights) {
  require(!widths.empty() && widths.size() <= dynpool::kMaxPlanes && widths.size() == heights.size(),
          "there are one to three planes");
  PlanesLayout layout{static_cast<int>(widths.size()), {}, {}};
  for (size_t i = 0; i < widths.size(); ++i) layout.plane[i] = {widths[i], heights[i]};
  return layout;
}

PlanesLayout make_colour_layout(int64_t width, int64_t height, int depth, int shift_x, int shift_y, int chroma_step,
                                int black, const std::vector<double>& factors) {
  require(depth >= 8 && depth <= 11 && (shift_x | shift_y | 1) == 1 && factors.size() == 5, "no such colours");
  PlanesLayout layout{3, {{width, height}}, dynpool::Colour{}};
  *layout.colour = {depth, shift_x, shift_y, chroma_step, black, factors[0], factors[1], factors[2], factors[3], factors[4]};
  return layout;
}

#ifdef DYNPOOL_WITH_CPU
// planes, strides: of one frame after the other. interlaced: bit t of frame t.
dynpool::PlanesParams planes_params(const PlanesLayout& layout, const std::vector<Address>& planes, const Sizes& strides,
                                    uint32_t interlaced) {
  const size_t num_planes = layout.num_planes, count = planes.size() / num_planes;
  require(count > 0 && planes.size() == count * num_planes && strides.size() == planes.size(), "a frame lacks a plane");
  require(count <= dynpool::kMaxFrames, "too many frames at once");
  for (const Address plane : planes) require(plane, kNull);
  dynpool::PlanesParams p;
  p.count = count;
  p.planes = reinterpret_cast<const uint8_t* const*>(planes.data());
  p.strides = strides.data();
  p.num_planes = layout.num_planes;
  for (int i = 0; i < dynpool::kMaxPlanes; ++i) p.plane[i] = layout.plane[i];
  p.colour = layout.colour ? &*layout.colour : nullptr;
  p.interlaced = interlaced;
  require(!interlaced || (p.colour && p.colour->shift_y == 1), kNotInterlaced);
  return p;
}

// Adds frames to `sums`, or, where that is not null, to `largest`.
void pool_planes(const PlanesLayout& layout, const std::vector<Address>& planes, const Sizes& strides,
                 uint32_t interlaced, int nonlinearity, const std::vector<float>& weights,
                 const std::vector<double>& mix, const std::vector<Address>& sums, const std::vector<int>& fresh,
                 Address largest, int num_threads) {
  dynpool::PlanesParams p = planes_params(layout, planes, strides, interlaced);
  const size_t K = weights.size() / p.count, R = sums.size();
  require(largest || (K > 0 && R > 0 && weights.size() == K * p.count && (mix.empty() ? K == R : mix.size() == K * R)),
          "weights must be [K, frames] and mix, if any, [rows, K]");
  require(fresh.empty() || (fresh.size() == R && mix.empty()), "fresh must be [rows], without mix");
  p.nonlinearity = static_cast<dynpool::Nonlinearity>(nonlinearity);
  p.K = K;
  p.R = R;
  p.weights = weights.data();
  p.mix = mix.empty() ? nullptr : mix.data();
  p.sums = reinterpret_cast<void* const*>(sums.data());
  p.fresh = fresh.empty() ? nullptr : fresh.data();
  p.largest = static_cast<uint8_t*>(pointer(largest));
  for (const Address sum : sums) require(sum, kNull);
  const py::gil_scoped_release unlocked;
  dynpool::cpu::pool_planes(p, num_threads);
}

void pack_planes(const PlanesLayout& layout, const std::vector<Address>& planes, const Sizes& strides, Address to) {
  const dynpool::PlanesParams p = planes_params(layout, planes, strides, 0);
  require(to && !p.colour, "the planes have colours, or nowhere to go");
  const py::gil_scoped_release unlocked;
  dynpool::cpu::pack_planes(p, static_cast<uint8_t*>(pointer(to)));
}

template <class T>
dynpool::PlaneSums<T> plane_sums(const PlanesLayout& layout, Address sums, double total, Address rgb) {
  require(layout.colour && layout.colour->depth == 8, "the planes have no colours, or no bytes");
  require(sums, kNull);
  return {*layout.colour, layout.plane[0].width, layout.plane[0].height, static_cast<const T*>(pointer(sums)),
          static_cast<T>(total), static_cast<T*>(pointer(rgb))};
}

// Lets other threads run Python meanwhile, where that is worth the handing over.
class Unlocked {
 public:
  explicit Unlocked(const TemporalPoolParams& p) {
    if (p.num_outer() * p.inner().size * p.T > 1 << 15) release_.emplace();
  }

 private:
  std::optional<py::gil_scoped_release> release_;
};
#endif

#ifdef DYNPOOL_WITH_CUDA
// Memory from Python's allocate(bytes) -> Tensor, kept until the launch is enqueued: the caching allocator orders reuse
// after it. Launches hold the interpreter's lock.
class Scratch {
 public:
  explicit Scratch(const py::object& allocate) : allocate_(allocate) {}

  static void* take(int64_t bytes, void* scratch) {
    auto& self = *static_cast<Scratch*>(scratch);
    self.held_.push_back(self.allocate_(bytes));
    return pointer(self.held_.back().attr("data_ptr")().cast<Address>());
  }

 private:
  const py::object& allocate_;
  std::vector<py::object> held_;
};
#endif

}  // namespace

// `bind` gives a function of (x, y, …) for calls whose other arguments stay: to convert all of them would take longer than
// to launch a small kernel.
PYBIND11_MODULE(DYNPOOL_MODULE, m) {
  m.doc() = "Kernels of dynpool, for dynpool/ops.py and binary.py alone.";
  py::class_<TemporalPoolParams>(m, "Layout", py::module_local()).def(py::init(&make_layout));
  py::class_<PlanesLayout>(m, "Planes", py::module_local()).def(py::init(&make_planes_layout)).def(
      py::init(&make_colour_layout));
  py::class_<dynpool::Calls, std::shared_ptr<dynpool::Calls>>(m, "Calls", py::module_local(), py::dynamic_attr())
      .def(py::init<py::capsule, std::vector<py::object>, std::vector<py::object>, py::object, py::object, py::object>())
      .def("keep", &dynpool::Calls::keep)
      .def("__len__", &dynpool::Calls::size)
      .def("run_function", &dynpool::run_function);

#ifdef DYNPOOL_WITH_CPU
  py::module_ cpu = m.def_submodule("cpu");
  cpu.def("temporal_pool", [](const TemporalPoolParams& layout, Address x, Address weights, Address bands, Address mean,
                              Address std, Address y, int num_threads) {
    const TemporalPoolParams p = forward_params(layout, x, weights, bands, mean, std, y);
    const Unlocked unlocked(p);
    dynpool::cpu::temporal_pool(p, num_threads);
  });
  cpu.def("bind", [](const TemporalPoolParams& layout, Address weights, Address bands) {
    return dynpool::launch_function([layout, weights, bands](Address x, Address y, Address num_threads) {
      const TemporalPoolParams p = forward_params(layout, x, weights, bands, 0, 0, y);
      const Unlocked unlocked(p);
      dynpool::cpu::temporal_pool(p, static_cast<int>(num_threads));
    });
  });
  cpu.def("temporal_pool_backward",
          [](const TemporalPoolParams& layout, Address x, Address weights, Address bands, Address mean, Address std,
             Address g, Address dx, Address dweights, Address dmean, Address dstd, int num_threads) {
            const TemporalPoolParams p =
                backward_params(layout, x, weights, bands, mean, std, g, dx, dweights, dmean, dstd);
            const Unlocked unlocked(p);
            dynpool::cpu::temporal_pool_backward(p, num_threads);
          });
  cpu.def("gram", [](const TemporalPoolParams& layout, Address x, Address, Address bands, Address mean, Address std, Address K,
                     Address cross, Address norm, int num_threads) {
    const TemporalPoolParams p = with_inputs(layout, x, 0, bands, mean, std);
    require(p.clips == 0 || (K && cross && norm && (x || p.T * p.num_outer() * p.inner().size == 0)), kNull);
    const py::gil_scoped_release unlocked;
    dynpool::cpu::gram(p, static_cast<double*>(pointer(K)), static_cast<double*>(pointer(cross)),
                       static_cast<double*>(pointer(norm)), num_threads);
  });
  cpu.def("solve", [](int objective, int64_t clips, int64_t T, Address lengths, Address K, double C, double epsilon,
                      double tol, int64_t max_iter, Address u, Address value, Address gap, Address iterations, Address b,
                      Address pairs, Address scratch, int num_threads) {
    const auto p = solver_params(objective, clips, T, lengths, K, C, epsilon, tol, max_iter, u, value, gap, iterations,
                                 b, pairs, scratch);
    const py::gil_scoped_release unlocked;
    dynpool::cpu::solve(p, num_threads);
  });
  cpu.def("pool_planes", &pool_planes);
  cpu.def("pack_planes", &pack_planes);
  cpu.def("make_rgb", [](const PlanesLayout& layout, Address sums, bool doubles, double total, Address rgb) {
    require(rgb, kNull);
    doubles ? dynpool::cpu::make_rgb(plane_sums<double>(layout, sums, total, rgb))
            : dynpool::cpu::make_rgb(plane_sums<float>(layout, sums, total, rgb));
  });
  cpu.def("stretch", [](Address x, int64_t channels, int64_t pixels, float least_span, bool interleaved, Address out) {
    require(channels > 0 && pixels > 0 && x && out, kNull);
    require(!interleaved || channels == 3, "three channels are interleaved, and no other number");
    const py::gil_scoped_release unlocked;
    return dynpool::cpu::stretch({static_cast<const float*>(pointer(x)), nullptr, channels, pixels, least_span, interleaved,
                                  static_cast<uint8_t*>(pointer(out))});
  });
  cpu.def("stretch_sums", [](const PlanesLayout& layout, Address sums, double total, float least_span, bool interleaved,
                             Address out) {
    const auto rgb = plane_sums<float>(layout, sums, total, 0);
    require(out, kNull);
    const py::gil_scoped_release unlocked;
    return dynpool::cpu::stretch({nullptr, &rgb, 3, rgb.width * rgb.height, least_span, interleaved,
                                  static_cast<uint8_t*>(pointer(out))});
  });
  cpu.def("instruction_set", &dynpool::cpu::instruction_set);
  cpu.def("limit_instruction_set", &dynpool::cpu::limit_instruction_set, py::arg("limit").none(true));
#endif

#ifdef DYNPOOL_WITH_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  cuda.def("temporal_pool", [](const TemporalPoolParams& layout, Address x, Address weights, Address bands,
                               Address mean, Address std, Address y, int device, const py::object& allocate,
                               Address stream) {
    Scratch scratch(allocate);
    dynpool::cuda::temporal_pool(forward_params(layout, x, weights, bands, mean, std, y), device, pointer(stream),
                                 Scratch::take, &scratch);
  });
  cuda.def("bind", [](const TemporalPoolParams& layout, Address weights, Address bands, int device,
                      const py::object& allocate) {
    return dynpool::launch_function([layout, weights, bands, device, allocate](Address x, Address y, Address stream) {
      Scratch scratch(allocate);
      dynpool::cuda::temporal_pool(forward_params(layout, x, weights, bands, 0, 0, y), device, pointer(stream),
                                   Scratch::take, &scratch);
    });
  });
  cuda.def("temporal_pool_backward",
           [](const TemporalPoolParams& layout, Address x, Address weights, Address bands, Address mean, Address std,
              Address g, Address dx, Address dweights, Address dmean, Address dstd, int device,
              const py::object& allocate, Address stream) {
             Scratch scratch(allocate);
             dynpool::cuda::temporal_pool_backward(
                 backward_params(layout, x, weights, bands, mean, std, g, dx, dweights, dmean, dstd), device,
                 pointer(stream), Scratch::take, &scratch);
           });
  cuda.def("gram", [](const TemporalPoolParams& layout, Address x, Address average, Address bands, Address mean,
                      Address std, Address K, Address cross, Address norm, int device, const py::object& allocate,
                      Address stream) {
    TemporalPoolParams p = with_inputs(layout, x, 0, bands, mean, std);
    p.y = pointer(average);
    const bool empty = p.T * p.num_outer() * p.inner().size == 0;
    require(p.clips == 0 || (K && cross && norm && ((x && average) || empty)), kNull);
    Scratch scratch(allocate);
    dynpool::cuda::gram(p, static_cast<double*>(pointer(K)), static_cast<double*>(pointer(cross)),
                        static_cast<double*>(pointer(norm)), device, pointer(stream), Scratch::take, &scratch);
  });
  cuda.def("solve", [](int objective, int64_t clips, int64_t T, Address lengths, Address K, double C, double epsilon,
                       double tol, int64_t max_iter, Address u, Address value, Address gap, Address iterations,
                       Address b, Address pairs, Address scratch, int device, const py::object&, Address stream) {
    dynpool::cuda::solve(solver_params(objective, clips, T, lengths, K, C, epsilon, tol, max_iter, u, value, gap,
                                       iterations, b, pairs, scratch), device, pointer(stream));
  });
  cuda.def("make_rgb", [](const PlanesLayout& layout, int64_t count, uint32_t interlaced, Address planes, Address rgb,
                          int device, const py::object&, Address stream) {
    require(layout.colour && count >= 0 && planes && rgb, "the planes have no colours, or nowhere to go");
    require(!interlaced || count <= dynpool::kMaxFrames, "too many frames at once");
    require(!interlaced || layout.colour->shift_y == 1, kNotInterlaced);
    dynpool::cuda::make_rgb({*layout.colour, count, layout.plane[0].width, layout.plane[0].height, interlaced,
                             static_cast<const uint8_t*>(pointer(planes)), static_cast<uint8_t*>(pointer(rgb))},
                            device, pointer(stream));
  });
  cuda.def("architectures", &dynpool::cuda::architectures);
  cuda.def("trouble_on", &dynpool::cuda::trouble_on);  // None for null
#endif
}
