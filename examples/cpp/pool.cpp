// Σ_t α_t I_t of three frames of bytes, [T, C, H, W] = [3, 1, 2, 2], by eq. (4): α_t = 2t - T - 1.
#include <cstdint>
#include <cstdio>

#include <dynpool/temporal_pool.h>

int main() {
  const uint8_t frames[3][4] = {{10, 20, 30, 40}, {50, 60, 70, 80}, {11, 22, 33, 44}};
  const float alpha[3] = {-2, 0, 2};
  float image[4] = {};

  dynpool::TemporalPoolParams p;
  p.x = frames;
  p.weights = alpha;
  p.y = image;
  p.x_dtype = dynpool::DType::uint8;
  p.W = 1;
  p.K = 3;

  // As tensors: x [3, 1, 2, 2] and y [1, 1, 2, 2], T in dimension 0.
  const int64_t sizes[] = {3, 1, 2, 2}, strides[] = {4, 4, 2, 1};
  dynpool::make_axes(p, {4, sizes, strides, strides, nullptr, 0, -1});
  dynpool::cpu::temporal_pool(p, 1);

  std::printf("%s: %g %g %g %g\n", dynpool::cpu::instruction_set(), image[0], image[1], image[2], image[3]);
  return image[0] == 2 && image[1] == 4 && image[2] == 6 && image[3] == 8 ? 0 : 1;
}
