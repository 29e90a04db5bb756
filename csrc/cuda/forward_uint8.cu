// Forward kernels of uint8 frames.
#include "forward.cuh"

template void dynpool::cuda::forward<uint8_t>(const TemporalPoolParams& p, const Context& context);
