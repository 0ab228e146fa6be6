// The CUDA kernels of shape_prior_blend as a library that runs on the CPU, in float64.
#include <cstdlib>

#include "cuda_on_cpu.h"

#include "../../csrc/cuda/shape_prior_blend_kernels.cuh"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char shape_prior_blend_shared[1 << 18];
}  // namespace psis_d2

using namespace psis_d2;

namespace {

template <typename Kernel>
void launch(int64_t blocks, int64_t shared, const Kernel& kernel) {
  const size_t bytes = shared * sizeof(double);
  if (bytes > sizeof(shape_prior_blend_shared)) std::abort();
  run_blocks(static_cast<int>(blocks), kBlendThreads, shape_prior_blend_shared, bytes, kernel);
}

}  // namespace

// dims: N, G, K, P, H, W.
// in: grad, logits, priors, boxes, frames. out: out, grad_logits, grad_priors, weights,
// grad_blended; without the last three no gradients of the priors.
extern "C" void run(const int* dims, double sample_offset, const double* const* in,
                    const int64_t* classes, double* const* out) {
  const BlendShape shape{dims[0], dims[1], dims[2], dims[3], dims[4], dims[5], sample_offset};
  const BlendInputs<double, double> inputs{in[1], in[2], in[3], in[4], classes};
  launch(shape.boxes, shape.forward_shared(),
         [&] { shape_prior_blend_forward(inputs, out[0], shape); });
  launch(shape.boxes, shape.backward_shared(),
         [&] { shape_prior_blend_backward(inputs, in[0], out[1], out[3], out[4], shape); });
  if (out[2] == nullptr) return;
  launch(shape.groups * shape.priors, 0, [&] {
    shape_prior_blend_prior_grads<double, double>(classes, out[3], out[4], out[2], shape);
  });
}
