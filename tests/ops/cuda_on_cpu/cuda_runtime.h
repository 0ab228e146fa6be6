// The part of the CUDA runtime that the launchers use, for kernels that run on the CPU.
#pragma once

#include "../cuda_on_cpu.h"

using cudaError_t = int;
using cudaStream_t = int;

struct dim3 {
  unsigned x, y = 1, z = 1;
  dim3(unsigned x_ = 1) : x(x_) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrMultiProcessorCount };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return 0;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const cuda_on_cpu::Device& device = cuda_on_cpu::device();
  *value = attribute == cudaDevAttrMultiProcessorCount ? device.processors : device.shared_limit;
  return 0;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  cuda_on_cpu::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  return 0;
}

template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) {
  *blocks = 1;
  return 0;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const auto run = [&](Parameters... coerced) {
    cuda_on_cpu::launch(reinterpret_cast<const void*>(kernel), config->gridDim.x,
                        config->blockDim.x, config->dynamicSmemBytes, config->stream,
                        [&] { kernel(coerced...); });
  };
  run(std::forward<Arguments>(arguments)...);
  return 0;
}
