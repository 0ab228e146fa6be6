// Runs a CUDA kernel's own source on the CPU, lane by lane, where there is no GPU.
//
// Every CUDA thread is a fiber with a stack of its own. It runs until it waits for others: at
// __syncthreads for its block, at __syncwarp or a shuffle for its warp. When none can run, the
// barrier that is complete opens. So threads that would wait for ever, or that meet at different
// barriers, are found, and lanes see of each other what they would on a GPU: what was written
// before the last common barrier. `backwards` runs the threads in the opposite order: a read that
// lacks its barrier gives another result in one of the two.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __shared__
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)

struct Index {
  int x = 0;
};
inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr int kLanes = 32;
constexpr size_t kStack = 64 * 1024;

enum class Wait { kNone, kWarp, kBlock, kDone };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait = Wait::kNone;
  const char* where = "";  // the kind of barrier, which must be the same for all that meet there
  // What the lane offers. Two turns: a lane may offer the next value before all read this one.
  uint64_t offered[2];
  int turn = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::function<void()> kernel;
  ucontext_t scheduler;
  int running = 0;
  std::string problem;
};
inline Block* block = nullptr;

inline void enter() {
  block->kernel();
  block->threads[block->running].wait = Wait::kDone;
}

inline void wait_for(Wait what, const char* where) {
  Thread& self = block->threads[block->running];
  self.wait = what;
  self.where = where;
  const int index = block->running;
  swapcontext(&self.context, &block->scheduler);
  block->running = threadIdx.x = index;
}

// Opens the barrier of threads [first, last) if all of them wait there. Threads that have returned
// count as waiting at a barrier of the block, as on a GPU, but not at one of their warp.
inline bool open(int first, int last, Wait what) {
  const char* where = nullptr;
  for (int i = first; i < last; ++i) {
    const Thread& thread = block->threads[i];
    if (thread.wait == Wait::kDone && what == Wait::kBlock) continue;
    if (thread.wait != what) return false;
    if (where != nullptr && std::strcmp(where, thread.where) != 0) {
      throw std::runtime_error(std::string("threads meet at ") + where + " and " + thread.where);
    }
    where = thread.where;
  }
  for (int i = first; i < last; ++i) {
    if (block->threads[i].wait == what) block->threads[i].wait = Wait::kNone;
  }
  return where != nullptr;
}

inline void run_block(int threads, bool backwards, const std::function<void()>& kernel) {
  Block own;
  own.threads.resize(threads);
  own.kernel = kernel;
  block = &own;
  for (Thread& thread : own.threads) {
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &own.scheduler;
    makecontext(&thread.context, enter, 0);
  }
  while (true) {
    int done = 0;
    for (int n = 0; n < threads; ++n) {
      const int i = backwards ? threads - 1 - n : n;
      Thread& thread = own.threads[i];
      if (thread.wait == Wait::kNone) {
        own.running = threadIdx.x = i;
        swapcontext(&own.scheduler, &thread.context);
        // Not thrown by the thread itself: nothing can unwind from one stack to another.
        if (!own.problem.empty()) throw std::runtime_error(own.problem);
      }
      done += thread.wait == Wait::kDone;
    }
    if (done == threads) return;
    bool opened = false;
    for (int i = 0; i < threads; i += kLanes) opened |= open(i, i + kLanes, Wait::kWarp);
    if (!opened && !open(0, threads, Wait::kBlock)) {
      throw std::runtime_error("threads wait for each other for ever");
    }
  }
}

// The value that lane `source` of the warp offers at this call.
template <typename T>
T shuffle(unsigned mask, T value, int source, const char* where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  if (mask != 0xffffffff) block->problem = "a shuffle without all lanes";
  const int self = block->running;
  Thread& thread = block->threads[self];
  const int turn = thread.turn++ % 2;
  std::memcpy(&thread.offered[turn], &value, sizeof(T));
  wait_for(Wait::kWarp, where);
  std::memcpy(&value, &block->threads[self / kLanes * kLanes + source].offered[turn], sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

inline void __syncthreads() { cuda_on_cpu::wait_for(cuda_on_cpu::Wait::kBlock, "__syncthreads"); }

inline void __syncwarp() { cuda_on_cpu::wait_for(cuda_on_cpu::Wait::kWarp, "__syncwarp"); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = cuda_on_cpu::kLanes) {
  const int lane = threadIdx.x % cuda_on_cpu::kLanes;
  return cuda_on_cpu::shuffle(mask, value, lane / width * width + source % width, "__shfl_sync");
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = cuda_on_cpu::kLanes) {
  const int lane = threadIdx.x % cuda_on_cpu::kLanes;
  // A lane outside of the own part of the warp is not reached: the value stays.
  const int other = lane ^ bits;
  const int source = other / width == lane / width ? other : lane;
  return cuda_on_cpu::shuffle(mask, value, source, "__shfl_xor_sync");
}

// Runs `kernel` for every block. shared_size: bytes that a launch would ask for; `shared` holds
// `guard` more, and it is an error to write there.
template <typename Kernel>
void run_blocks(int blocks, int threads, unsigned char* shared, size_t shared_size, size_t guard,
                bool backwards, const Kernel& kernel) {
  blockDim.x = threads;
  gridDim.x = blocks;
  for (int i = 0; i < blocks; ++i) {
    blockIdx.x = i;
    // NaN: what a kernel does not write, it must not use.
    std::memset(shared, 0xff, shared_size + guard);
    cuda_on_cpu::run_block(threads, backwards, kernel);
    for (size_t j = 0; j < guard; ++j) {
      if (shared[shared_size + j] != 0xff) {
        throw std::runtime_error("a write behind the end of the shared memory");
      }
    }
  }
}
