// The launchers and kernels of message_passing as a library that runs on the CPU.
#include "../../csrc/cuda/message_passing.cu"
#include "../../csrc/message_passing.cpp"
#include "arrays_on_cpu.h"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char message_passing_shared[1 << 18];
}  // namespace psis_d2

using namespace psis_d2;

// See tile_side.
extern "C" int choose_tile(int maps, int height, int width, int steps, bool is_float64,
                           bool backward, int64_t shared_limit) {
  const MapShape shape{1, maps, height, width, steps, KernelNorm::kSoftmax};
  return tile_side(shape, is_float64, backward, shared_limit);
}

// Runs forward and backward; returns what went wrong, "" if nothing.
//   options  steps, norm (of Norm)
//   in       grad, m0, weights
//   out      out, grad_m0, grad_weights
extern "C" const char* run_op(const Settings* settings, const double* options, const Array* in,
                              const Array* out) {
  const char* norms[] = {"softmax", "sigmoid_sum", "none"};
  const auto steps = static_cast<int64_t>(options[0]);
  const char* norm = norms[static_cast<int>(options[1])];
  return cuda_on_cpu::watched(settings->run(message_passing_shared), [&] {
    const at::Tensor grad = in[0].taken(), m0 = in[1].taken(), weights = in[2].taken();
    out[0].give(message_passing_cuda(m0, weights, steps, norm));
    const auto grads = message_passing_bwd_cuda(grad, m0, weights, steps, norm);
    out[1].give(std::get<0>(grads));
    out[2].give(std::get<1>(grads));
  });
}
