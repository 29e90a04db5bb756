// Backward kernels of uint8 frames.
#include "backward.cuh"

template void dynpool::cuda::backward<uint8_t>(const TemporalPoolParams& p, const Context& context);
