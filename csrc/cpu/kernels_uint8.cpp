// Kernels of uint8 frames, compiled with the fast arithmetic that CMakeLists.txt explains.
#include "backward.h"
#include "forward.h"
#include "gram.h"
#include "planes.h"

namespace dynpool {
inline namespace DYNPOOL_ISA {

Kernels kernels_uint8() { return {forward_of<uint8_t>, backward_of<uint8_t>, gram_of<uint8_t>, planes_of}; }

}  // namespace DYNPOOL_ISA
}  // namespace dynpool
