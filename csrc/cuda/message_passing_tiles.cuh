// Kernels of message_passing for 14 x 14 and 28 x 28 maps: K never leaves the registers.
//
// A lane owns kRows = 7 rows of one column. 14 x 14: a warp holds a map, lane = 16 * band + column
// with two bands of seven rows. 28 x 28: four warps hold a map, lane = column, warp = band. Lanes
// behind the last column have weights of zero, so their maps stay zero and, since neighbors are
// found by rotation, they are the zero border at both ends of every row.
//
// Of a step's nine neighbors three are the lane's own registers, six come by shuffles, and the one
// row of the next band by a shuffle (14 x 14) or through shared memory (28 x 28). Warps of 14 x 14
// maps never wait for each other.
//
// float16 and bfloat16 are read and written; everything in between is acc_t. Each sum has one
// thread and one order, so results are bitwise repeatable.
#pragma once

#include "message_passing_weights.cuh"

namespace psis_d2 {

constexpr int kTileThreads = 128;  // of a block, always
constexpr int kTileWarps = kTileThreads / 32;
constexpr int kRows = 7;
constexpr unsigned kAllLanes = 0xffffffff;

// Where a thread is in its map, and what that makes of the neighbors.
template <int kSide>
struct Tile {
  static_assert(kSide == 14 || kSide == 28, "rows of one lane and lanes of one row");
  static constexpr int kPixels = kSide * kSide;
  static constexpr int kColumns = kSide == 14 ? 16 : 32;  // lanes of a row
  static constexpr int kBands = kSide / kRows;
  static constexpr bool kOneWarp = kSide == 14;  // holds a map
  static constexpr int kMapThreads = kOneWarp ? 32 : kTileThreads;
  // Rows of shared memory for exchanges between warps: two turns of a first and a last row of each
  // band and of the bands that would be above and below.
  static constexpr int kEdgeRows = kOneWarp ? 0 : 2 * 2 * (kBands + 1);

  int column, band, left, right;  // left, right: columns next to it, in rotation
  int first_pixel;
  bool used;

  __device__ Tile() {
    const int lane = threadIdx.x % 32;
    column = lane % kColumns;
    band = kOneWarp ? lane / kColumns : static_cast<int>(threadIdx.x) / 32;
    left = (column + kColumns - 1) % kColumns;
    right = (column + 1) % kColumns;
    first_pixel = band * kRows * kSide + column;
    used = column < kSide;
  }

  template <typename acc_t>
  __device__ __forceinline__ acc_t from_left(acc_t value) const {
    return __shfl_sync(kAllLanes, value, left, kColumns);
  }
  template <typename acc_t>
  __device__ __forceinline__ acc_t from_right(acc_t value) const {
    return __shfl_sync(kAllLanes, value, right, kColumns);
  }

  // Waits for the threads of the map.
  __device__ __forceinline__ void sync() const {
    if constexpr (kOneWarp) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  template <typename scalar_t, typename acc_t>
  __device__ __forceinline__ void load(const scalar_t* map, acc_t (&m)[kRows]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      m[i] = used ? static_cast<acc_t>(map[first_pixel + i * kSide]) : acc_t(0);
    }
  }

  template <typename scalar_t, typename acc_t>
  __device__ __forceinline__ void store(const acc_t (&m)[kRows], scalar_t* map) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (used) map[first_pixel + i * kSide] = static_cast<scalar_t>(m[i]);
    }
  }

  // Hands `top` to the band above and `bottom` to the band below; returns what these hand down and
  // up, where there are such bands. 14 x 14: each band has one neighbor, and what it hands over is
  // in both results. 28 x 28: zeros from outside; `edges` holds kEdgeRows rows, cleared before the
  // first exchange, `turn` counts exchanges.
  template <typename acc_t>
  __device__ __forceinline__ void exchange(acc_t top, acc_t bottom, acc_t* edges, int turn,
                                           acc_t& above, acc_t& below) const {
    if constexpr (kOneWarp) {
      above = below = __shfl_xor_sync(kAllLanes, band == 0 ? bottom : top, kColumns);
    } else {
      // Last row of band - 1, then first row of band; every other exchange has rows of its own, so
      // that one barrier is enough.
      acc_t* rows = edges + ((turn % 2) * 2 * (kBands + 1) + 2 * band) * kColumns + column;
      rows[1 * kColumns] = top;
      rows[2 * kColumns] = bottom;
      sync();
      above = rows[0];
      below = rows[3 * kColumns];
    }
  }
};

// A value with those left and right of it.
template <typename acc_t>
struct Triple {
  acc_t left, here, right;
};

// K of a lane's pixels; of unused lanes zeros. sums: see load_weights.
template <int kSide, typename scalar_t, typename acc_t>
__device__ __forceinline__ void load_tile_weights(const Tile<kSide>& tile, const scalar_t* weights,
                                                  KernelNorm norm, acc_t (&k)[kRows][kKernelTaps],
                                                  acc_t (&sums)[kRows]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    sums[i] =
        load_weights(weights + tile.first_pixel + i * kSide, tile.kPixels, norm, tile.used, k[i]);
  }
}

// One step of eq. 4. row(i) gives the Triple of row i of the lane, from -1 to kRows.
template <typename acc_t, typename Row>
__device__ __forceinline__ void step(const acc_t (&k)[kRows][kKernelTaps], const Row& row,
                                     acc_t (&m)[kRows]) {
  acc_t next[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) next[i] = acc_t(0);
#pragma unroll
  for (int i = -1; i <= kRows; ++i) {
    const Triple<acc_t> from = row(i);
    // Row i is the one above row i + 1, row i itself and the one below row i - 1.
#pragma unroll
    for (int band = 0; band < 3; ++band) {
      const int to = i + 1 - band;
      if (to < 0 || to >= kRows) continue;
      next[to] += k[to][3 * band] * from.left;
      next[to] += k[to][3 * band + 1] * from.here;
      next[to] += k[to][3 * band + 2] * from.right;
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) m[i] = next[i];
}

// The transposed step: g of m_{t+1} becomes g of m_t.
template <int kSide, typename acc_t>
__device__ __forceinline__ void transposed_step(const Tile<kSide>& tile,
                                                const acc_t (&k)[kRows][kKernelTaps], acc_t* edges,
                                                int turn, acc_t (&g)[kRows]) {
  acc_t next[kRows + 2];  // of rows -1 .. kRows
#pragma unroll
  for (int i = -1; i <= kRows; ++i) {
    // What the lane's column gives to row i of the columns left of it, its own and right of it.
    Triple<acc_t> to = {acc_t(0), acc_t(0), acc_t(0)};
#pragma unroll
    for (int band = 0; band < 3; ++band) {
      const int from = i + 1 - band;
      if (from < 0 || from >= kRows) continue;
      to.left += k[from][3 * band] * g[from];
      to.here += k[from][3 * band + 1] * g[from];
      to.right += k[from][3 * band + 2] * g[from];
    }
    next[i + 1] = to.here + tile.from_left(to.right) + tile.from_right(to.left);
  }
  acc_t above, below;
  tile.exchange(next[0], next[kRows + 1], edges, turn, above, below);
#pragma unroll
  for (int i = 0; i < kRows; ++i) g[i] = next[i + 1];
  g[0] += tile.band == 0 ? acc_t(0) : above;
  g[kRows - 1] += tile.band == tile.kBands - 1 ? acc_t(0) : below;
}

// Which sets of weights and maps a thread works on. A 14 x 14 block holds four warps: with weights
// of their own for every map each takes a set; else they share a set and take its maps in turn.
template <int kSide>
struct Job {
  int64_t group;
  int first_map, map_stride;

  __device__ explicit Job(const MapShape& shape) {
    const int warp = threadIdx.x / 32;
    const bool shared = kSide != 14 || shape.maps > 1;
    group = shared ? blockIdx.x : static_cast<int64_t>(blockIdx.x) * kTileWarps + warp;
    first_map = kSide == 14 && shape.maps > 1 ? warp : 0;
    map_stride = kSide == 14 ? kTileWarps : 1;
  }
};

// weights [groups, 9, H, W], m0 and out [groups, maps, H, W]. Shared memory: kEdgeRows rows.
template <int kSide, typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kTileThreads, 4)
    message_passing_tile_forward(const scalar_t* __restrict__ weights,
                                 const scalar_t* __restrict__ m0, scalar_t* __restrict__ out,
                                 MapShape shape) {
  const Tile<kSide> tile;
  const Job<kSide> job(shape);
  if (job.group >= shape.groups) return;  // a whole warp, and no other waits for it
  acc_t* edges = nullptr;
  if constexpr (!tile.kOneWarp) {
    edges = shared_memory<acc_t>();
    for (int i = threadIdx.x; i < tile.kEdgeRows * tile.kColumns; i += kTileThreads) edges[i] = 0;
    __syncthreads();
  }
  acc_t k[kRows][kKernelTaps], sums[kRows];
  load_tile_weights(tile, weights + job.group * kKernelTaps * tile.kPixels, shape.norm, k, sums);
  if constexpr (tile.kOneWarp) {
    // A band's only neighbor is then its neighbor on both sides, see exchange.
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (tile.band == 0) k[0][j] = acc_t(0);
      if (tile.band == 1) k[kRows - 1][6 + j] = acc_t(0);
    }
  }
  int turn = 0;
  for (int c = job.first_map; c < shape.maps; c += job.map_stride) {
    const int64_t map = (job.group * shape.maps + c) * tile.kPixels;
    acc_t m[kRows];
    tile.load(m0 + map, m);
#pragma unroll 2
    for (int t = 0; t < shape.steps; ++t) {
      Triple<acc_t> above, below;
      tile.exchange(m[0], m[kRows - 1], edges, turn++, above.here, below.here);
      above.left = tile.from_left(above.here);
      above.right = tile.from_right(above.here);
      if constexpr (tile.kOneWarp) {
        below = above;
      } else {
        below.left = tile.from_left(below.here);
        below.right = tile.from_right(below.here);
      }
      step(
          k,
          [&](int i) {
            if (i < 0) return above;
            if (i == kRows) return below;
            return Triple<acc_t>{tile.from_left(m[i]), m[i], tile.from_right(m[i])};
          },
          m);
    }
    tile.store(m, out + map);
  }
}

// Shared memory of the backward kernel, per map that is held at once, in rows of kColumns:
//   kEdgeRows, kSide rows of sums, then m_0 .. m_{T-1}, all of these with two rows of zeros behind
//   them: the second, since right of the first is what the last lane of a row reads beside its map,
//   while the next map may be written. With several warps per set of weights, all of it is used
//   again to add their gradients.
template <int kSide>
struct BackwardMemory {
  static constexpr int kPlaneRows = kSide + 2;
  static constexpr int kWeightRows = 32 * kRows * kKernelTaps / Tile<kSide>::kColumns;

  __host__ __device__ static int rows(int steps, bool joined) {
    const int own = Tile<kSide>::kEdgeRows + (1 + steps) * kPlaneRows;
    return joined && own < kWeightRows ? kWeightRows : own;
  }
};

// How the kernels are launched, always with kTileThreads threads.
template <int kSide>
struct TileLaunch {
  const MapShape& shape;

  bool one_warp() const { return Tile<kSide>::kOneWarp; }
  bool joined() const { return one_warp() && shape.maps > 1; }
  int64_t blocks() const {
    const int sets = one_warp() && !joined() ? kTileWarps : 1;
    return (shape.groups + sets - 1) / sets;
  }
  // Elements of shared memory.
  int64_t forward_shared() const { return Tile<kSide>::kEdgeRows * Tile<kSide>::kColumns; }
  int64_t backward_shared() const {
    const int maps = kTileThreads / Tile<kSide>::kMapThreads;
    return int64_t(maps) * BackwardMemory<kSide>::rows(shape.steps, joined()) *
           Tile<kSide>::kColumns;
  }
};

// The side of the tile kernel that serves a shape, or 0: the generic kernels do, for other sizes,
// for float64, and where the device's blocks cannot have the shared memory for all maps of
// backward.
inline int tile_side(const MapShape& shape, bool is_float64, bool backward, int64_t shared_limit) {
  if (is_float64 || shape.height != shape.width) return 0;
  const auto fits = [&](int64_t elements) {
    return !backward || elements * static_cast<int64_t>(sizeof(float)) <= shared_limit;
  };
  if (shape.height == 14 && fits(TileLaunch<14>{shape}.backward_shared())) return 14;
  if (shape.height == 28 && fits(TileLaunch<28>{shape}.backward_shared())) return 28;
  return 0;
}

// grad, m0, grad_m0 [groups, maps, H, W]; weights, grad_weights [groups, 9, H, W].
template <int kSide, typename scalar_t, typename acc_t>
__global__ void __launch_bounds__(kTileThreads, kSide == 14 ? 3 : 2)
    message_passing_tile_backward(const scalar_t* __restrict__ grad,
                                  const scalar_t* __restrict__ weights,
                                  const scalar_t* __restrict__ m0, scalar_t* __restrict__ grad_m0,
                                  scalar_t* __restrict__ grad_weights, MapShape shape) {
  using Memory = BackwardMemory<kSide>;
  const Tile<kSide> tile;
  const Job<kSide> job(shape);
  if (job.group >= shape.groups) return;  // a whole warp; with several per set, none
  const bool joined = tile.kOneWarp && shape.maps > 1;
  const int memory_size = Memory::rows(shape.steps, joined) * tile.kColumns;
  acc_t* edges = shared_memory<acc_t>() + (threadIdx.x / tile.kMapThreads) * memory_size;
  acc_t* sums_rows = edges + tile.kEdgeRows * tile.kColumns;
  const int own_cell = tile.band * kRows * tile.kColumns + tile.column;  // of kSide rows
  acc_t* own_plane = sums_rows + Memory::kPlaneRows * tile.kColumns + own_cell;
  // The lane's cell of row i of m_t, from -1 to kRows. Left of a row is the last lane of the row
  // above, which is zero; right of a row is what unused lanes read.
  const auto plane_cell = [&](int t, int i) {
    return own_plane + (t * Memory::kPlaneRows + i) * tile.kColumns;
  };

  for (int i = threadIdx.x % tile.kMapThreads; i < memory_size; i += tile.kMapThreads) edges[i] = 0;
  tile.sync();
  acc_t k[kRows][kKernelTaps], dk[kRows][kKernelTaps];
  {
    acc_t sums[kRows];
    load_tile_weights(tile, weights + job.group * kKernelTaps * tile.kPixels, shape.norm, k, sums);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      sums_rows[own_cell + i * tile.kColumns] = sums[i];
#pragma unroll
      for (int j = 0; j < kKernelTaps; ++j) dk[i][j] = acc_t(0);
    }
  }

  int turn = 0;
  for (int c = job.first_map; c < shape.maps; c += job.map_stride) {
    const int64_t map = (job.group * shape.maps + c) * tile.kPixels;
    acc_t m[kRows];
    tile.load(m0 + map, m);
#pragma unroll 1
    for (int t = 0; t < shape.steps; ++t) {
      if (t > 0) {
        step(
            k,
            [&](int i) {
              if (i < 0 || i == kRows) {
                const acc_t* cell = plane_cell(t - 1, i);
                return Triple<acc_t>{cell[-1], cell[0], cell[1]};
              }
              return Triple<acc_t>{tile.from_left(m[i]), m[i], tile.from_right(m[i])};
            },
            m);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) *plane_cell(t, i) = m[i];
      tile.sync();
    }

    acc_t g[kRows];
    tile.load(grad + map, g);
#pragma unroll 1
    for (int t = shape.steps - 1; t >= 0; --t) {
      // dK[j, p] += g_{t+1}[p] * m_t[p + d(j)]
#pragma unroll
      for (int i = -1; i <= kRows; ++i) {
        const acc_t* cell = plane_cell(t, i);
        const Triple<acc_t> from = {cell[-1], cell[0], cell[1]};
#pragma unroll
        for (int band = 0; band < 3; ++band) {
          const int to = i + 1 - band;
          if (to < 0 || to >= kRows) continue;
          dk[to][3 * band] += g[to] * from.left;
          dk[to][3 * band + 1] += g[to] * from.here;
          dk[to][3 * band + 2] += g[to] * from.right;
        }
      }
      transposed_step(tile, k, edges, turn++, g);
    }
    tile.store(g, grad_m0 + map);
    tile.sync();  // the next map overwrites what neighbors have just read
  }

  if (joined) {
    // The first warp adds what the others have, in their order.
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    acc_t* others = shared_memory<acc_t>();
    if (warp > 0) {
      __syncwarp();  // a warp without a map has just written its sums there
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kKernelTaps; ++j) edges[(i * kKernelTaps + j) * 32 + lane] = dk[i][j];
      }
    }
    __syncthreads();
    if (warp > 0) return;
    for (int other = 1; other < kTileWarps; ++other) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kKernelTaps; ++j) {
          dk[i][j] += others[other * memory_size + (i * kKernelTaps + j) * 32 + lane];
        }
      }
    }
  }
  scalar_t* target = grad_weights + job.group * kKernelTaps * tile.kPixels + tile.first_pixel;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const acc_t sum = sums_rows[own_cell + i * tile.kColumns];
    normalize_grad(k[i], sum, shape.norm, dk[i]);
#pragma unroll
    for (int j = 0; j < kKernelTaps; ++j) {
      if (tile.used) target[j * tile.kPixels + i * kSide] = static_cast<scalar_t>(dk[i][j]);
    }
  }
}

}  // namespace psis_d2
