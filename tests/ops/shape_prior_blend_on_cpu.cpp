// The CUDA kernels of shape_prior_blend as a library that runs on the CPU, in float64.
#include "cuda_on_cpu.h"

#include <string>

#include "../../csrc/cuda/shape_prior_blend_kernels.cuh"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char shape_prior_blend_shared[1 << 18];
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
    if (bytes + kGuard > sizeof(shape_prior_blend_shared)) {
      throw std::runtime_error("more shared memory than there is");
    }
    run_blocks(static_cast<int>(blocks), kBlendThreads, shape_prior_blend_shared, bytes, kGuard,
               backwards, kernel);
  }
};

}  // namespace

// Runs forward and backward; returns what went wrong, "" if nothing.
//   dims  N, G, K, P, H, W, backwards
//   in    grad, logits, priors, boxes, frames
//   out   out, grad_logits, grad_priors, weights, grad_blended; the last three may be null
extern "C" const char* run_kernels(const int* dims, double sample_offset, const double* const* in,
                                   const int64_t* classes, double* const* out) {
  static std::string problem;
  problem.clear();
  const BlendShape shape{dims[0], dims[1], dims[2], dims[3], dims[4], dims[5], sample_offset};
  const BlendInputs<double, double> inputs{in[1], in[2], in[3], in[4], classes};
  const Launch launch{dims[6] != 0};
  try {
    launch(shape.boxes, shape.forward_shared(),
           [&] { shape_prior_blend_forward(inputs, out[0], shape); });
    launch(shape.boxes, shape.backward_shared(),
           [&] { shape_prior_blend_backward(inputs, in[0], out[1], out[3], out[4], shape); });
    if (out[2] != nullptr) {
      launch(shape.groups * shape.priors, 0, [&] {
        shape_prior_blend_prior_grads<double, double>(classes, out[3], out[4], out[2], shape);
      });
    }
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return problem.c_str();
}
