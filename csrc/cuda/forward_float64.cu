// Forward kernels of float64 frames.
#include "forward.cuh"

template void dynpool::cuda::forward<double>(const TemporalPoolParams& p, const Context& context);
