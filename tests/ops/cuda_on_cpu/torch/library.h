// Registers nothing: the tests call the functions of the launchers themselves.
#pragma once

namespace cuda_on_cpu {

struct Library {
  template <typename... Arguments>
  void def(Arguments&&...) {}
  template <typename... Arguments>
  void impl(Arguments&&...) {}
};

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_JOIN_(a, b) a##b
#define CUDA_ON_CPU_JOIN(a, b) CUDA_ON_CPU_JOIN_(a, b)
#define CUDA_ON_CPU_BLOCK(m) \
  [[maybe_unused]] static void CUDA_ON_CPU_JOIN(unused_, __COUNTER__)(cuda_on_cpu::Library & m)
#define TORCH_LIBRARY_FRAGMENT(name, m) CUDA_ON_CPU_BLOCK(m)
#define TORCH_LIBRARY_IMPL(name, key, m) CUDA_ON_CPU_BLOCK(m)
