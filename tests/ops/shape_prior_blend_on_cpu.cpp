// The launchers and kernels of shape_prior_blend as a library that runs on the CPU.
#include "../../csrc/cuda/shape_prior_blend.cu"
#include "../../csrc/shape_prior_blend.cpp"
#include "arrays_on_cpu.h"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char shape_prior_blend_shared[1 << 18];
}  // namespace psis_d2

using namespace psis_d2;

// Shared memory of the kernel that needs most.
extern "C" int64_t shared_elements(int priors, int side, int height, int width) {
  return BlendShape{1, 1, priors, side, height, width, 0.5}.backward_shared();
}

// Runs forward and backward; returns what went wrong, "" if nothing.
//   options  sample_offset, whether the priors need a gradient
//   in       grad, logits, priors, boxes, frames, classes (or none)
//   out      out, grad_logits, grad_priors
extern "C" const char* run_op(const Settings* settings, const double* options, const Array* in,
                              const Array* out) {
  const double offset = options[0];
  const bool priors_need_grad = options[1] != 0;
  return cuda_on_cpu::watched(settings->run(shape_prior_blend_shared), [&] {
    const at::Tensor grad = in[0].taken(), logits = in[1].taken(), priors = in[2].taken();
    const at::Tensor boxes = in[3].taken(), frames = in[4].taken();
    std::optional<at::Tensor> classes;
    if (in[5].dims >= 0) classes = in[5].taken();
    out[0].give(shape_prior_blend_cuda(logits, priors, boxes, frames, grad.size(1), grad.size(2),
                                       classes, offset));
    const auto grads = shape_prior_blend_bwd_cuda(grad, logits, priors, boxes, frames, classes,
                                                  offset, priors_need_grad);
    out[1].give(std::get<0>(grads));
    if (priors_need_grad) out[2].give(std::get<1>(grads));
  });
}
