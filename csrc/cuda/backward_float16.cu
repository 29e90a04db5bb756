// Backward kernels of float16 frames.
#include "backward.cuh"

template void dynpool::cuda::backward<dynpool::Half>(const TemporalPoolParams& p, const Context& context);
