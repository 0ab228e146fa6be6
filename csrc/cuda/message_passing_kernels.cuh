// Generic kernels of message_passing: a block per set of weights, a thread per kPixels pixels,
// whole maps in shared memory. Any number of steps, H and W up to kMaxCudaSide.
//
// A plane is a map with a border of zeros, [H + 2][W + 2]; threads write only cells of their own
// pixels, so borders stay as they were cleared. K of a pixel stays in its thread's registers.
//
// Nothing of PyTorch is included: the tests compile this file for the CPU and run it there.
#pragma once

#include <cmath>
#include <cstdint>

namespace psis_d2 {

constexpr int kMaxThreads = 1024;
constexpr int kKernelTaps = 9;

enum class KernelNorm : int { kSoftmax = 0, kSigmoidSum = 1, kNone = 2 };

struct MapShape {
  int64_t groups;  // sets of weights
  int maps;        // maps that each set moves
  int height, width, steps;
  KernelNorm norm;

  __host__ __device__ int pixels() const { return height * width; }
  __host__ __device__ int pitch() const { return width + 2; }
  __host__ __device__ int plane() const { return (height + 2) * (width + 2); }
  // Offset of a tap in a plane.
  __host__ __device__ int tap(int j) const { return (j / 3 - 1) * pitch() + j % 3 - 1; }
  // Cell of a pixel in a plane.
  __host__ __device__ int cell(int pixel) const {
    return (pixel / width + 1) * pitch() + pixel % width + 1;
  }
  // Planes of the backward kernel: m_0 .. m_{T-1}, then the gradients of m_0 .. m_{T-1}, in whose
  // place the nine taps of K are exchanged before, then the gradient of m_T.
  __host__ __device__ int last_gradient() const {
    return steps > kKernelTaps ? steps : kKernelTaps;
  }
  __host__ __device__ int backward_planes() const { return steps + last_gradient() + 1; }
};

template <typename acc_t>
__device__ acc_t* shared_planes() {
  extern __shared__ __align__(16) unsigned char message_passing_shared[];
  return reinterpret_cast<acc_t*>(message_passing_shared);
}

// K of one pixel from its raw weights, which lie `stride` apart. Returns what normalise_grad needs:
// sum + eps for kSigmoidSum.
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ acc_t load_weights(const scalar_t* weights, int stride, KernelNorm norm,
                                              acc_t (&k)[kKernelTaps]) {
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) k[j] = static_cast<acc_t>(weights[j * stride]);
  acc_t sum = 0;
  if (norm == KernelNorm::kSoftmax) {
    acc_t top = k[0];
#pragma unroll
    for (int j = 1; j < kKernelTaps; ++j) top = k[j] > top ? k[j] : top;
#pragma unroll
    for (int j = 0; j < kKernelTaps; ++j) sum += k[j] = std::exp(k[j] - top);
  } else if (norm == KernelNorm::kSigmoidSum) {
#pragma unroll
    for (int j = 0; j < kKernelTaps; ++j) sum += k[j] = acc_t(1) / (acc_t(1) + std::exp(-k[j]));
    sum += acc_t(1e-5);
  } else {
    return sum;
  }
  const acc_t scale = acc_t(1) / sum;
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) k[j] *= scale;
  return sum;
}

// Gradient with respect to the raw weights from the gradient g with respect to K, in place.
template <typename acc_t>
__device__ __forceinline__ void normalise_grad(const acc_t (&k)[kKernelTaps], acc_t sum,
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

// One step of eq. 4 for one cell. sign = -1 gives the transposed step, if k holds its weights.
template <int sign, typename acc_t>
__device__ __forceinline__ acc_t gather(const acc_t* plane, int cell, const MapShape& shape,
                                        const acc_t (&k)[kKernelTaps]) {
  acc_t sum = 0;
#pragma unroll
  for (int j = 0; j < kKernelTaps; ++j) sum += k[j] * plane[cell + sign * shape.tap(j)];
  return sum;
}

template <typename acc_t>
__device__ __forceinline__ void clear(acc_t* planes, int64_t size) {
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) planes[i] = acc_t(0);
  __syncthreads();
}

// Runs body(pixel, cell) for each pixel of this thread.
template <typename Body>
__device__ __forceinline__ void for_pixels(const MapShape& shape, const Body& body) {
#pragma unroll 1
  for (int pixel = threadIdx.x; pixel < shape.pixels(); pixel += blockDim.x) {
    body(pixel, shape.cell(pixel));
  }
}

// Runs body(i, pixel, cell) for pixel i of this thread; i is known when compiling, so that arrays
// indexed with it stay in registers.
template <int kPixels, typename Body>
__device__ __forceinline__ void for_each_pixel(const MapShape& shape, const Body& body) {
#pragma unroll
  for (int i = 0; i < kPixels; ++i) {
    const int pixel = threadIdx.x + i * blockDim.x;
    if (pixel < shape.pixels()) body(i, pixel, shape.cell(pixel));
  }
}

// weights [groups, 9, H, W], m0 and out [groups, maps, H, W]. Shared memory: two planes.
template <typename scalar_t, typename acc_t, int kPixels>
__global__ void __launch_bounds__(kMaxThreads)
    message_passing_forward(const scalar_t* weights, const scalar_t* m0, scalar_t* out,
                            MapShape shape) {
  acc_t* planes = shared_planes<acc_t>();
  const int size = shape.plane();
  const int pixels = shape.pixels();
  clear(planes, 2 * size);
  for (int64_t group = blockIdx.x; group < shape.groups; group += gridDim.x) {
    const scalar_t* raw = weights + group * kKernelTaps * pixels;
    acc_t k[kPixels][kKernelTaps];
    for_each_pixel<kPixels>(
        shape, [&](int i, int pixel, int) { load_weights(raw + pixel, pixels, shape.norm, k[i]); });
    for (int c = 0; c < shape.maps; ++c) {
      const int64_t map = (group * shape.maps + c) * pixels;
      for_pixels(shape,
                 [&](int pixel, int cell) { planes[cell] = static_cast<acc_t>(m0[map + pixel]); });
      __syncthreads();
      for (int t = 0; t < shape.steps; ++t) {
        const acc_t* now = planes + (t % 2) * size;
        acc_t* next = planes + ((t + 1) % 2) * size;
        for_each_pixel<kPixels>(
            shape, [&](int i, int, int cell) { next[cell] = gather<1>(now, cell, shape, k[i]); });
        __syncthreads();
      }
      // Own cells only, as is the next map's first write: no barrier in between.
      const acc_t* last = planes + (shape.steps % 2) * size;
      for_pixels(shape, [&](int pixel, int cell) {
        out[map + pixel] = static_cast<scalar_t>(last[cell]);
      });
    }
  }
}

// grad, m0, grad_m0 [groups, maps, H, W]; weights, grad_weights [groups, 9, H, W].
//   planes      backward_planes() planes per block in global memory; null: in shared memory
//   weight_sums [gridDim.x, 9, H, W], gradients of K over the maps so far; null if maps == 1
// Every sum has one thread and one order, so results are bitwise repeatable.
template <typename scalar_t, typename acc_t, int kPixels>
__global__ void __launch_bounds__(kMaxThreads)
    message_passing_backward(const scalar_t* grad, const scalar_t* weights, const scalar_t* m0,
                             scalar_t* grad_m0, scalar_t* grad_weights, acc_t* planes,
                             acc_t* weight_sums, MapShape shape) {
  const int size = shape.plane();
  const int pixels = shape.pixels();
  const int64_t planes_size = static_cast<int64_t>(shape.backward_planes()) * size;
  acc_t* states = planes == nullptr ? shared_planes<acc_t>() : planes + blockIdx.x * planes_size;
  acc_t* grads = states + static_cast<int64_t>(shape.steps) * size;
  acc_t* sums = weight_sums + static_cast<int64_t>(blockIdx.x) * kKernelTaps * pixels;
  const auto grad_plane = [&](int t) {
    return grads + static_cast<int64_t>(t < shape.steps ? t : shape.last_gradient()) * size;
  };
  clear(states, planes_size);

  for (int64_t group = blockIdx.x; group < shape.groups; group += gridDim.x) {
    const scalar_t* raw = weights + group * kKernelTaps * pixels;
    for (int c = 0; c < shape.maps; ++c) {
      const int64_t map = (group * shape.maps + c) * pixels;
      acc_t k[kPixels][kKernelTaps];
      for_each_pixel<kPixels>(shape, [&](int i, int pixel, int cell) {
        load_weights(raw + pixel, pixels, shape.norm, k[i]);
        if (shape.steps > 0) states[cell] = static_cast<acc_t>(m0[map + pixel]);
        grad_plane(shape.steps)[cell] = static_cast<acc_t>(grad[map + pixel]);
        // For the exchange below; the barriers of the loop in between come before it.
#pragma unroll
        for (int j = 0; j < kKernelTaps; ++j) grads[j * size + cell] = k[i][j];
      });
      __syncthreads();
      for (int t = 1; t < shape.steps; ++t) {
        const acc_t* now = states + static_cast<int64_t>(t - 1) * size;
        for_each_pixel<kPixels>(shape, [&](int i, int, int cell) {
          states[static_cast<int64_t>(t) * size + cell] = gather<1>(now, cell, shape, k[i]);
        });
        __syncthreads();
      }

      // Transposed step: g_t[q] = sum_j K[j, q - d(j)] * g_{t+1}[q - d(j)], K zero outside the map.
      for_each_pixel<kPixels>(shape, [&](int i, int, int cell) {
#pragma unroll
        for (int j = 0; j < kKernelTaps; ++j) k[i][j] = grads[j * size + cell - shape.tap(j)];
      });
      __syncthreads();
      for (int t = shape.steps; t > 0; --t) {
        const acc_t* now = grad_plane(t);
        acc_t* next = grad_plane(t - 1);
        for_each_pixel<kPixels>(
            shape, [&](int i, int, int cell) { next[cell] = gather<-1>(now, cell, shape, k[i]); });
        __syncthreads();
      }

      for_pixels(shape, [&](int pixel, int cell) {
        grad_m0[map + pixel] = static_cast<scalar_t>(grad_plane(0)[cell]);
        acc_t g[kKernelTaps];
#pragma unroll
        for (int j = 0; j < kKernelTaps; ++j) g[j] = c > 0 ? sums[j * pixels + pixel] : acc_t(0);
        for (int t = 0; t < shape.steps; ++t) {
          const acc_t scale = grad_plane(t + 1)[cell];
          const acc_t* now = states + static_cast<int64_t>(t) * size + cell;
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) g[j] += scale * now[shape.tap(j)];
        }
        if (c + 1 < shape.maps) {
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) sums[j * pixels + pixel] = g[j];
        } else {
          acc_t own[kKernelTaps];
          const acc_t sum = load_weights(raw + pixel, pixels, shape.norm, own);
          normalise_grad(own, sum, shape.norm, g);
          scalar_t* target = grad_weights + group * kKernelTaps * pixels + pixel;
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) target[j * pixels] = static_cast<scalar_t>(g[j]);
        }
      });
      __syncthreads();  // the next map overwrites what neighbours have just read
    }
  }
}

}  // namespace psis_d2
