// Kernels of floating frames.
#include "backward.h"
#include "forward.h"
#include "gram.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {

Kernels kernels_float(DType dtype) {
  switch (dtype) {
    case DType::float16: return {forward_of<Half>, backward_of<Half>, gram_of<Half>};
    case DType::bfloat16: return {forward_of<BFloat16>, backward_of<BFloat16>, gram_of<BFloat16>};
    case DType::float32: return {forward_of<float>, backward_of<float>, gram_of<float>};
    default: return {forward_of<double>, backward_of<double>, gram_of<double>};
  }
}

}  // namespace DYNPOOL_ISA
}  // namespace dynpool
