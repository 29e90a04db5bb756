// Forward kernels of float16 frames.
#include "forward.cuh"

template void dynpool::cuda::forward<dynpool::Half>(const TemporalPoolParams& p, const Context& context);
