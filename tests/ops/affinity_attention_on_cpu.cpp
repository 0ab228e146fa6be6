// The CUDA kernels of affinity_attention as a library that runs on the CPU, in float64.
#include <cstdlib>

#include "cuda_on_cpu.h"

#include "../../csrc/cuda/affinity_attention_kernels.cuh"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char affinity_attention_shared[1 << 18];
}  // namespace psis_d2

using namespace psis_d2;

namespace {

template <typename Kernel>
void launch(int64_t blocks, int64_t shared, const Kernel& kernel) {
  const size_t bytes = shared * sizeof(double);
  if (bytes > sizeof(affinity_attention_shared)) std::abort();
  run_blocks(static_cast<int>(blocks), kThreads, affinity_attention_shared, bytes, kernel);
}

}  // namespace

// dims: N, C, G, L. options: scale, eps, factor of the variance.
// in: grad_attended, grad_sums, theta, phi, value, foreground.
// out: attended, sums, grad_theta, grad_phi, grad_value, grad_foreground, stats, dots.
extern "C" void run(const int* dims, const double* options, const double* const* in,
                    double* const* out) {
  const AttentionShape shape{dims[0], dims[1], dims[2], dims[3]};
  const double scale = options[0], eps = options[1], factor = options[2];
  const int64_t blocks = shape.regions * shape.blocks_per_region();
  double *stats = out[6], *dots = out[7];
  launch(2 * shape.regions * ((shape.pixels + kThreads - 1) / kThreads), 0,
         [&] { affinity_stats(in[2], in[3], stats, factor, eps, shape); });
  launch(blocks, AttentionShared::size(shape, 1), [&] {
    affinity_attention_forward(in[2], in[3], in[4], in[5], out[0], out[1], stats, scale, shape);
  });
  const BackwardInputs<double, double> inputs{in[0], in[1], in[2], in[3], in[4], in[5], stats};
  launch(blocks, AttentionShared::size(shape, 2),
         [&] { affinity_attention_theta_grad(inputs, out[2], dots, scale, factor, shape); });
  launch(blocks, AttentionShared::size(shape, 2), [&] {
    affinity_attention_phi_grad(inputs, dots, out[3], out[4], out[5], scale, factor, shape);
  });
}
