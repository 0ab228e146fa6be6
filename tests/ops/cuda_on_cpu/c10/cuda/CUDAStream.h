// The current stream: another one under a guard, so that a launch that asked before is found.
#pragma once

#include "../../../cuda_on_cpu.h"

namespace c10::cuda {

inline int getCurrentCUDAStream() { return cuda_on_cpu::current_stream(); }

}  // namespace c10::cuda
