// CPU launchers: the best instruction set of this machine, tasks over threads, partial sums in a fixed order.
#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "../picture.h"
#include "../solver.h"
#include "tasks.h"

namespace dynpool {

#define DYNPOOL_DECLARE(ISA)                              \
  namespace ISA {                                         \
  Kernels kernels_uint8();                                \
  Kernels kernels_float(DType dtype);                     \
  void solve(const SolverParams& p, int64_t clip);        \
  void make_rgb(const PlaneSums<float>& p);               \
  void make_rgb(const PlaneSums<double>& p);              \
  bool stretch(const Stretch& s);                         \
  }
DYNPOOL_DECLARE(baseline)
#ifdef DYNPOOL_X86
DYNPOOL_DECLARE(avx2)
DYNPOOL_DECLARE(avx512)
namespace avx512vbmi {
Kernels kernels_uint8();
}
#endif

namespace cpu {
namespace {

enum class InstructionSet { baseline, avx2, avx512, avx512vbmi };
constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512vbmi"};

InstructionSet detect() {
#ifdef DYNPOOL_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni")
               ? InstructionSet::avx512vbmi : InstructionSet::avx512;
  if (avx2) return InstructionSet::avx2;
#endif
  return InstructionSet::baseline;
}

const InstructionSet detected = detect();
InstructionSet chosen = detected;

Kernels kernels_of(DType dtype) {
  const bool bytes = dtype == DType::uint8;
#ifdef DYNPOOL_X86
  if (chosen == InstructionSet::avx512vbmi && bytes) return avx512vbmi::kernels_uint8();
  if (chosen >= InstructionSet::avx512) return bytes ? avx512::kernels_uint8() : avx512::kernels_float(dtype);
  if (chosen == InstructionSet::avx2) return bytes ? avx2::kernels_uint8() : avx2::kernels_float(dtype);
#endif
  return bytes ? baseline::kernels_uint8() : baseline::kernels_float(dtype);
}

// Threads worth waking: each has some 50 µs of work.
int threads_for(const TemporalPoolParams& p, int num_threads) {
  const int64_t elements = p.num_outer() * p.inner().size * p.T;
  return static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads, elements / (1 << 17))));
}

template <class Body>
void parallel_for(int64_t count, int threads, const Body& body) {
  if (threads == 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t i = 0; i < count; ++i) body(i);
}

// Of a dense result that is larger than what malloc keeps, and so lies in new memory: the faults of its small pages would
// take longer than all that is written to them.
void ask_for_large_pages(void* memory, int64_t elements, DType dtype) {
#ifdef __linux__
  constexpr int64_t kLargestKept = int64_t{32} << 20;  // of glibc: M_MMAP_THRESHOLD, at most
  constexpr int64_t kSizes[] = {1, 2, 2, 4, 8};
  const int64_t bytes = elements * kSizes[static_cast<int>(dtype)];
  if (!memory || bytes <= kLargestKept) return;
  const uintptr_t page = sysconf(_SC_PAGESIZE), begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t first = (begin + page - 1) / page * page, end = (begin + bytes) / page * page;
  madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);  // a hint, which some systems do not take
#endif
}

// dst[i] = Σ_chunks sums[chunk, i]; several rows of `size` chunks follow one another.
template <class Acc>
void add_chunks(void* dst, const std::vector<double>& sums, int64_t rows, int64_t chunks, int64_t size) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < size; ++i) {
      double sum = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += sums[(r * chunks + c) * size + i];
      static_cast<Acc*>(dst)[r * size + i] = static_cast<Acc>(sum);
    }
  }
}

template <class Acc>
void backward(const TemporalPoolParams& p, int num_threads) {
  const Kernels kernels = kernels_of(p.x_dtype);
  const int64_t per_clip = Tasks(p).count / p.clips;
  const int64_t chunks = std::min<int64_t>(per_clip, std::max<int64_t>(1, 64 / p.clips));  // of one clip
  const bool statistics = p.dmean || p.dstd;
  std::vector<double> dweights(p.dweights ? p.clips * chunks * p.W * p.K : 0);
  std::vector<double> dmean(statistics ? p.clips * chunks * p.channels : 0), dstd(dmean.size());

  parallel_for(p.clips * chunks, threads_for(p, num_threads), [&](int64_t i) {
    const int64_t clip = i / chunks, c = i % chunks;
    const Chunk chunk{clip * per_clip + per_clip * c / chunks, clip * per_clip + per_clip * (c + 1) / chunks};
    kernels.backward(p, chunk,
                     {p.dweights ? dweights.data() + i * p.W * p.K : nullptr,
                      statistics ? dmean.data() + i * p.channels : nullptr,
                      statistics ? dstd.data() + i * p.channels : nullptr});
  });
  if (p.dweights) add_chunks<Acc>(p.dweights, dweights, p.clips, chunks, p.W * p.K);
  if (p.dmean) add_chunks<Acc>(p.dmean, dmean, 1, p.clips * chunks, p.channels);
  if (p.dstd) add_chunks<Acc>(p.dstd, dstd, 1, p.clips * chunks, p.channels);
}

// From sums of GramSums of ψ_t - c, in their places, to those of ψ_t - ψ̄. Returns whether c was as near to ψ̄ as half of
// the frames are.
bool centre(double* sums, int64_t rows, int64_t T) {
  double* const cross = sums + rows * rows;
  std::vector<double> mean(T);
  double norm = 0, cross_mean = 0;
  for (int64_t s = 0; s < T; ++s) {
    for (int64_t t = 0; t < T; ++t) mean[s] += sums[std::max(s, t) * rows + std::min(s, t)];
    norm += mean[s];
    mean[s] /= static_cast<double>(T);
    cross_mean += cross[s];
  }
  norm /= static_cast<double>(T) * static_cast<double>(T);
  cross_mean /= static_cast<double>(T);
  for (int64_t s = 0; s < rows; ++s)
    for (int64_t t = 0; t <= s; ++t)
      sums[s * rows + t] = s < T ? (sums[s * rows + t] - mean[s]) - (mean[t] - norm) : 0;
  for (int64_t t = 0; t < T; ++t) cross[t] = (cross[t] - cross_mean) + (mean[t] - norm);
  cross[rows] += 2 * cross_mean + norm;
  for (int64_t t = 0; t < T; ++t) mean[t] = sums[t * rows + t];
  std::nth_element(mean.begin(), mean.begin() + T / 2, mean.end());
  return !(norm > mean[T / 2]);
}

}  // namespace

void temporal_pool(const TemporalPoolParams& p, int num_threads) {
  if (p.num_outer() * p.inner().size == 0 || p.W == 0) return;
  const int64_t count = Tasks(p).count;
  const Kernels kernels = kernels_of(p.x_dtype);
  ask_for_large_pages(p.y, p.num_outer() * p.inner().size * p.W, p.y_dtype);
  // Ranges of tasks rather than tasks, so that a range shares its buffers.
  const int threads = threads_for(p, num_threads);
  const int64_t ranges = std::min<int64_t>(count, threads == 1 ? 1 : 4 * threads);
  parallel_for(ranges, threads, [&](int64_t r) { kernels.forward(p, count * r / ranges, count * (r + 1) / ranges); });
}

void temporal_pool_backward(const TemporalPoolParams& p, int num_threads) {
  const bool empty = p.num_outer() * p.inner().size == 0;
  const size_t acc = p.x_dtype == DType::float64 ? sizeof(double) : sizeof(float);
  if (empty) {  // sums over nothing
    if (p.dweights) std::memset(p.dweights, 0, p.clips * p.W * p.K * acc);
    if (p.dmean) std::memset(p.dmean, 0, p.channels * acc);
    if (p.dstd) std::memset(p.dstd, 0, p.channels * acc);
    return;
  }
  ask_for_large_pages(p.dx, p.num_outer() * p.inner().size * p.T, p.x_dtype);
  p.x_dtype == DType::float64 ? backward<double>(p, num_threads) : backward<float>(p, num_threads);
}

void pool_planes(const PlanesParams& p, int num_threads) {
  if (p.count == 0) return;
  int64_t lines = 0, bytes = 0;
  for (int i = 0; i < p.num_planes; ++i) {
    lines += p.plane[i].height;
    bytes += p.plane[i].width * p.plane[i].height;
  }
  if (p.colour) lines = (p.plane[0].height + p.colour->shift_y) >> p.colour->shift_y;
  const Kernels kernels = kernels_of(DType::uint8);
  const int threads = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(num_threads, bytes * p.count >> 17)));
  parallel_for(threads, threads, [&](int64_t i) { kernels.planes(p, lines * i / threads, lines * (i + 1) / threads); });
}

void pack_planes(const PlanesParams& p, uint8_t* to) {
  for (int64_t j = 0; j < p.count * p.num_planes; ++j) {
    const Plane plane = p.plane[j % p.num_planes];
    const uint8_t* line = p.planes[j];
    for (int64_t y = 0; y < plane.height; ++y, line += p.strides[j], to += plane.width) std::memcpy(to, line, plane.width);
  }
}

void gram(const TemporalPoolParams& p, double* K, double* cross, double* norm, int num_threads) {
  const Kernels kernels = kernels_of(p.x_dtype);
  const int64_t rows = (p.T + kGramBlock - 1) / kGramBlock * kGramBlock, size = rows * rows + rows + 1;
  const bool empty = p.num_outer() * p.inner().size == 0;
  const int64_t per_clip = empty ? 0 : Tasks(p, gram_pixels(p)).count / p.clips;
  // The number of chunks fixes the result, and so depends on nothing but shapes; their sums take 64 MB, or those of one.
  const int64_t room = std::max<int64_t>(1, (int64_t{8} << 20) / size);
  const int64_t chunks = std::max<int64_t>(1, std::min({per_clip, room, int64_t{32}}));
  const bool exact = multiplies_bytes(p) && chosen == InstructionSet::avx512vbmi;  // there is no c
  std::vector<double> sums(chunks * size);
  for (int64_t clip = 0; clip < p.clips; ++clip) {
    const auto multiply = [&](bool of_all) {
      std::fill(sums.begin(), sums.end(), 0.0);
      if (empty) return true;
      parallel_for(chunks, threads_for(p, num_threads), [&](int64_t c) {
        double* sum = sums.data() + c * size;
        const int64_t first = clip * per_clip;
        kernels.gram(p, {first + per_clip * c / chunks, first + per_clip * (c + 1) / chunks},
                     {rows, sum, sum + rows * rows, sum + rows * rows + rows, of_all});
      });
      for (int64_t c = 1; c < chunks; ++c)
        for (int64_t i = 0; i < size; ++i) sums[i] += sums[c * size + i];
      const int64_t T = band_of(p, clip, 0).count;
      return T == 0 || centre(sums.data(), rows, T);
    };
    if (!multiply(false) && p.T > kCentre && !exact) multiply(true);
    for (int64_t s = 0; s < p.T; ++s) {
      for (int64_t t = 0; t <= s; ++t)
        K[(clip * p.T + s) * p.T + t] = K[(clip * p.T + t) * p.T + s] = sums[s * rows + t];
      cross[clip * p.T + s] = sums[rows * rows + s];
    }
    norm[clip] = sums[rows * rows + rows];
  }
}

#ifdef DYNPOOL_X86
#define DYNPOOL_CALL(function, ...)                                      \
  (chosen >= InstructionSet::avx512  ? avx512::function(__VA_ARGS__)     \
   : chosen == InstructionSet::avx2 ? avx2::function(__VA_ARGS__)        \
                                    : baseline::function(__VA_ARGS__))
#else
#define DYNPOOL_CALL(function, ...) baseline::function(__VA_ARGS__)
#endif

void solve(const SolverParams& p, int num_threads) {
  const int64_t threads = std::min<int64_t>(num_threads, p.clips * p.T / 32);
  parallel_for(p.clips, static_cast<int>(std::max<int64_t>(1, threads)), [&](int64_t clip) { DYNPOOL_CALL(solve, p, clip); });
}

void make_rgb(const PlaneSums<float>& p) { DYNPOOL_CALL(make_rgb, p); }
void make_rgb(const PlaneSums<double>& p) { DYNPOOL_CALL(make_rgb, p); }
bool stretch(const Stretch& s) { return DYNPOOL_CALL(stretch, s); }

const char* instruction_set() { return kNames[static_cast<int>(chosen)]; }

void limit_instruction_set(const char* limit) {
  chosen = detected;
  if (!limit) return;
  for (int i = 0; i < 4; ++i) {
    if (std::strcmp(limit, kNames[i]) == 0) {
      chosen = std::min(detected, static_cast<InstructionSet>(i));
      return;
    }
  }
  throw std::invalid_argument(std::string("limit must be 'baseline', 'avx2', 'avx512' or 'avx512vbmi', got '") + limit + "'");
}

}  // namespace cpu
}  // namespace dynpool
