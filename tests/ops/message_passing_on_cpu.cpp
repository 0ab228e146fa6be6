// The CUDA kernels of message_passing as a library that runs on the CPU, in float64.
#include "cuda_on_cpu.h"

#include "../../csrc/cuda/message_passing_kernels.cuh"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char message_passing_shared[1 << 20];
}  // namespace psis_d2

namespace {

using namespace psis_d2;

template <int kPixels>
void forward(const double* weights, const double* m0, double* out, const MapShape& shape,
             int blocks, int threads) {
  run_blocks(blocks, threads, message_passing_shared, sizeof(message_passing_shared),
             [&] { message_passing_forward<double, double, kPixels>(weights, m0, out, shape); });
}

template <int kPixels>
void backward(const double* grad, const double* weights, const double* m0, double* grad_m0,
              double* grad_weights, bool in_shared, const MapShape& shape, int blocks,
              int threads) {
  std::vector<double> planes(in_shared ? 0
                                       : size_t(blocks) * shape.backward_planes() * shape.plane());
  std::vector<double> sums(size_t(blocks) * kKernelTaps * shape.pixels());
  std::memset(planes.data(), 0xff, planes.size() * sizeof(double));
  std::memset(sums.data(), 0xff, sums.size() * sizeof(double));
  run_blocks(blocks, threads, message_passing_shared, sizeof(message_passing_shared), [&] {
    message_passing_backward<double, double, kPixels>(grad, weights, m0, grad_m0, grad_weights,
                                                      in_shared ? nullptr : planes.data(),
                                                      sums.data(), shape);
  });
}

}  // namespace

// dims: groups, maps, H, W, T, norm, pixels per thread, blocks, threads, planes in shared memory.
extern "C" void run(const int* dims, const double* grad, const double* weights, const double* m0,
                    double* out, double* grad_m0, double* grad_weights) {
  const MapShape shape{dims[0], dims[1], dims[2], dims[3], dims[4], KernelNorm(dims[5])};
  const int blocks = dims[7], threads = dims[8];
  const bool in_shared = dims[9] != 0;
  const auto both = [&](auto forward, auto backward) {
    forward(weights, m0, out, shape, blocks, threads);
    backward(grad, weights, m0, grad_m0, grad_weights, in_shared, shape, blocks, threads);
  };
  if (dims[6] == 1) {
    both(forward<1>, backward<1>);
  } else if (dims[6] == 2) {
    both(forward<2>, backward<2>);
  } else {
    both(forward<4>, backward<4>);
  }
}
