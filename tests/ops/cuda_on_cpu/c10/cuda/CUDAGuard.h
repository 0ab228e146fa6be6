// Every launch has to be under one of these.
#pragma once

#include <c10/core/Device.h>

#include "../../../cuda_on_cpu.h"

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) { cuda_on_cpu::guard(1); }
  ~CUDAGuard() { cuda_on_cpu::guard(-1); }
};

}  // namespace c10::cuda
