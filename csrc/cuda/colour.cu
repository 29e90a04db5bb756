// R, G, B bytes of frames whose planes were copied to the device as the decoder wrote them.
#include "../colour.h"

#include "launchers.h"

namespace dynpool::cuda {
namespace {

constexpr int kSpan = 4 * kThreads;  // samples of a line, by a block

// PackedPlanes in samples.
struct ColourShape {
  int64_t width, height, chroma_pitch, chroma_size, frame, spans;
  int shift_x, shift_y, step;
  uint32_t interlaced;
};

template <class Sample, bool fields>
__global__ void __launch_bounds__(kThreads)
    colour_kernel(const Sample* planes, uint8_t* rgb, ColourShape shape, Factors factors) {
  const int64_t line = blockIdx.x / shape.spans, t = line / shape.height, y = line % shape.height;
  const int64_t first = blockIdx.x % shape.spans * kSpan, end = min(first + kSpan, shape.width);
  const int64_t size = shape.width * shape.height;
  const Sample* const Y = planes + t * shape.frame + y * shape.width;
  int64_t row = y >> shape.shift_y;
  if constexpr (fields)
    if (shape.interlaced >> t & 1) row = chroma_line(y, true, (shape.height + 1) / 2);
  const Sample* const U = planes + t * shape.frame + size + row * shape.chroma_pitch;
  const Sample* const V = U + (shape.step == 2 ? 1 : shape.chroma_size);
  uint8_t* const out = rgb + 3 * t * size + y * shape.width;
  for (int64_t x = first + threadIdx.x; x < end; x += kThreads) {
    const int64_t i = (x >> shape.shift_x) * shape.step;
    const Chroma chroma = chroma_of(factors, U[i], V[i]);
    const int16_t luma = luma_of(factors, Y[x]);
    out[x] = sum_as_byte(luma, chroma.r);
    out[x + size] = sum_as_byte(luma, chroma.g);
    out[x + 2 * size] = sum_as_byte(luma, chroma.b);
  }
}

template <class Sample>
void make_rgb_of(const PackedPlanes& p, cudaStream_t stream) {
  const Colour& c = p.colour;
  const int64_t spans = ceil_div(p.width, kSpan);
  const ColourShape shape{p.width,     p.height,  p.chroma_width() * c.chroma_step, p.chroma_width() * p.chroma_height(),
                          p.samples(), spans,     c.shift_x,                        c.shift_y,
                          c.chroma_step, p.interlaced};
  launch(p.interlaced ? colour_kernel<Sample, true> : colour_kernel<Sample, false>, dim3(grid_size(p.count * p.height * spans)), dim3(kThreads), stream,
         reinterpret_cast<const Sample*>(p.planes), p.rgb, shape, Factors(c));
}

}  // namespace

void make_rgb(const PackedPlanes& p, int device, void* stream) {
  if (p.count * p.width * p.height == 0) return;
  const DeviceGuard guard(device);
  const auto s = static_cast<cudaStream_t>(stream);
  p.sample_size() == 1 ? make_rgb_of<uint8_t>(p, s) : make_rgb_of<uint16_t>(p, s);
}

}  // namespace dynpool::cuda
