// Backward kernels of float64 frames.
#include "backward.cuh"

template void dynpool::cuda::backward<double>(const TemporalPoolParams& p, const Context& context);
