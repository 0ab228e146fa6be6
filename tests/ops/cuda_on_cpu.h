// Runs CUDA launchers and kernels, their own sources, on the CPU, where there is no GPU.
//
// Every CUDA thread is a fiber with a stack of its own. It runs until it waits for others: at
// __syncthreads for its block, at __syncwarp or a shuffle for its warp. When none can run, the
// barrier that is complete opens. So threads that would wait for ever, or that meet at different
// barriers, are found. Threads take turns in an order that the test chooses: ascending, descending
// or shuffled; what lacks a barrier gives other results in another order.
//
// Every load and store of a kernel is looked at (the compiler calls cuda_on_cpu.cpp for each; it is
// built with -fsanitize=kernel-address and none of its runtime). It is an error to touch
//   * memory that is neither an array of the launch nor shared memory that the launch asked for;
//   * what another thread has written or read, if one of the two writes and no barrier that both
//     passed lies between them. A shuffle is no barrier for memory. Other blocks never wait.
// Arrays and shared memory are NaN before they are written, and arrays begin at addresses that are
// multiples of 8 and not of 16: -fsanitize=undefined finds vectors where they may not be loaded.
// Of the readers of a cell the last and one more thread are remembered, so a race can be missed in
// one order of threads.
//
// What it does not show: that the device does what is assumed here, and anything about time.
#pragma once

#include <c10/macros/Macros.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

#undef CUDA_KERNEL_ASSERT
#define CUDA_KERNEL_ASSERT(condition)                                       \
  do {                                                                      \
    if (!(condition)) cuda_on_cpu::fail("a failed assertion: " #condition); \
  } while (false)

struct Index {
  unsigned x = 0;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr int kLanes = 32;

struct Device {
  int processors = 2;
  int shared_limit = 227 * 1024;  // bytes that a block may opt in to
};

enum class Order { kAscending = 0, kDescending = 1, kShuffled = 2 };

// What the test sets before it calls a launcher.
struct Run {
  Device device;
  Order order = Order::kAscending;
  unsigned char* shared = nullptr;  // the array that kernels declare as extern __shared__
  size_t shared_size = 0;
};

// Calls `body` with every tensor that is made in it lying in watched memory. Returns what went
// wrong, "" if nothing.
const char* watched(const Run& run, const std::function<void()>& body);

// Used by the kernels and launchers.
[[noreturn]] void fail(const char* problem);
const Device& device();
void guard(int change);
int current_stream();
void allow_shared(const void* kernel, int bytes);
void launch(const void* kernel, int64_t blocks, int64_t threads, size_t shared, int stream,
            const std::function<void()>& body);
void block_barrier();
void warp_barrier(const char* where);
// Offers a value of up to 8 bytes to the warp; `source` tells whose to take.
uint64_t exchange(unsigned mask, uint64_t value, int source, const char* where);

template <typename T>
T shuffle(unsigned mask, T value, int source, const char* where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(mask, bits, source, where);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::block_barrier(); }

inline void __syncwarp() { cuda_on_cpu::warp_barrier("__syncwarp"); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = cuda_on_cpu::kLanes) {
  const int lane = static_cast<int>(threadIdx.x) % cuda_on_cpu::kLanes;
  return cuda_on_cpu::shuffle(mask, value, lane / width * width + source % width, "__shfl_sync");
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = cuda_on_cpu::kLanes) {
  const int lane = static_cast<int>(threadIdx.x) % cuda_on_cpu::kLanes;
  // A lane outside of the own part of the warp is not reached: the value stays.
  const int other = lane ^ bits;
  const int source = other / width == lane / width ? other : lane;
  return cuda_on_cpu::shuffle(mask, value, source, "__shfl_xor_sync");
}
