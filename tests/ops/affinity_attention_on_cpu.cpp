// The launchers and kernels of affinity_attention as a library that runs on the CPU.
#include "../../csrc/affinity_attention.cpp"
#include "../../csrc/cuda/affinity_attention.cu"
#include "arrays_on_cpu.h"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char affinity_attention_shared[1 << 18];
}  // namespace psis_d2

using namespace psis_d2;

// Shared memory of the kernel that needs most.
extern "C" int64_t shared_elements(int pixels) {
  return AttentionShared::size(AttentionShape{1, 1, 1, pixels}, 2);
}

// Runs forward and backward; returns what went wrong, "" if nothing.
//   options  scale, eps, unbiased
//   in       grad_attended, grad_sums, theta, phi, value, foreground
//   out      attended, sums, grad_theta, grad_phi, grad_value, grad_foreground
extern "C" const char* run_op(const Settings* settings, const double* options, const Array* in,
                              const Array* out) {
  const double scale = options[0], eps = options[1];
  const bool unbiased = options[2] != 0;
  return cuda_on_cpu::watched(settings->run(affinity_attention_shared), [&] {
    const at::Tensor grad_attended = in[0].taken(), grad_sums = in[1].taken();
    const at::Tensor theta = in[2].taken(), phi = in[3].taken();
    const at::Tensor value = in[4].taken(), foreground = in[5].taken();
    const auto [attended, sums, stats] =
        affinity_attention_cuda(theta, phi, value, foreground, scale, eps, unbiased);
    out[0].give(attended);
    out[1].give(sums);
    const auto grads = affinity_attention_bwd_cuda(grad_attended, grad_sums, theta, phi, value,
                                                   foreground, stats, scale, unbiased);
    out[2].give(std::get<0>(grads));
    out[3].give(std::get<1>(grads));
    out[4].give(std::get<2>(grads));
    out[5].give(std::get<3>(grads));
  });
}
