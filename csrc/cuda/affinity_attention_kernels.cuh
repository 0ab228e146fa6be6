// Kernels of affinity_attention: a block computes kRows rows of affinities of one region, which
// stay in shared memory; products run on tiles of kDepth x kRows and kDepth x kTile, 4 x 4 results
// per thread. Every sum has one thread and one order, so results are bitwise repeatable.
//
// Shape legend: N regions, C channels, G channels of the value, L pixels.
//
// Nothing of PyTorch is included: the tests compile this file for the CPU and run it there.
#pragma once

#include <cmath>
#include <cstdint>

namespace psis_d2 {

constexpr int kRows = 32;   // pixels whose rows of affinities a block owns
constexpr int kTile = 64;   // columns of a product that are computed at a time
constexpr int kDepth = 16;  // terms of a product's sums that are staged at a time
constexpr int kThreads = 128;
constexpr int kBlocksPerProcessor = 3;         // whose registers ptxas may divide up
constexpr int kRowThreads = kThreads / kRows;  // that share a row between products
constexpr int kTilePitch = kTile + 4;          // keeps fours aligned and columns in different banks
constexpr int kStats = 6;                      // see AffinityStat

struct AttentionShape {
  int64_t regions;
  int channels, value_channels, pixels;

  // Rows of affinities; an odd pitch puts equal columns of neighboring rows in different banks.
  __host__ __device__ int pitch() const { return pixels | 1; }
  __host__ __device__ int blocks_per_region() const { return (pixels + kRows - 1) / kRows; }
};

// Shared memory of a block, in elements, in this order.
struct AttentionShared {
  static constexpr int kA = kDepth * kRows;
  static constexpr int kB = kDepth * kTilePitch;
  static constexpr int kReduce = kThreads;
  static constexpr int kRowValues = kRows;
  // matrices: of kRows rows, 1 in the forward kernel, 2 in the backward ones.
  __host__ __device__ static int64_t size(const AttentionShape& shape, int matrices) {
    return kA + kB + kReduce + kRowValues + int64_t(matrices) * kRows * shape.pitch();
  }
};

template <typename acc_t>
__device__ __forceinline__ acc_t* attention_shared() {
  extern __shared__ __align__(16) unsigned char affinity_attention_shared[];
  return reinterpret_cast<acc_t*>(affinity_attention_shared);
}

template <typename acc_t>
struct __align__(16) Four {
  acc_t at[4];
};

// The pixels and columns of a thread's 4 x 4 results begin at these.
__device__ __forceinline__ int first_row() { return threadIdx.x % (kRows / 4) * 4; }
__device__ __forceinline__ int first_column() { return threadIdx.x / (kRows / 4) * 4; }

// sums[r][c] += sum over d < depth of a(d, first_row() + r) * b(d, first_column() + c).
//   a(d, row), b(d, column): read a factor, zero outside its matrix
//   kAlongDepth: neighbors in memory are neighbors in d for b, else in column
template <bool kAlongDepth, typename acc_t, typename A, typename B>
__device__ __forceinline__ void multiply(acc_t* shared, int depth, const A& a, const B& b,
                                         acc_t (&sums)[4][4]) {
  acc_t* a_tile = shared;
  acc_t* b_tile = shared + AttentionShared::kA;
  for (int begin = 0; begin < depth; begin += kDepth) {
    for (int i = threadIdx.x; i < kDepth * kRows; i += kThreads) {
      const int d = i / kRows, row = i % kRows;
      a_tile[i] = begin + d < depth ? a(begin + d, row) : acc_t(0);
    }
    for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
      const int d = kAlongDepth ? i % kDepth : i / kTile;
      const int column = kAlongDepth ? i / kDepth : i % kTile;
      b_tile[d * kTilePitch + column] = begin + d < depth ? b(begin + d, column) : acc_t(0);
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      const auto x = *reinterpret_cast<const Four<acc_t>*>(a_tile + d * kRows + first_row());
      const auto y =
          *reinterpret_cast<const Four<acc_t>*>(b_tile + d * kTilePitch + first_column());
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[r][c] += x.at[r] * y.at[c];
      }
    }
    __syncthreads();
  }
}

// The map of one region: channels that lie `pixels` apart.
template <typename scalar_t, typename acc_t>
struct Map {
  const scalar_t* data;
  int pixels;

  __device__ __forceinline__ acc_t operator()(int channel, int pixel) const {
    return pixel < pixels ? static_cast<acc_t>(data[int64_t(channel) * pixels + pixel]) : acc_t(0);
  }
};

// The same, z-scored.  mean and scale [L]
template <typename scalar_t, typename acc_t>
struct NormalizedMap {
  Map<scalar_t, acc_t> map;
  const acc_t* mean;
  const acc_t* scale;

  __device__ __forceinline__ acc_t operator()(int channel, int pixel) const {
    return pixel < map.pixels ? (map(channel, pixel) - mean[pixel]) * scale[pixel] : acc_t(0);
  }
};

// rows[r][j] = factor * sum over channels of own(channel, begin + r) * other(channel, j), all j.
template <typename acc_t, typename Own, typename Other>
__device__ __forceinline__ void score_rows(acc_t* shared, acc_t* rows, const AttentionShape& shape,
                                           int channels, int begin, acc_t factor, const Own& own,
                                           const Other& other) {
  for (int tile = 0; tile < shape.pixels; tile += kTile) {
    acc_t sums[4][4] = {};
    multiply<false>(
        shared, channels, [&](int c, int row) { return own(c, begin + row); },
        [&](int c, int column) { return other(c, tile + column); }, sums);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int column = tile + first_column() + c;
        if (column < shape.pixels) {
          rows[(first_row() + r) * shape.pitch() + column] = factor * sums[r][c];
        }
      }
    }
  }
  __syncthreads();
}

// Calls store(channel, row, sum over pixels j of rows[row][j] * other(channel, j)) for all
// channels.
template <typename acc_t, typename Other, typename Store>
__device__ __forceinline__ void weigh_rows(acc_t* shared, const acc_t* rows,
                                           const AttentionShape& shape, int channels,
                                           const Other& other, const Store& store) {
  for (int tile = 0; tile < channels; tile += kTile) {
    acc_t sums[4][4] = {};
    multiply<true>(
        shared, shape.pixels, [&](int j, int row) { return rows[row * shape.pitch() + j]; },
        [&](int j, int column) {
          return tile + column < channels ? other(tile + column, j) : acc_t(0);
        },
        sums);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int channel = tile + first_column() + c;
        if (channel < channels) store(channel, first_row() + r, sums[r][c]);
      }
    }
  }
}

// Sum or maximum over the kRowThreads values of the threads that share a row.
template <typename acc_t, typename Join>
__device__ __forceinline__ acc_t reduce_row(acc_t* reduce, acc_t value, const Join& join) {
  reduce[threadIdx.x] = value;
  __syncthreads();
  const acc_t* row = reduce + threadIdx.x / kRowThreads * kRowThreads;
  acc_t all = row[0];
#pragma unroll
  for (int i = 1; i < kRowThreads; ++i) all = join(all, row[i]);
  __syncthreads();
  return all;
}

template <typename acc_t>
__device__ __forceinline__ acc_t sum_row(acc_t* reduce, acc_t value) {
  return reduce_row(reduce, value, [](acc_t a, acc_t b) { return a + b; });
}

// Mean and 1 / standard deviation of theta (even blocks) and phi (odd ones), a thread per pixel.
//   theta, phi [N, C, L]; stats [N, kStats, L], of which rows 0 and 1, or 2 and 3, are written
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads)
    affinity_stats(const scalar_t* theta, const scalar_t* phi, acc_t* stats, acc_t factor,
                   acc_t eps, AttentionShape shape) {
  const int64_t pixel_blocks = (shape.pixels + kThreads - 1) / kThreads;
  const int64_t block = blockIdx.x / 2;
  const int64_t region = block / pixel_blocks;
  const int pixel = static_cast<int>(block % pixel_blocks) * kThreads + threadIdx.x;
  if (pixel >= shape.pixels) return;
  const int which = blockIdx.x % 2;
  const scalar_t* x = (which == 0 ? theta : phi) + region * shape.channels * shape.pixels + pixel;
  acc_t mean = 0;
  for (int c = 0; c < shape.channels; ++c) mean += static_cast<acc_t>(x[int64_t(c) * shape.pixels]);
  mean /= acc_t(shape.channels);
  acc_t variance = 0;
  for (int c = 0; c < shape.channels; ++c) {
    const acc_t centered = static_cast<acc_t>(x[int64_t(c) * shape.pixels]) - mean;
    variance += centered * centered;
  }
  acc_t* target = stats + (region * kStats + 2 * which) * shape.pixels + pixel;
  target[0] = mean;
  target[shape.pixels] = acc_t(1) / std::sqrt(variance * (factor / acc_t(shape.channels)) + eps);
}

// theta, phi [N, C, L], value, attended [N, G, L], foreground, sums [N, L], stats [N, kStats, L]
// with rows 0 to 3, of which rows 4 and 5 are written.
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    affinity_attention_forward(const scalar_t* theta, const scalar_t* phi, const scalar_t* value,
                               const scalar_t* foreground, scalar_t* attended, scalar_t* sums,
                               acc_t* stats, acc_t scale, AttentionShape shape) {
  acc_t* shared = attention_shared<acc_t>();
  acc_t* reduce = shared + AttentionShared::kA + AttentionShared::kB;
  acc_t* inverse = reduce + AttentionShared::kReduce;
  acc_t* rows = inverse + AttentionShared::kRowValues;
  const int pixels = shape.pixels;
  const int64_t region = blockIdx.x / shape.blocks_per_region();
  const int begin = static_cast<int>(blockIdx.x % shape.blocks_per_region()) * kRows;
  const int64_t map = region * shape.channels * pixels;
  acc_t* stat = stats + region * kStats * pixels;

  const NormalizedMap<scalar_t, acc_t> queries{{theta + map, pixels}, stat, stat + pixels};
  const NormalizedMap<scalar_t, acc_t> keys{
      {phi + map, pixels}, stat + 2 * pixels, stat + 3 * pixels};
  score_rows(shared, rows, shape, shape.channels, begin, scale, queries, keys);

  const int row = threadIdx.x / kRowThreads;
  const int lane = threadIdx.x % kRowThreads;
  acc_t* s = rows + row * shape.pitch();
  acc_t top = s[lane < pixels ? lane : 0];
  for (int j = lane; j < pixels; j += kRowThreads) top = s[j] > top ? s[j] : top;
  top = reduce_row(reduce, top, [](acc_t a, acc_t b) { return a > b ? a : b; });
  const scalar_t* m = foreground + region * pixels;
  acc_t sum = 0, inside = 0;
  for (int j = lane; j < pixels; j += kRowThreads) {
    const acc_t e = std::exp(s[j] - top);
    s[j] = e;
    sum += e;
    inside += e * static_cast<acc_t>(m[j]);
  }
  sum = sum_row(reduce, sum);
  inside = sum_row(reduce, inside);
  if (lane == 0) {
    inverse[row] = acc_t(1) / sum;
    if (begin + row < pixels) {
      sums[region * pixels + begin + row] = static_cast<scalar_t>(inside / sum);
      stat[4 * pixels + begin + row] = top;
      stat[5 * pixels + begin + row] = inverse[row];
    }
  }
  __syncthreads();

  const int64_t value_map = region * shape.value_channels * pixels;
  weigh_rows(shared, rows, shape, shape.value_channels,
             Map<scalar_t, acc_t>{value + value_map, pixels}, [&](int g, int r, acc_t result) {
               if (begin + r >= pixels) return;
               attended[value_map + int64_t(g) * pixels + begin + r] =
                   static_cast<scalar_t>(result * inverse[r]);
             });
}

// What both backward kernels read: gradients of the outputs, the forward op's inputs and stats.
template <typename scalar_t, typename acc_t>
struct BackwardInputs {
  const scalar_t *grad_attended, *grad_sums, *theta, *phi, *value, *foreground;
  const acc_t* stats;
};

// The region of a block of a backward kernel: where its maps begin, and these maps.
template <typename scalar_t, typename acc_t>
struct BackwardRegion {
  int64_t region;
  int begin;  // first of the block's pixels
  int64_t map, value_map;
  const acc_t* stat;
  NormalizedMap<scalar_t, acc_t> queries, keys;
  Map<scalar_t, acc_t> out_grad, values;

  __device__ __forceinline__ BackwardRegion(const BackwardInputs<scalar_t, acc_t>& in,
                                            const AttentionShape& shape)
      : region(blockIdx.x / shape.blocks_per_region()),
        begin(static_cast<int>(blockIdx.x % shape.blocks_per_region()) * kRows),
        map(region * shape.channels * shape.pixels),
        value_map(region * shape.value_channels * shape.pixels),
        stat(in.stats + region * kStats * shape.pixels),
        queries{{in.theta + map, shape.pixels}, stat, stat + shape.pixels},
        keys{{in.phi + map, shape.pixels}, stat + 2 * shape.pixels, stat + 3 * shape.pixels},
        out_grad{in.grad_attended + value_map, shape.pixels},
        values{in.value + value_map, shape.pixels} {}
};

// Gradients of theta, and for phi's kernel dots [N, L]: sum over j of A[i, j] * dL/dA[i, j].
// A block owns rows i of A. factor: c / (c - 1) for the unbiased variance, else 1.
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    affinity_attention_theta_grad(BackwardInputs<scalar_t, acc_t> in, scalar_t* grad_theta,
                                  acc_t* dots, acc_t scale, acc_t factor, AttentionShape shape) {
  acc_t* shared = attention_shared<acc_t>();
  acc_t* reduce = shared + AttentionShared::kA + AttentionShared::kB;
  acc_t* along = reduce + AttentionShared::kReduce;
  acc_t* rows = along + AttentionShared::kRowValues;
  acc_t* grad_rows = rows + kRows * shape.pitch();
  const int pixels = shape.pixels;
  const BackwardRegion<scalar_t, acc_t> of(in, shape);
  score_rows(shared, rows, shape, shape.channels, of.begin, scale, of.queries, of.keys);
  score_rows(shared, grad_rows, shape, shape.value_channels, of.begin, acc_t(1), of.out_grad,
             of.values);

  const int row = threadIdx.x / kRowThreads;
  const int own =
      of.begin + row < pixels ? of.begin + row : pixels - 1;  // rows behind are not stored
  const acc_t top = of.stat[4 * pixels + own], inverse = of.stat[5 * pixels + own];
  const acc_t grad_sum = static_cast<acc_t>(in.grad_sums[of.region * pixels + own]);
  const scalar_t* m = in.foreground + of.region * pixels;
  const acc_t* s = rows + row * shape.pitch();
  acc_t* g = grad_rows + row * shape.pitch();
  acc_t dot = 0;
  for (int j = threadIdx.x % kRowThreads; j < pixels; j += kRowThreads) {
    g[j] += grad_sum * static_cast<acc_t>(m[j]);
    dot += std::exp(s[j] - top) * inverse * g[j];
  }
  dot = sum_row(reduce, dot);
  // The z-score takes away the part of the gradient along z, the mean of dL/dz * z over channels:
  // that is sum_j dL/ds_j * s_j / C. The gradient's own mean is zero, since z_j's is.
  acc_t part = 0;
  for (int j = threadIdx.x % kRowThreads; j < pixels; j += kRowThreads) {
    g[j] = std::exp(s[j] - top) * inverse * (g[j] - dot);
    part += g[j] * s[j];
  }
  part = sum_row(reduce, part);
  if (threadIdx.x % kRowThreads == 0) {
    along[row] = part * factor / acc_t(shape.channels);
    if (of.begin + row < pixels) dots[of.region * pixels + of.begin + row] = dot;
  }
  __syncthreads();

  weigh_rows(shared, grad_rows, shape, shape.channels, of.keys, [&](int c, int r, acc_t result) {
    const int pixel = of.begin + r;
    if (pixel >= pixels) return;
    const acc_t grad = scale * result - of.queries(c, pixel) * along[r];
    grad_theta[of.map + int64_t(c) * pixels + pixel] =
        static_cast<scalar_t>(grad * of.queries.scale[pixel]);
  });
}

// Gradients of phi, value and foreground. A block owns columns j of A, which are rows here.
template <typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    affinity_attention_phi_grad(BackwardInputs<scalar_t, acc_t> in, const acc_t* dots,
                                scalar_t* grad_phi, scalar_t* grad_value, scalar_t* grad_foreground,
                                acc_t scale, acc_t factor, AttentionShape shape) {
  acc_t* shared = attention_shared<acc_t>();
  acc_t* reduce = shared + AttentionShared::kA + AttentionShared::kB;
  acc_t* along = reduce + AttentionShared::kReduce;
  acc_t* rows = along + AttentionShared::kRowValues;
  acc_t* grad_rows = rows + kRows * shape.pitch();
  const int pixels = shape.pixels;
  const BackwardRegion<scalar_t, acc_t> of(in, shape);
  score_rows(shared, rows, shape, shape.channels, of.begin, scale, of.keys, of.queries);
  score_rows(shared, grad_rows, shape, shape.value_channels, of.begin, acc_t(1), of.values,
             of.out_grad);

  const int row = threadIdx.x / kRowThreads;
  const int own =
      of.begin + row < pixels ? of.begin + row : pixels - 1;  // rows behind are not stored
  const acc_t m = static_cast<acc_t>(in.foreground[of.region * pixels + own]);
  const scalar_t* grad_sums = in.grad_sums + of.region * pixels;
  const acc_t *tops = of.stat + 4 * pixels, *inverses = of.stat + 5 * pixels;
  const acc_t* dot = dots + of.region * pixels;
  acc_t* s = rows + row * shape.pitch();
  acc_t* g = grad_rows + row * shape.pitch();
  acc_t part = 0, grad_m = 0;
  for (int i = threadIdx.x % kRowThreads; i < pixels; i += kRowThreads) {
    const acc_t affinity = std::exp(s[i] - tops[i]) * inverses[i];
    const acc_t grad_sum = static_cast<acc_t>(grad_sums[i]);
    const acc_t grad = affinity * (g[i] + grad_sum * m - dot[i]);
    part += grad * s[i];
    grad_m += affinity * grad_sum;
    g[i] = grad;
    s[i] = affinity;
  }
  part = sum_row(reduce, part);
  grad_m = sum_row(reduce, grad_m);
  if (threadIdx.x % kRowThreads == 0) {
    along[row] = part * factor / acc_t(shape.channels);
    if (of.begin + row < pixels) {
      grad_foreground[of.region * pixels + of.begin + row] = static_cast<scalar_t>(grad_m);
    }
  }
  __syncthreads();

  weigh_rows(shared, grad_rows, shape, shape.channels, of.queries, [&](int c, int r, acc_t result) {
    const int pixel = of.begin + r;
    if (pixel >= pixels) return;
    const acc_t grad = scale * result - of.keys(c, pixel) * along[r];
    grad_phi[of.map + int64_t(c) * pixels + pixel] =
        static_cast<scalar_t>(grad * of.keys.scale[pixel]);
  });
  weigh_rows(shared, rows, shape, shape.value_channels, of.out_grad,
             [&](int c, int r, acc_t result) {
               if (of.begin + r >= pixels) return;
               grad_value[of.value_map + int64_t(c) * pixels + of.begin + r] =
                   static_cast<scalar_t>(result);
             });
}

}  // namespace psis_d2
