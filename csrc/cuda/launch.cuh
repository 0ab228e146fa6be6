// What the CUDA launchers share.
#pragma once

#include <c10/cuda/CUDAException.h>

#include <cstdint>

namespace psis_d2 {

constexpr int64_t kDefaultShared = 48 * 1024;  // bytes of shared memory that need no opt-in

// Lets the kernel use `shared` bytes of dynamic shared memory.
template <typename Kernel>
void allow_shared(Kernel* kernel, int64_t shared) {
  if (shared <= kDefaultShared) return;
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
}

}  // namespace psis_d2
