// The CUDA kernels of message_passing as a library that runs on the CPU.
#include "cuda_on_cpu.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cmath>
#include <limits>
#include <string>

#include "../../csrc/cuda/message_passing_generic.cuh"
#include "../../csrc/cuda/message_passing_tiles.cuh"

namespace psis_d2 {
// Dynamic shared memory of the block that runs.
__align__(16) unsigned char message_passing_shared[1 << 20];
}  // namespace psis_d2

namespace {

using namespace psis_d2;

constexpr size_t kGuard = 4096;

struct Launch {
  int blocks, threads;  // of the generic kernels; the others' follow from the shape
  bool in_shared, backwards;
};

template <typename scalar_t>
struct Arrays {
  const scalar_t *grad, *weights, *m0;
  scalar_t *out, *grad_m0, *grad_weights;
};

template <typename Kernel>
void run(int blocks, int threads, size_t shared_size, const Launch& launch, const Kernel& kernel) {
  if (shared_size + kGuard > sizeof(message_passing_shared)) {
    throw std::runtime_error("more shared memory than there is");
  }
  run_blocks(blocks, threads, message_passing_shared, shared_size, kGuard, launch.backwards,
             kernel);
}

template <typename scalar_t, typename acc_t>
void generic(const Arrays<scalar_t>& a, const MapShape& shape, const Launch& launch) {
  const acc_t nan = std::numeric_limits<acc_t>::quiet_NaN();
  const size_t plane = Planes(shape).size;
  const auto planes = [&](int count) {
    return std::vector<acc_t>(launch.in_shared ? 0 : launch.blocks * count * plane, nan);
  };
  const auto shared = [&](int count) {
    return launch.in_shared ? count * plane * sizeof(acc_t) : 0;
  };
  const int forward_count = Planes::forward_count();
  auto forward_planes = planes(forward_count);
  run(launch.blocks, launch.threads, shared(forward_count), launch, [&] {
    message_passing_forward<scalar_t, acc_t>(
        a.weights, a.m0, a.out, launch.in_shared ? nullptr : forward_planes.data(), shape);
  });
  const int backward_count = Planes::backward_count(shape.steps);
  auto backward_planes = planes(backward_count);
  std::vector<acc_t> sums(size_t(launch.blocks) * kKernelTaps * shape.pixels(), nan);
  run(launch.blocks, launch.threads, shared(backward_count), launch, [&] {
    message_passing_backward<scalar_t, acc_t>(a.grad, a.weights, a.m0, a.grad_m0, a.grad_weights,
                                              launch.in_shared ? nullptr : backward_planes.data(),
                                              sums.data(), shape);
  });
}

template <int kSide, typename scalar_t, typename acc_t>
void tiles(const Arrays<scalar_t>& a, const MapShape& shape, const Launch& launch) {
  const TileLaunch<kSide> tile{shape};
  run(tile.blocks(), kTileThreads, tile.forward_shared() * sizeof(acc_t), launch,
      [&] { message_passing_tile_forward<kSide, scalar_t, acc_t>(a.weights, a.m0, a.out, shape); });
  run(tile.blocks(), kTileThreads, tile.backward_shared() * sizeof(acc_t), launch, [&] {
    message_passing_tile_backward<kSide, scalar_t, acc_t>(a.grad, a.weights, a.m0, a.grad_m0,
                                                          a.grad_weights, shape);
  });
}

template <typename scalar_t, typename acc_t>
void run_as(void* const* arrays, const MapShape& shape, const Launch& launch) {
  const auto in = [&](int i) { return static_cast<const scalar_t*>(arrays[i]); };
  const auto out = [&](int i) { return static_cast<scalar_t*>(arrays[i]); };
  const Arrays<scalar_t> a{in(0), in(1), in(2), out(3), out(4), out(5)};
  if (launch.blocks > 0) {
    generic<scalar_t, acc_t>(a, shape, launch);
  } else if (shape.height == 14) {
    tiles<14, scalar_t, acc_t>(a, shape, launch);
  } else {
    tiles<28, scalar_t, acc_t>(a, shape, launch);
  }
}

}  // namespace

// Runs forward and backward; returns what went wrong, "" if nothing.
//   dims    groups, maps, H, W, T, norm, blocks, threads, planes in shared memory, backwards.
//           blocks == 0: the kernels for 14 x 14 or 28 x 28
//   dtype   0 double, 1 float, 2 half, 3 bfloat16
//   arrays  grad, weights, m0, out, grad_m0, grad_weights
extern "C" const char* run_kernels(const int* dims, int dtype, void* const* arrays) {
  static std::string problem;
  problem.clear();
  const MapShape shape{dims[0], dims[1], dims[2], dims[3], dims[4], KernelNorm(dims[5])};
  const Launch launch{dims[6], dims[7], dims[8] != 0, dims[9] != 0};
  try {
    if (dtype == 0) run_as<double, double>(arrays, shape, launch);
    if (dtype == 1) run_as<float, float>(arrays, shape, launch);
    if (dtype == 2) run_as<c10::Half, float>(arrays, shape, launch);
    if (dtype == 3) run_as<c10::BFloat16, float>(arrays, shape, launch);
  } catch (const std::exception& error) {
    problem = error.what();
  }
  return problem.c_str();
}
