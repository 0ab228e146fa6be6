// What the kernels of message_passing share: the shape, and K from raw weights and back.
//
// Nothing of PyTorch is included in the .cuh files: the tests compile them for the CPU and run them
// there, thread by thread.
#pragma once

#include <cmath>
#include <cstdint>

namespace psis_d2 {

constexpr int kKernelTaps = 9;

enum class KernelNorm : int { kSoftmax = 0, kSigmoidSum = 1, kNone = 2 };

struct MapShape {
  int64_t groups;  // sets of weights
  int maps;        // maps that each set moves
  int height, width, steps;
  KernelNorm norm;

  __host__ __device__ int pixels() const { return height * width; }
};

template <typename acc_t>
__device__ acc_t* shared_memory() {
  extern __shared__ __align__(16) unsigned char message_passing_shared[];
  return reinterpret_cast<acc_t*>(message_passing_shared);
}

__device__ __forceinline__ double exponential(double x) { return std::exp(x); }
__device__ __forceinline__ double inverse(double x) { return 1.0 / x; }

// float: the hardware's approximations, some 2 units in the last place. Their library forms cost
// more instructions, for denormal numbers, than a step of the recurrence.
#ifdef __CUDA_ARCH__
__device__ __forceinline__ float exponential(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504f));
  return result;
}
__device__ __forceinline__ float inverse(float x) {
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
#else
inline float exponential(float x) { return std::exp2(x * 1.44269504f); }
inline float inverse(float x) { return 1.0f / x; }
#endif

// K of one pixel from its raw weights, which lie `stride` apart; zeros if the pixel is not `used`,
// without reading. Returns what normalize_grad needs: sum + eps for kSigmoidSum.
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ acc_t load_weights(const scalar_t* weights, int stride, KernelNorm norm,
                                              bool used, acc_t (&k)[kKernelTaps]) {
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) {
    k[j] = used ? static_cast<acc_t>(weights[j * stride]) : acc_t(0);
  }
  acc_t sum = 0;
  if (norm == KernelNorm::kSoftmax) {
    acc_t top = k[0];
#pragma unroll
    for (int j = 1; j < kKernelTaps; ++j) top = k[j] > top ? k[j] : top;
#pragma unroll
    for (int j = 0; j < kKernelTaps; ++j) sum += k[j] = exponential(k[j] - top);
  } else if (norm == KernelNorm::kSigmoidSum) {
#pragma unroll
    for (int j = 0; j < kKernelTaps; ++j) {
      sum += k[j] = inverse(acc_t(1) + exponential(-k[j]));
    }
    sum += acc_t(1e-5);
  } else {
    return sum;
  }
  const acc_t scale = used ? inverse(sum) : acc_t(0);
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) k[j] *= scale;
  return sum;
}

// Gradient with respect to the raw weights from the gradient g with respect to K, in place.
template <typename acc_t>
__device__ __forceinline__ void normalize_grad(const acc_t (&k)[kKernelTaps], acc_t sum,
                                               KernelNorm norm, acc_t (&g)[kKernelTaps]) {
  if (norm == KernelNorm::kNone) return;
  acc_t dot = 0;
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) dot += g[j] * k[j];
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) {
    g[j] = k[j] * (g[j] - dot);
    // K_j = s_j / sum, s the sigmoid: the quotient's derivative, then ds/dw = s (1 - s).
    if (norm == KernelNorm::kSigmoidSum) g[j] *= acc_t(1) - k[j] * sum;
  }
}

}  // namespace psis_d2
