// Forward kernels of bfloat16 frames.
#include "forward.cuh"

template void dynpool::cuda::forward<dynpool::BFloat16>(const TemporalPoolParams& p, const Context& context);
