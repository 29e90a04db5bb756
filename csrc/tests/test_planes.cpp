// Sums of decoded frames and pictures of them, against plain loops. Every buffer ends at a page that cannot be touched, or
// begins after one, so that a step outside is found in whatever instruction set.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../picture.h"
#include "check.h"
#include "guarded.h"

namespace dynpool::test {
namespace {

using Random = std::mt19937;

struct Format {
  const char* name;
  int depth, shift_x, shift_y, step;  // depth 0: bytes as they are, in one plane
};

constexpr Format kFormats[] = {{"yuv420p", 8, 1, 1, 1},   {"yuv422p", 8, 1, 0, 1},   {"yuv444p", 8, 0, 0, 1},
                               {"nv12", 8, 1, 1, 2},      {"nv24", 8, 0, 0, 2},      {"yuv420p10", 10, 1, 1, 1},
                               {"yuv444p10", 10, 0, 0, 1}, {"bytes", 0, 0, 0, 1}};

// Frames of a format, each plane in memory of its own.
struct Frames {
  Format format;
  int64_t width, height, count;
  uint32_t interlaced = 0;
  Colour colour{8, 0, 0, 1, 16, 255.0 / 219, 1.596027, -0.391762, -0.812968, 2.017232};
  std::vector<std::unique_ptr<Guarded>> memory;
  std::vector<const uint8_t*> planes;
  std::vector<int64_t> strides;

  Frames(const Format& f, int64_t width, int64_t height, int64_t count, bool at_end, Random& random)
      : format(f), width(width), height(height), count(count) {
    colour.depth = f.depth;
    colour.shift_x = f.shift_x;
    colour.shift_y = f.shift_y;
    colour.chroma_step = f.step;
    if (at_end) colour.black = 0;
    if (f.shift_y && count != 4) interlaced = random();
    const int64_t columns = (width + f.shift_x) >> f.shift_x, rows = (height + f.shift_y) >> f.shift_y;
    for (int64_t t = 0; t < count; ++t) {
      add_plane(width, height, at_end, random);
      if (!f.depth) continue;
      const uint8_t* u = add_plane(f.step * columns, rows, at_end, random);
      if (f.step == 2) {
        planes.push_back(u + size());
        strides.push_back(strides.back());
      } else {
        add_plane(columns, rows, at_end, random);
      }
    }
  }
  int64_t size() const { return format.depth > 8 ? 2 : 1; }  // bytes of a sample
  int num_planes() const { return format.depth ? 3 : 1; }
  int64_t channels() const { return format.depth ? 3 : 1; }
  int64_t pixels() const { return channels() * width * height; }

  int sample(int64_t t, int plane, int64_t row, int64_t column) const {
    const uint8_t* p = planes[t * num_planes() + plane] + row * strides[t * num_planes() + plane] + column * size();
    return size() == 1 ? *p : p[0] | p[1] << 8;
  }
  // The byte i of frame t's image.
  int byte(int64_t t, int64_t i) const {
    const int64_t channel = i / (width * height), row = i / width % height, column = i % width;
    if (!format.depth) return sample(t, 0, row, column);
    const int up = 11 - format.depth;
    const auto factor = [](double f) { return static_cast<int>(std::floor(f * 8192 + 0.5)); };
    const auto product = [](int a, int b) { return static_cast<int>(std::floor(a * static_cast<double>(b) / 65536)); };
    int64_t line = row >> format.shift_y;
    if (interlaced >> t & 1) {  // every other line of luma, and of chroma
      const int64_t field = row % 2, lines = (height + 1) / 2, of_field = (lines + 1 - field) / 2;
      line = of_field ? 2 * std::min(row / 2 / 2, of_field - 1) + field : 0;
    }
    const auto chroma = [&](int plane) {
      return (sample(t, plane, line, (column >> format.shift_x) * format.step) << up) - 1024;
    };
    const int y = product((sample(t, 0, row, column) << up) - 8 * colour.black, factor(colour.y));
    const int added = channel == 0   ? product(chroma(2), factor(colour.rv))
                      : channel == 2 ? product(chroma(1), factor(colour.bu))
                                     : product(chroma(1), factor(colour.gu)) + product(chroma(2), factor(colour.gv));
    return std::clamp(y + added, 0, 255);
  }
  PlanesParams params() const {
    PlanesParams p;
    p.count = count;
    p.interlaced = interlaced;
    p.planes = planes.data();
    p.strides = strides.data();
    p.num_planes = num_planes();
    p.plane[0] = {width, height};
    if (format.depth) p.colour = &colour;
    return p;
  }

 private:
  const uint8_t* add_plane(int64_t samples, int64_t lines, bool at_end, Random& random) {
    const int64_t stride = samples * size() + 2 * (random() % 9);  // the last line has no padding
    memory.emplace_back(new Guarded(stride * (lines - 1) + samples * size(), at_end));
    uint8_t* plane = memory.back()->as<uint8_t>();
    for (int64_t i = 0; i < stride * (lines - 1) + samples * size(); ++i) {
      const bool upper = size() == 2 && i % stride % 2;
      plane[i] = static_cast<uint8_t>(upper ? random() % 4 : random());
    }
    planes.push_back(plane);
    strides.push_back(stride);
    return plane;
  }
};

double psi(int byte, Nonlinearity nonlinearity) { return nonlinearity == Nonlinearity::sqrt ? std::sqrt(byte) : byte; }

void check_sums(const Frames& frames, Nonlinearity nonlinearity, int64_t K, bool mixed, const std::string& name,
                bool at_end, Random& random) {
  PlanesParams p = frames.params();
  p.nonlinearity = nonlinearity;
  p.K = K;
  p.R = mixed ? 2 : K;
  std::vector<float> weights(K * p.count);
  for (float& weight : weights) weight = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 512;
  if (K > 1) std::fill_n(weights.begin(), std::min<int64_t>(5, p.count), 0.f);  // a window that begins later
  std::vector<double> mix(p.R * K);
  for (double& factor : mix) factor = static_cast<int>(random() % 7) - 3;
  p.weights = weights.data();
  if (mixed) p.mix = mix.data();
  const size_t number = mixed ? sizeof(double) : sizeof(float);
  std::vector<std::unique_ptr<Guarded>> memory;
  std::vector<void*> sums;
  std::vector<int> fresh(p.R);
  for (int& row : fresh) row = !mixed && random() % 2;
  const auto at = [&](int64_t r, int64_t i) { return mixed ? static_cast<double*>(sums[r])[i] : static_cast<float*>(sums[r])[i]; };
  for (int64_t r = 0; r < p.R; ++r) {
    memory.emplace_back(new Guarded(frames.pixels() * number, at_end));
    sums.push_back(memory.back()->as<void>());
    for (int64_t i = 0; i < frames.pixels(); ++i)
      mixed ? void(static_cast<double*>(sums[r])[i] = i % 5) : void(static_cast<float*>(sums[r])[i] = fresh[r] ? NAN : i % 5);
  }
  p.sums = sums.data();
  if (!mixed) p.fresh = fresh.data();
  cpu::pool_planes(p, 3);
  double total = 0, most = 0;
  for (float weight : weights) total += std::abs(weight), most = std::fmax(most, std::abs(weight));
  // Products and sums of float32; where sums are float32, too, roots of 16 bits and weights of 16.
  const double largest = nonlinearity == Nonlinearity::sqrt ? 16 : 255;
  double tolerance = total * (mixed ? 9 : 1) * 40 * std::ldexp(largest, -24);
  if (!mixed) tolerance += total * (largest == 16 ? std::ldexp(1, -13) : 0) + most * p.count * std::ldexp(largest, -16);
  for (int64_t i = 0; i < frames.pixels(); ++i) {
    std::vector<double> local(K);
    for (int64_t k = 0; k < K; ++k)
      for (int64_t t = 0; t < p.count; ++t) local[k] += weights[k * p.count + t] * psi(frames.byte(t, i), nonlinearity);
    for (int64_t r = 0; r < p.R; ++r) {
      double want = fresh[r] ? 0 : static_cast<double>(i % 5);
      for (int64_t k = 0; k < K; ++k) want += mixed ? mix[r * K + k] * local[k] : k == r ? local[k] : 0;
      CHECK(std::abs(at(r, i) - want) <= tolerance, "%s, row %d, %d: %g, want %g", name.c_str(), int(r), int(i), at(r, i), want);
    }
  }
}

void check_largest(const Frames& frames, const std::string& name, bool at_end) {
  PlanesParams p = frames.params();
  const Guarded memory(frames.pixels(), at_end);
  p.largest = memory.as<uint8_t>();
  std::memset(p.largest, 100, frames.pixels());
  cpu::pool_planes(p, 2);
  for (int64_t i = 0; i < frames.pixels(); ++i) {
    int want = 100;
    for (int64_t t = 0; t < p.count; ++t) want = std::max(want, frames.byte(t, i));
    CHECK(p.largest[i] == want, "%s, largest %d: %d, want %d", name.c_str(), int(i), p.largest[i], want);
  }
}

// Packed as the decoder's planes, U and V in one where they alternate; and R, G, B of that.
void check_packed(const Frames& frames, const std::string& name, bool at_end) {
  PackedPlanes packed{frames.colour, frames.count, frames.width, frames.height, frames.interlaced};
  const bool alternate = frames.format.step == 2;
  PlanesParams p = frames.params();
  std::vector<const uint8_t*> planes;
  std::vector<int64_t> strides;
  for (size_t j = 0; j < frames.planes.size(); ++j) {
    if (alternate && j % 3 == 2) continue;
    planes.push_back(frames.planes[j]);
    strides.push_back(frames.strides[j]);
  }
  p.planes = planes.data();
  p.strides = strides.data();
  p.num_planes = alternate ? 2 : 3;
  p.colour = nullptr;
  p.interlaced = 0;
  p.plane[0] = {frames.width * frames.size(), frames.height};
  p.plane[1] = {packed.chroma_width() * frames.size() * (alternate ? 2 : 1), packed.chroma_height()};
  p.plane[2] = p.plane[1];
  const Guarded bytes(frames.count * packed.samples() * frames.size(), at_end), rgb(frames.count * frames.pixels(), at_end);
  cpu::pack_planes(p, bytes.as<uint8_t>());
  packed.planes = bytes.as<uint8_t>();
  packed.rgb = rgb.as<uint8_t>();
  cuda::make_rgb(packed, 0, nullptr);
  for (int64_t t = 0; t < frames.count; ++t)
    for (int64_t i = 0; i < frames.pixels(); ++i) {
      const int found = packed.rgb[t * frames.pixels() + i], want = frames.byte(t, i);
      CHECK(found == want, "%s, packed, frame %d, %d: %d, want %d", name.c_str(), int(t), int(i), found, want);
    }
}

void test_planes() {
  Random random(3);
  constexpr int64_t kSizes[][2] = {{1, 1}, {2, 3}, {17, 13}, {130, 5}, {333, 4}, {9, 6}, {1091, 3}};
  for (const Format& format : kFormats)
    for (const auto& [width, height] : kSizes)
      for (int64_t count : {1, 4, 11, 32}) {
        const bool at_end = (width + count) % 2, mixed = count == 11;
        const Frames frames(format, width, height, count, at_end, random);
        const std::string name = std::string(format.name) + " " + std::to_string(width) + " x " + std::to_string(height) +
                                 " x " + std::to_string(count);
        for (Nonlinearity nonlinearity : {Nonlinearity::identity, Nonlinearity::sqrt})
          check_sums(frames, nonlinearity, 1 + count % 3, mixed, name, at_end, random);
        check_largest(frames, name, at_end);
        if (format.depth && count < 32) check_packed(frames, name, at_end);
      }
}

template <class T>
void check_rgb(const Format& format, int64_t width, int64_t height, Random& random) {
  PlaneSums<T> p;
  p.colour = {8, format.shift_x, format.shift_y, format.step, 16, 1.25, 1.5, -0.375, -0.75, 2.0};
  p.width = width;
  p.height = height;
  p.total = static_cast<T>(0.5);
  const int64_t columns = (width + format.shift_x) >> format.shift_x, rows = (height + format.shift_y) >> format.shift_y;
  const int64_t size = width * height;
  const Guarded sums((size + 2 * columns * rows) * sizeof(T), true), rgb(3 * size * sizeof(T), true);
  for (int64_t i = 0; i < size + 2 * columns * rows; ++i) sums.as<T>()[i] = static_cast<T>(random() % 1000) / 4;
  p.sums = sums.as<T>();
  p.rgb = rgb.as<T>();
  cpu::make_rgb(p);
  for (int64_t i = 0; i < size; ++i) {  // all numbers here are exact
    const int64_t at = (i / width >> format.shift_y) * columns + (i % width >> format.shift_x);
    const T U = p.sums[size + at * format.step] - 64;
    const T V = p.sums[size + (format.step == 2 ? 2 * at + 1 : columns * rows + at)] - 64;
    const T Y = (p.sums[i] - 8) * static_cast<T>(1.25);
    const T want[] = {Y + static_cast<T>(1.5) * V, Y - static_cast<T>(0.375) * U - static_cast<T>(0.75) * V, Y + 2 * U};
    for (int c = 0; c < 3; ++c)
      CHECK(p.rgb[c * size + i] == want[c], "%s %d x %d: %g, want %g", format.name, int(width), int(height),
            double(p.rgb[c * size + i]), double(want[c]));
  }
}

void test_rgb() {
  Random random(4);
  for (const Format& format : kFormats)
    for (int64_t width : {1, 2, 7, 66})
      for (int64_t height : {1, 5}) {
        if (format.depth != 8) continue;
        check_rgb<float>(format, width, height, random);
        check_rgb<double>(format, width, height, random);
      }
}

void test_stretch() {
  Random random(5);
  for (int64_t n : {1, 2, 63, 64, 65, 1000, 3, 3 * 255, 3 * 256, 3 * 1021}) {
    const Guarded x(n * sizeof(float), true), out(n, true);
    float* values = x.as<float>();
    uint8_t* image = out.as<uint8_t>();
    const auto stretch = [&](float least_span, bool interleaved = false) {
      const int64_t channels = interleaved ? 3 : 1;
      return cpu::stretch({values, nullptr, channels, n / channels, least_span, interleaved, image});
    };
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(random() % 511) - 200;
    values[0] = -200;
    if (n > 1) values[n - 1] = 310;
    CHECK(!stretch(510), "stretch of %d, too narrow", int(n));
    CHECK(stretch(509) == (n > 1), "stretch of %d", int(n));
    for (int64_t i = 0; n > 1 && i < n; ++i) {
      const int want = static_cast<int>(std::nearbyint((values[i] + 200) / 510 * 255));
      CHECK(image[i] == want, "stretch of %d, at %d: %d, want %d", int(n), int(i), image[i], want);
    }
    if (n % 3 == 0) {
      CHECK(stretch(509, true), "stretch of %d, interleaved", int(n));
      for (int64_t i = 0; i < n; ++i) {
        const int want = static_cast<int>(std::nearbyint((values[i % 3 * (n / 3) + i / 3] + 200) / 510 * 255));
        CHECK(image[i] == want, "stretch of %d, interleaved, at %d: %d, want %d", int(n), int(i), image[i], want);
      }
    }
    for (int64_t i : {int64_t{0}, n / 2, n - 1})
      for (float wrong : {NAN, INFINITY, -INFINITY}) {
        const float right = values[i];
        values[i] = wrong;
        CHECK(!stretch(0), "stretch of %d: %g at %d went unseen", int(n), double(wrong), int(i));
        values[i] = right;
      }
  }
}

// Of sums the picture is that of their R, G, B, to the bit: both are made line by line by the same code.
void test_stretched_sums() {
  Random random(6);
  for (const Format& format : kFormats)
    for (int64_t width : {1, 7, 66, 130})
      for (int64_t height : {1, 5, 6}) {
        if (format.depth != 8 || width * height < 2) continue;
        const int64_t size = width * height;
        const int64_t chroma = ((width + format.shift_x) >> format.shift_x) * ((height + format.shift_y) >> format.shift_y);
        const Guarded sums((size + 2 * chroma) * sizeof(float), true), rgb(3 * size * sizeof(float), true);
        const Guarded from_rgb(3 * size, true), from_sums(3 * size, true);
        for (int64_t i = 0; i < size + 2 * chroma; ++i) sums.as<float>()[i] = static_cast<float>(random() % 10007) / 31;
        const PlaneSums<float> p{{8, format.shift_x, format.shift_y, format.step, 16, 1.164, 1.596, -0.392, -0.813, 2.017},
                                 width, height, sums.as<float>(), 0.25f, rgb.as<float>()};
        cpu::make_rgb(p);
        for (const bool interleaved : {false, true}) {
          const bool made = cpu::stretch({rgb.as<float>(), nullptr, 3, size, 0, interleaved, from_rgb.as<uint8_t>()}) &&
                            cpu::stretch({nullptr, &p, 3, size, 0, interleaved, from_sums.as<uint8_t>()});
          CHECK(made && !std::memcmp(from_rgb.as<uint8_t>(), from_sums.as<uint8_t>(), 3 * size), "%s %d x %d, %s",
                format.name, int(width), int(height), interleaved ? "interleaved" : "planes");
        }
        CHECK(!cpu::stretch({nullptr, &p, 3, size, 1e6f, false, from_sums.as<uint8_t>()}), "too narrow");
        sums.as<float>()[size / 2] = NAN;
        CHECK(!cpu::stretch({nullptr, &p, 3, size, 0, false, from_sums.as<uint8_t>()}), "NaN went unseen");
      }
}

// A division, whatever the span: also of those whose reciprocal is not normal.
void test_stretch_divides() {
  Random random(7);
  constexpr int64_t n = 10007;
  const Guarded x(n * sizeof(float), true), out(n, true);
  float* values = x.as<float>();
  for (const float span : {1e-44f, 3e-39f, 1e-30f, 0.7f, 3.f, 1e30f, 3e38f}) {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(random() % 16777216) / 16777215 * span;
    values[0] = 0;
    values[n - 1] = span;
    CHECK(cpu::stretch({values, nullptr, 1, n, 0, false, out.as<uint8_t>()}), "stretch of span %g", double(span));
    for (int64_t i = 0; i < n; ++i) {
      const float share = values[i] / span;
      const int found = out.as<uint8_t>()[i], want = static_cast<int>(std::nearbyint(share * 255));
      CHECK(found == want, "span %g, %g: %d, want %d", double(span), double(values[i]), found, want);
    }
  }
}

}  // namespace
}  // namespace dynpool::test

int main() {
  using namespace dynpool::test;
#ifdef DYNPOOL_TEST_INSTRUCTION_SETS
  constexpr const char* kSets[] = {"baseline", "avx2", "avx512", nullptr};
#else
  constexpr const char* kSets[] = {"baseline"};
#endif
  for (const char* set : kSets) {
    dynpool::cpu::limit_instruction_set(set);
    test_planes();
    test_rgb();
    test_stretch();
    test_stretched_sums();
    test_stretch_divides();
    std::printf("%-10s %d checks, %d failures\n", dynpool::cpu::instruction_set(), checks, failures);
  }
  return failures != 0;
}
