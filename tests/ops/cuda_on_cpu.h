// Runs a CUDA kernel on the CPU: a thread per CUDA thread, a barrier for __syncthreads, one block
// after another. Slow, but it executes the kernel's own source where there is no GPU.
#pragma once

#include <pthread.h>

#include <cstring>
#include <thread>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)

struct Index {
  int x = 0;
};
inline thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;
inline pthread_barrier_t block_barrier;

inline void __syncthreads() { pthread_barrier_wait(&block_barrier); }

template <typename Kernel>
void run_blocks(int blocks, int threads, unsigned char* shared, size_t shared_size,
                const Kernel& kernel) {
  blockDim.x = threads;
  gridDim.x = blocks;
  pthread_barrier_init(&block_barrier, nullptr, threads);
  for (int block = 0; block < blocks; ++block) {
    std::memset(shared, 0xff, shared_size);  // NaN: what a kernel does not write, it must not read
    std::vector<std::thread> team;
    for (int i = 0; i < threads; ++i) {
      team.emplace_back([&kernel, block, i] {
        blockIdx.x = block;
        threadIdx.x = i;
        kernel();
      });
    }
    for (std::thread& member : team) member.join();
  }
  pthread_barrier_destroy(&block_barrier);
}
