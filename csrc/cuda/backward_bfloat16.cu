// Backward kernels of bfloat16 frames.
#include "backward.cuh"

template void dynpool::cuda::backward<dynpool::BFloat16>(const TemporalPoolParams& p, const Context& context);
