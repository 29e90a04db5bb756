// Forward kernels of float32 frames.
#include "forward.cuh"

template void dynpool::cuda::forward<float>(const TemporalPoolParams& p, const Context& context);
