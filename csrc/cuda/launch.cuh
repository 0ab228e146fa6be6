// What the CUDA launchers share.
#pragma once

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <limits>
#include <utility>

namespace psis_d2 {

constexpr int64_t kDefaultShared = 48 * 1024;  // bytes of shared memory that need no opt-in

// Of the current device.
inline int device_attribute(cudaDeviceAttr attribute) {
  int device = 0, value = 0;
  C10_CUDA_CHECK(cudaGetDevice(&device));
  C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

// Bytes of shared memory that a block of the current device may have: 227 KB of sm_90, 163 of
// sm_80, 99 of sm_86 and sm_89.
inline int64_t shared_limit() { return device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin); }

// Lets the kernel use `shared` bytes of dynamic shared memory.
template <typename Kernel>
void allow_shared(const char* op, Kernel* kernel, int64_t shared) {
  if (shared <= kDefaultShared) return;
  const int64_t limit = shared_limit();
  TORCH_CHECK_VALUE(shared <= limit, op, ": the CUDA kernel needs ", shared,
                    " bytes of shared memory for these sizes, and this GPU gives a block ", limit,
                    "; psis_d2.ops.", op, " takes any.");
  C10_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(shared)));
}

// Launches a kernel on the current stream of the current device.  shared: bytes
template <typename... Parameters, typename... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads,
            int64_t shared, Arguments&&... arguments) {
  TORCH_CHECK_VALUE(blocks <= std::numeric_limits<int32_t>::max(), op, ": ", blocks,
                    " blocks are more than a CUDA grid holds; split the regions.");
  allow_shared(op, kernel, shared);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  config.stream = c10::cuda::getCurrentCUDAStream();
  C10_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace psis_d2
