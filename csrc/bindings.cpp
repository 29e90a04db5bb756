// Python module: addresses, sizes and strides in, nothing out. Tensors are allocated by dynpool/ops.py.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "temporal_pool.h"

namespace py = pybind11;

namespace {

using dynpool::TemporalPoolParams;
using Address = uintptr_t;  // 0: absent
using Sizes = std::vector<int64_t>;

// What ops.py passes, as tuples.
using Frames = std::tuple<Address, int, Sizes, Sizes, int>;                       // x, dtype, sizes, strides, dim
using Weights = std::tuple<Address, int64_t, int64_t, int64_t, Address>;          // A, clips, W, K, bands
using Pixels = std::tuple<Address, Address, int64_t, int, int>;                   // mean, std, channels, channel_dim, ψ
using Pooled = std::tuple<Address, int, Sizes>;                                   // y or ∂L/∂y, dtype, strides
using Gradients = std::tuple<Address, Sizes, Address, Address, Address>;          // ∂x and its strides, ∂A, ∂mean, ∂std

void* pointer(Address address) { return reinterpret_cast<void*>(address); }

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

TemporalPoolParams make_params(const Frames& frames, const Weights& rows, const Pixels& pixels, const Pooled& pooled,
                               const Sizes& dx_strides) {
  const auto& [x, x_dtype, sizes, x_strides, dim] = frames;
  const auto& [weights, clips, W, K, bands] = rows;
  const auto& [mean, std, channels, channel_dim, nonlinearity] = pixels;
  const auto& [y, y_dtype, y_strides] = pooled;
  int64_t elements = 1;
  for (int64_t size : sizes) elements *= size;
  require(dim >= 0 && static_cast<size_t>(dim) < sizes.size(), "dim is out of range");
  require(x_strides.size() == sizes.size() && y_strides.size() == sizes.size() &&
              (dx_strides.empty() || dx_strides.size() == sizes.size()),
          "one stride a dimension is needed");
  require((weights && y) || elements * W == 0, "null pointer: a fake or meta tensor has no data");

  TemporalPoolParams p;
  p.x = pointer(x);
  p.x_dtype = static_cast<dynpool::DType>(x_dtype);
  p.weights = pointer(weights);
  p.clips = clips;
  p.W = W;
  p.K = K;
  p.bands = static_cast<const int64_t*>(pointer(bands));
  p.mean = pointer(mean);
  p.std = pointer(std);
  p.channels = channels;
  p.nonlinearity = static_cast<dynpool::Nonlinearity>(nonlinearity);
  p.y_dtype = static_cast<dynpool::DType>(y_dtype);
  dynpool::make_axes(p, {static_cast<int>(sizes.size()), sizes.data(), x_strides.data(), y_strides.data(),
                         dx_strides.empty() ? nullptr : dx_strides.data(), dim, channel_dim});
  return p;
}

TemporalPoolParams forward_params(const Frames& frames, const Weights& weights, const Pixels& pixels, const Pooled& y) {
  TemporalPoolParams p = make_params(frames, weights, pixels, y, {});
  require(p.x || p.T * p.num_outer() * p.inner().size == 0, "null pointer: a fake or meta tensor has no data");
  p.y = pointer(std::get<0>(y));
  return p;
}

TemporalPoolParams backward_params(const Frames& frames, const Weights& weights, const Pixels& pixels, const Pooled& g,
                                   const Gradients& gradients) {
  const auto& [dx, dx_strides, dweights, dmean, dstd] = gradients;
  TemporalPoolParams p = make_params(frames, weights, pixels, g, dx_strides);
  p.g = pointer(std::get<0>(g));
  p.dx = pointer(dx);
  p.dweights = pointer(dweights);
  p.dmean = pointer(dmean);
  p.dstd = pointer(dstd);
  const bool reads_x = p.nonlinearity != dynpool::Nonlinearity::identity || dweights || dmean || dstd;
  require(p.x || !reads_x || p.T * p.num_outer() * p.inner().size == 0, "x is needed, and is a null pointer");
  return p;
}

#ifdef DYNPOOL_WITH_CPU
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
// Python's allocate(bytes) -> address keeps the memory; called during a launch, which holds the interpreter's lock.
void* allocate_by_python(int64_t bytes, void* allocate) {
  return pointer((*static_cast<const py::function*>(allocate))(bytes).cast<Address>());
}
#endif

}  // namespace

PYBIND11_MODULE(DYNPOOL_MODULE, m) {
  m.doc() = "Kernels of dynpool, for dynpool/ops.py alone.";

#ifdef DYNPOOL_WITH_CPU
  py::module_ cpu = m.def_submodule("cpu");
  cpu.def("temporal_pool", [](const Frames& frames, const Weights& weights, const Pixels& pixels, const Pooled& y,
                              int num_threads) {
    const TemporalPoolParams p = forward_params(frames, weights, pixels, y);
    const Unlocked unlocked(p);
    dynpool::cpu::temporal_pool(p, num_threads);
  });
  cpu.def("temporal_pool_backward", [](const Frames& frames, const Weights& weights, const Pixels& pixels,
                                       const Pooled& g, const Gradients& gradients, int num_threads) {
    const TemporalPoolParams p = backward_params(frames, weights, pixels, g, gradients);
    const Unlocked unlocked(p);
    dynpool::cpu::temporal_pool_backward(p, num_threads);
  });
  cpu.def("instruction_set", &dynpool::cpu::instruction_set);
  cpu.def("limit_instruction_set", &dynpool::cpu::limit_instruction_set, py::arg("limit").none(true));
#endif

#ifdef DYNPOOL_WITH_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  cuda.def("temporal_pool", [](const Frames& frames, const Weights& weights, const Pixels& pixels, const Pooled& y,
                               int device, Address stream, py::function allocate) {
    dynpool::cuda::temporal_pool(forward_params(frames, weights, pixels, y), device, pointer(stream),
                                 allocate_by_python, &allocate);
  });
  cuda.def("temporal_pool_backward",
           [](const Frames& frames, const Weights& weights, const Pixels& pixels, const Pooled& g,
              const Gradients& gradients, int device, Address stream, py::function allocate) {
             dynpool::cuda::temporal_pool_backward(backward_params(frames, weights, pixels, g, gradients), device,
                                                   pointer(stream), allocate_by_python, &allocate);
           });
  cuda.def("device_count", &dynpool::cuda::device_count);
  cuda.def("architectures", &dynpool::cuda::architectures);
#endif
}
