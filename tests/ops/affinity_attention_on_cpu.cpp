// The CUDA kernels of affinity_attention as a library that runs on the CPU, in float64.
#include "cuda_on_cpu.h"

#include <string>

#include "../../csrc/cuda/affinity_attention_kernels.cuh"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char affinity_attention_shared[1 << 18];
}  // namespace psis_d2

using namespace psis_d2;

namespace {

constexpr size_t kGuard = 4096;

// Launches kernels with the threads of a block in one order or the other.
struct Launch {
  bool backwards;

  // shared: elements
  template <typename Kernel>
  void operator()(int64_t blocks, int64_t shared, const Kernel& kernel) const {
    const size_t bytes = shared * sizeof(double);
    if (bytes + kGuard > sizeof(affinity_attention_shared)) {
      throw std::runtime_error("more shared memory than there is");
    }
    run_blocks(static_cast<int>(blocks), kThreads, affinity_attention_shared, bytes, kGuard,
               backwards, kernel);
  }
};

}  // namespace

// Runs forward and backward; returns what went wrong, "" if nothing.
//   dims     N, C, G, L, backwards
//   options  scale, eps, factor of the variance
//   in       grad_attended, grad_sums, theta, phi, value, foreground
//   out      attended, sums, grad_theta, grad_phi, grad_value, grad_foreground, stats, dots
extern "C" const char* run_kernels(const int* dims, const double* options, const double* const* in,
                                   double* const* out) {
  static std::string problem;
  problem.clear();
  const AttentionShape shape{dims[0], dims[1], dims[2], dims[3]};
  const Launch launch{dims[4] != 0};
  const double scale = options[0], eps = options[1], factor = options[2];
  const int64_t blocks = shape.regions * shape.blocks_per_region();
  double *stats = out[6], *dots = out[7];
  const BackwardInputs<double, double> inputs{in[0], in[1], in[2], in[3], in[4], in[5], stats};
  try {
    launch(2 * shape.regions * ((shape.pixels + kThreads - 1) / kThreads), 0,
           [&] { affinity_stats(in[2], in[3], stats, factor, eps, shape); });
    launch(blocks, AttentionShared::size(shape, 1), [&] {
      affinity_attention_forward(in[2], in[3], in[4], in[5], out[0], out[1], stats, scale, shape);
    });
    launch(blocks, AttentionShared::size(shape, 2),
           [&] { affinity_attention_theta_grad(inputs, out[2], dots, scale, factor, shape); });
    launch(blocks, AttentionShared::size(shape, 2), [&] {
      affinity_attention_phi_grad(inputs, dots, out[3], out[4], out[5], scale, factor, shape);
    });
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return problem.c_str();
}
