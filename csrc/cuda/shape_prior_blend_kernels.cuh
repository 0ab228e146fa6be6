// Kernels of shape_prior_blend: a block per box, whose blended prior stays in shared memory. Every
// sum has one thread and one order, so results are bitwise repeatable.
//
// Shape legend: N boxes, K priors, G groups of priors, P x P prior, H x W output grid.
//
// Nothing of PyTorch is included: the tests compile this file for the CPU and run it there.
#pragma once

#include <cmath>
#include <cstdint>

#ifndef PSIS_D2_KERNEL_ASSERT
#error "define PSIS_D2_KERNEL_ASSERT(condition): what a kernel does that finds a class out of range"
#endif

namespace psis_d2 {

constexpr int kBlendThreads = 256;           // a power of two
constexpr int kBlendLanes = 32;              // threads that share the sum over a prior's pixels
constexpr int kBlendSums = 64;               // priors whose sums are joined at a time
constexpr int kLanePitch = kBlendLanes + 1;  // puts equal lanes in different banks

struct BlendShape {
  int64_t boxes, groups;
  int priors, side, height, width;
  double sample_offset;

  __host__ __device__ int prior_pixels() const { return side * side; }
  __host__ __device__ int pixels() const { return height * width; }
  // Elements of shared memory.
  __host__ __device__ int64_t forward_shared() const {
    return priors + kBlendThreads + prior_pixels();
  }
  __host__ __device__ int64_t backward_shared() const {
    return 2 * int64_t(priors) + kBlendThreads + height + width + kBlendSums * kLanePitch +
           int64_t(side) * width + prior_pixels();
  }
};

// What both directions read.
//   logits [N, K], priors [G, K, P, P], boxes and frames [N, 4], classes [N] or null
template <typename scalar_t, typename acc_t>
struct BlendInputs {
  const scalar_t *logits, *priors;
  const acc_t *boxes, *frames;
  const int64_t* classes;

  // The priors of a box.
  __device__ __forceinline__ const scalar_t* priors_of(int64_t box, const BlendShape& shape) const {
    if (classes == nullptr) return priors;
    PSIS_D2_KERNEL_ASSERT(classes[box] >= 0 && classes[box] < shape.groups);
    return priors + classes[box] * shape.priors * shape.prior_pixels();
  }
};

template <typename acc_t>
__device__ __forceinline__ acc_t* blend_shared() {
  extern __shared__ __align__(16) unsigned char shape_prior_blend_shared[];
  return reinterpret_cast<acc_t*>(shape_prior_blend_shared);
}

// Joins a value of every thread of the block.  reduce: kBlendThreads elements of shared memory
template <typename acc_t, typename Join>
__device__ __forceinline__ acc_t reduce_block(acc_t* reduce, acc_t value, const Join& join) {
  reduce[threadIdx.x] = value;
  __syncthreads();
  for (int half = kBlendThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) {
      reduce[threadIdx.x] = join(reduce[threadIdx.x], reduce[threadIdx.x + half]);
    }
    __syncthreads();
  }
  const acc_t all = reduce[0];
  __syncthreads();
  return all;
}

template <typename acc_t>
__device__ __forceinline__ acc_t sum_block(acc_t* reduce, acc_t value) {
  return reduce_block(reduce, value, [](acc_t a, acc_t b) { return a + b; });
}

// weights [K] in shared memory: softmax of the box's logits.
template <typename scalar_t, typename acc_t>
__device__ __forceinline__ void softmax_weights(const scalar_t* logits, acc_t* weights,
                                                acc_t* reduce, int priors) {
  acc_t top = static_cast<acc_t>(logits[0]);
  for (int k = threadIdx.x; k < priors; k += kBlendThreads) {
    weights[k] = static_cast<acc_t>(logits[k]);
    top = weights[k] > top ? weights[k] : top;
  }
  top = reduce_block(reduce, top, [](acc_t a, acc_t b) { return a > b ? a : b; });
  acc_t sum = 0;
  for (int k = threadIdx.x; k < priors; k += kBlendThreads) {
    sum += weights[k] = std::exp(weights[k] - top);
  }
  sum = sum_block(reduce, sum);
  for (int k = threadIdx.x; k < priors; k += kBlendThreads) weights[k] /= sum;
  __syncthreads();
}

// Where output cells of one axis lie among the cells of the prior.
template <typename acc_t>
struct Axis {
  acc_t start, unit, cells_per_unit, offset;
  bool exists;

  // axis: 0 for x, 1 for y.
  __device__ __forceinline__ Axis(const acc_t* box, const acc_t* frame, int axis, int side,
                                  int size, double sample_offset)
      : start(frame[axis] - box[axis]),
        unit((frame[axis + 2] - frame[axis]) / acc_t(size)),
        cells_per_unit(acc_t(side) / (box[axis + 2] - box[axis])),
        offset(static_cast<acc_t>(sample_offset)),
        exists(box[axis + 2] > box[axis]) {}

  // -1, where no cell of the prior reaches, of a box without extent.
  __device__ __forceinline__ acc_t operator()(int cell) const {
    return exists ? (start + (acc_t(cell) + offset) * unit) * cells_per_unit - offset : acc_t(-1);
  }
};

// out [N, H, W].
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kBlendThreads)
    shape_prior_blend_forward(BlendInputs<scalar_t, acc_t> in, scalar_t* out, BlendShape shape) {
  acc_t* weights = blend_shared<acc_t>();
  acc_t* reduce = weights + shape.priors;
  acc_t* blended = reduce + kBlendThreads;
  const int64_t box = blockIdx.x;
  const scalar_t* priors = in.priors_of(box, shape);
  softmax_weights(in.logits + box * shape.priors, weights, reduce, shape.priors);
  for (int p = threadIdx.x; p < shape.prior_pixels(); p += kBlendThreads) {
    acc_t sum = 0;
#pragma unroll 4
    for (int k = 0; k < shape.priors; ++k) {
      sum += weights[k] * static_cast<acc_t>(priors[int64_t(k) * shape.prior_pixels() + p]);
    }
    blended[p] = sum;
  }
  __syncthreads();

  const acc_t *corners = in.boxes + box * 4, *frame = in.frames + box * 4;
  const Axis<acc_t> columns(corners, frame, 0, shape.side, shape.width, shape.sample_offset);
  const Axis<acc_t> rows(corners, frame, 1, shape.side, shape.height, shape.sample_offset);
  const auto at = [&](int row, int column) {
    const bool inside = row >= 0 && row < shape.side && column >= 0 && column < shape.side;
    return inside ? blended[row * shape.side + column] : acc_t(0);
  };
  for (int i = threadIdx.x; i < shape.pixels(); i += kBlendThreads) {
    const acc_t v = rows(i / shape.width), u = columns(i % shape.width);
    acc_t value = 0;
    if (v > acc_t(-1) && v < acc_t(shape.side) && u > acc_t(-1) && u < acc_t(shape.side)) {
      const acc_t top = std::floor(v), left = std::floor(u);
      const int row = static_cast<int>(top), column = static_cast<int>(left);
      const acc_t down = v - top, right = u - left;
      value =
          (acc_t(1) - down) * ((acc_t(1) - right) * at(row, column) + right * at(row, column + 1)) +
          down * ((acc_t(1) - right) * at(row + 1, column) + right * at(row + 1, column + 1));
    }
    out[box * shape.pixels() + i] = static_cast<scalar_t>(value);
  }
}

// Calls body(cell, weight) for the output cells that read prior cell `to`, in order.
template <typename acc_t, typename Body>
__device__ __forceinline__ void for_readers(const acc_t* positions, int size, int to,
                                            const Body& body) {
  for (int cell = 0; cell < size; ++cell) {
    const acc_t weight = acc_t(1) - std::abs(positions[cell] - acc_t(to));
    if (weight > acc_t(0)) body(cell, weight);
  }
}

// grad [N, H, W], grad_logits [N, K]. For prior_grads, unless null: weights [N, K], the softmax,
// and grad_blended [N, P, P].
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kBlendThreads)
    shape_prior_blend_backward(BlendInputs<scalar_t, acc_t> in, const scalar_t* grad,
                               scalar_t* grad_logits, acc_t* all_weights, acc_t* grad_blended,
                               BlendShape shape) {
  acc_t* weights = blend_shared<acc_t>();
  acc_t* weight_grads = weights + shape.priors;
  acc_t* reduce = weight_grads + shape.priors;
  acc_t* row_positions = reduce + kBlendThreads;
  acc_t* column_positions = row_positions + shape.height;
  acc_t* lane_sums = column_positions + shape.width;
  acc_t* half_placed = lane_sums + kBlendSums * kLanePitch;  // [P, W]
  acc_t* placed = half_placed + shape.side * shape.width;    // [P, P]
  const int64_t box = blockIdx.x;
  const int prior_pixels = shape.prior_pixels();
  const scalar_t* priors = in.priors_of(box, shape);
  softmax_weights(in.logits + box * shape.priors, weights, reduce, shape.priors);

  const acc_t *corners = in.boxes + box * 4, *frame = in.frames + box * 4;
  const Axis<acc_t> columns(corners, frame, 0, shape.side, shape.width, shape.sample_offset);
  const Axis<acc_t> rows(corners, frame, 1, shape.side, shape.height, shape.sample_offset);
  for (int y = threadIdx.x; y < shape.height; y += kBlendThreads) row_positions[y] = rows(y);
  for (int x = threadIdx.x; x < shape.width; x += kBlendThreads) column_positions[x] = columns(x);
  __syncthreads();
  const scalar_t* source = grad + box * shape.pixels();
  for (int i = threadIdx.x; i < shape.side * shape.width; i += kBlendThreads) {
    acc_t sum = 0;
    for_readers(row_positions, shape.height, i / shape.width, [&](int y, acc_t weight) {
      sum += weight * static_cast<acc_t>(source[y * shape.width + i % shape.width]);
    });
    half_placed[i] = sum;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < prior_pixels; i += kBlendThreads) {
    const acc_t* row = half_placed + i / shape.side * shape.width;
    acc_t sum = 0;
    for_readers(column_positions, shape.width, i % shape.side,
                [&](int x, acc_t weight) { sum += weight * row[x]; });
    placed[i] = sum;
    if (grad_blended != nullptr) grad_blended[box * prior_pixels + i] = sum;
  }
  __syncthreads();

  // Gradient of weight k: <prior k, placed>.
  const int lane = threadIdx.x % kBlendLanes;
  for (int first = 0; first < shape.priors; first += kBlendSums) {
    const int count = shape.priors - first < kBlendSums ? shape.priors - first : kBlendSums;
    for (int k = threadIdx.x / kBlendLanes; k < count; k += kBlendThreads / kBlendLanes) {
      const scalar_t* prior = priors + int64_t(first + k) * prior_pixels;
      acc_t sum = 0;
      for (int p = lane; p < prior_pixels; p += kBlendLanes) {
        sum += static_cast<acc_t>(prior[p]) * placed[p];
      }
      lane_sums[k * kLanePitch + lane] = sum;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < count; k += kBlendThreads) {
      acc_t sum = 0;
      for (int i = 0; i < kBlendLanes; ++i) sum += lane_sums[k * kLanePitch + i];
      weight_grads[first + k] = sum;
    }
    __syncthreads();
  }

  acc_t dot = 0;
  for (int k = threadIdx.x; k < shape.priors; k += kBlendThreads) {
    dot += weights[k] * weight_grads[k];
  }
  dot = sum_block(reduce, dot);
  for (int k = threadIdx.x; k < shape.priors; k += kBlendThreads) {
    const int64_t at = box * shape.priors + k;
    grad_logits[at] = static_cast<scalar_t>(weights[k] * (weight_grads[k] - dot));
    if (all_weights != nullptr) all_weights[at] = weights[k];
  }
}

// grad_priors [G, K, P, P], a block per prior, from what the backward kernel left.
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kBlendThreads)
    shape_prior_blend_prior_grads(const int64_t* classes, const acc_t* weights,
                                  const acc_t* grad_blended, scalar_t* grad_priors,
                                  BlendShape shape) {
  const int64_t group = blockIdx.x / shape.priors;
  const int k = static_cast<int>(blockIdx.x % shape.priors);
  const int prior_pixels = shape.prior_pixels();
  for (int p = threadIdx.x; p < prior_pixels; p += kBlendThreads) {
    acc_t sum = 0;
    for (int64_t box = 0; box < shape.boxes; ++box) {
      if (classes != nullptr && classes[box] != group) continue;
      sum += weights[box * shape.priors + k] * grad_blended[box * prior_pixels + p];
    }
    grad_priors[int64_t(blockIdx.x) * prior_pixels + p] = static_cast<scalar_t>(sum);
  }
}

}  // namespace psis_d2
