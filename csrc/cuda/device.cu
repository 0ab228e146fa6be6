// What the dispatch in psis_d2/ops asks of a CUDA device.
#include <c10/cuda/CUDAGuard.h>
#include <torch/library.h>

#include "launch.cuh"

namespace psis_d2 {
namespace {

int64_t shared_memory_limit(int64_t device) {
  const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
  return shared_limit();
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(psis_d2, m) {
  // Bytes of shared memory that a block of the CUDA device of this index may have.
  m.def("shared_memory_limit(int device) -> int", &shared_memory_limit);
}

}  // namespace psis_d2
