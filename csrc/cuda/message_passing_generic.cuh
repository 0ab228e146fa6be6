// Generic kernels of message_passing: a block per set of weights, any size, any number of steps.
//
// A plane is a map with a border of zeros, [H + 2][W + 2]; threads write only cells of their own
// pixels, so borders stay as they were cleared. Planes lie in shared memory where they fit, else in
// global memory. The nine taps of K are planes too: a tap of the pixel next door is read as easily
// as an own one, which is all that the transposed step needs.
#pragma once

#include "message_passing_weights.cuh"

namespace psis_d2 {

// So few that each has the registers it needs, also in float64.
constexpr int kGenericThreads = 512;

// The planes of a block.
struct Planes {
  int pitch, size, pixels, width;

  __host__ __device__ explicit Planes(const MapShape& shape)
      : pitch(shape.width + 2),
        size((shape.height + 2) * (shape.width + 2)),
        pixels(shape.pixels()),
        width(shape.width) {}
  // First K and what normalize_grad needs. Forward: two states. Backward: m_0 .. m_{T-1}, gradients
  // of m_0 .. m_T.
  static constexpr int kWeightPlanes = kKernelTaps + 1;
  __host__ __device__ static int forward_count() { return kWeightPlanes + 2; }
  __host__ __device__ static int backward_count(int steps) { return kWeightPlanes + 2 * steps + 1; }

  // Offset of a tap.
  __host__ __device__ int tap(int j) const { return (j / 3 - 1) * pitch + j % 3 - 1; }
  // Cell of a pixel.
  __host__ __device__ int cell(int pixel) const {
    return (pixel / width + 1) * pitch + pixel % width + 1;
  }

  // Runs body(pixel, cell) for each pixel of this thread; all threads have the same.
  template <typename Body>
  __device__ __forceinline__ void for_pixels(const Body& body) const {
#pragma unroll 1
    for (int pixel = threadIdx.x; pixel < pixels; pixel += blockDim.x) body(pixel, cell(pixel));
  }

  // One step of eq. 4 for one cell; the transposed step is
  // g_t[q] = sum_j K[j, q - d(j)] * g_{t+1}[q - d(j)], K zero outside the map.
  template <bool transposed, typename acc_t>
  __device__ __forceinline__ acc_t gather(const acc_t* k, const acc_t* from, int cell) const {
    acc_t sum = 0;
#pragma unroll
    for (int j = 0; j < kKernelTaps; ++j) {
      const int other = transposed ? cell - tap(j) : cell + tap(j);
      sum += k[j * size + (transposed ? other : cell)] * from[other];
    }
    return sum;
  }

  template <typename scalar_t, typename acc_t>
  __device__ __forceinline__ void store_weights(const scalar_t* raw, KernelNorm norm,
                                                acc_t* k) const {
    for_pixels([&](int pixel, int cell) {
      acc_t own[kKernelTaps];
      k[kKernelTaps * size + cell] = load_weights(raw + pixel, pixels, norm, true, own);
#pragma unroll
      for (int j = 0; j < kKernelTaps; ++j) k[j * size + cell] = own[j];
    });
  }
};

template <typename acc_t>
__device__ __forceinline__ void clear(acc_t* planes, int64_t size) {
  for (int64_t i = threadIdx.x; i < size; i += blockDim.x) planes[i] = acc_t(0);
  __syncthreads();
}

// weights [groups, 9, H, W], m0 and out [groups, maps, H, W].
//   planes  forward_count() planes per block in global memory; null: in shared memory
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kGenericThreads)
    message_passing_forward(const scalar_t* weights, const scalar_t* m0, scalar_t* out,
                            acc_t* planes, MapShape shape) {
  const Planes at(shape);
  const int64_t planes_size = static_cast<int64_t>(Planes::forward_count()) * at.size;
  acc_t* k = planes == nullptr ? shared_memory<acc_t>() : planes + blockIdx.x * planes_size;
  acc_t* states = k + Planes::kWeightPlanes * at.size;
  clear(k, planes_size);
  for (int64_t group = blockIdx.x; group < shape.groups; group += gridDim.x) {
    at.store_weights(weights + group * kKernelTaps * at.pixels, shape.norm, k);
    for (int c = 0; c < shape.maps; ++c) {
      const int64_t map = (group * shape.maps + c) * at.pixels;
      at.for_pixels(
          [&](int pixel, int cell) { states[cell] = static_cast<acc_t>(m0[map + pixel]); });
      __syncthreads();
      for (int t = 0; t < shape.steps; ++t) {
        const acc_t* now = states + (t % 2) * at.size;
        acc_t* next = states + ((t + 1) % 2) * at.size;
        at.for_pixels([&](int, int cell) { next[cell] = at.template gather<false>(k, now, cell); });
        __syncthreads();
      }
      // Own cells only, as are the next map's and the next weights' first writes: no barrier.
      const acc_t* last = states + (shape.steps % 2) * at.size;
      at.for_pixels(
          [&](int pixel, int cell) { out[map + pixel] = static_cast<scalar_t>(last[cell]); });
    }
  }
}

// grad, m0, grad_m0 [groups, maps, H, W]; weights, grad_weights [groups, 9, H, W].
//   planes      backward_count() planes per block in global memory; null: in shared memory
//   weight_sums [gridDim.x, 9, H, W], gradients of K over the maps so far; null if maps == 1
// Every sum has one thread and one order, so results are bitwise repeatable.
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kGenericThreads)
    message_passing_backward(const scalar_t* grad, const scalar_t* weights, const scalar_t* m0,
                             scalar_t* grad_m0, scalar_t* grad_weights, acc_t* planes,
                             acc_t* weight_sums, MapShape shape) {
  const Planes at(shape);
  const int64_t planes_size = static_cast<int64_t>(Planes::backward_count(shape.steps)) * at.size;
  acc_t* k = planes == nullptr ? shared_memory<acc_t>() : planes + blockIdx.x * planes_size;
  acc_t* states = k + Planes::kWeightPlanes * at.size;
  acc_t* grads = states + static_cast<int64_t>(shape.steps) * at.size;
  acc_t* sums = weight_sums + static_cast<int64_t>(blockIdx.x) * kKernelTaps * at.pixels;
  const auto plane = [&](acc_t* planes, int t) {
    return planes + static_cast<int64_t>(t) * at.size;
  };
  clear(k, planes_size);

  for (int64_t group = blockIdx.x; group < shape.groups; group += gridDim.x) {
    at.store_weights(weights + group * kKernelTaps * at.pixels, shape.norm, k);
    for (int c = 0; c < shape.maps; ++c) {
      const int64_t map = (group * shape.maps + c) * at.pixels;
      at.for_pixels([&](int pixel, int cell) {
        if (shape.steps > 0) states[cell] = static_cast<acc_t>(m0[map + pixel]);
        plane(grads, shape.steps)[cell] = static_cast<acc_t>(grad[map + pixel]);
      });
      __syncthreads();
      for (int t = 1; t < shape.steps; ++t) {
        at.for_pixels([&](int, int cell) {
          plane(states, t)[cell] = at.template gather<false>(k, plane(states, t - 1), cell);
        });
        __syncthreads();
      }
      for (int t = shape.steps; t > 0; --t) {
        at.for_pixels([&](int, int cell) {
          plane(grads, t - 1)[cell] = at.template gather<true>(k, plane(grads, t), cell);
        });
        __syncthreads();
      }

      at.for_pixels([&](int pixel, int cell) {
        grad_m0[map + pixel] = static_cast<scalar_t>(grads[cell]);
        acc_t g[kKernelTaps];
#pragma unroll
        for (int j = 0; j < kKernelTaps; ++j) g[j] = c > 0 ? sums[j * at.pixels + pixel] : acc_t(0);
        for (int t = 0; t < shape.steps; ++t) {
          const acc_t scale = plane(grads, t + 1)[cell];
          const acc_t* now = plane(states, t) + cell;
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) g[j] += scale * now[at.tap(j)];
        }
        if (c + 1 < shape.maps) {
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) sums[j * at.pixels + pixel] = g[j];
        } else {
          acc_t own[kKernelTaps];
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) own[j] = k[j * at.size + cell];
          normalize_grad(own, k[kKernelTaps * at.size + cell], shape.norm, g);
          scalar_t* target = grad_weights + group * kKernelTaps * at.pixels + pixel;
#pragma unroll
          for (int j = 0; j < kKernelTaps; ++j) target[j * at.pixels] = static_cast<scalar_t>(g[j]);
        }
      });
      __syncthreads();  // the next map overwrites what neighbors have just read
    }
  }
}

}  // namespace psis_d2
