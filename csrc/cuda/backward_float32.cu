// Backward kernels of float32 frames.
#include "backward.cuh"

template void dynpool::cuda::backward<float>(const TemporalPoolParams& p, const Context& context);
