// The solvers of exact rank pooling on one thread a clip.
#include "../solver.h"

#include "../pixel.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {
namespace {

struct Alone {
  template <class Body>
  void each(int64_t n, const Body& body) const {
    for (int64_t i = 0; i < n; ++i) body(i);
  }
  template <class Body>
  void lanes(int64_t n, const Body& body) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) body(i);
  }
  template <class Body>
  double sum(int64_t n, const Body& body) const {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) total += body(i);
    return total;
  }
  template <class Body>
  void one(const Body& body) const {
    body();
  }
  bool leads() const { return true; }
  void sync() const {}
};

}  // namespace

void solve(const SolverParams& p, int64_t clip) { solve_clip(p, clip, Alone{}); }

}  // namespace DYNPOOL_ISA
}  // namespace dynpool
