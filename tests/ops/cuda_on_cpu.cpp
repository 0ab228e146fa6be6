// The fibers and the watched memory of cuda_on_cpu.h; not instrumented itself.
#include "cuda_on_cpu.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

Index threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {
namespace {

constexpr size_t kStack = 64 * 1024;
constexpr size_t kArena = size_t(64) << 20;
constexpr size_t kGap = 4096;  // between arrays
constexpr size_t kCell = 2;    // bytes that are watched together

enum class Wait { kNone, kWarp, kBlock, kDone };

struct Thread {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  Wait wait = Wait::kNone;
  const char* where = "";  // the kind of barrier, which must be the same for all that meet there
  // Barriers passed. Two accesses with one in common are ordered.
  uint32_t block_epoch = 0, warp_epoch = 0;
  // What the lane offers. Two turns: a lane may offer the next value before all read this one.
  uint64_t offered[2];
  int turn = 0;
};

struct Block {
  std::vector<Thread> threads;
  std::function<void()> kernel;
  ucontext_t scheduler;
  int running = -1;  // -1: none, the scheduler runs
  std::string problem;
};

struct Access {
  uint32_t thread, block_epoch, warp_epoch;
};

struct Cell {
  uint32_t launch, block;  // of the accesses below
  bool written;
  uint8_t readers;
  Access write, reads[2];
};

Block* block = nullptr;
Run run;
int guards = 0;
uint32_t launches = 0;
size_t shared_now = 0;  // bytes that the launch asked for
std::map<const void*, int> allowed;

void* reserve(size_t bytes) {
  void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) throw std::runtime_error("no memory to watch");
  return found;
}

// Arrays, far from each other.
struct Arena : c10::Allocator {
  unsigned char* begin = static_cast<unsigned char*>(reserve(kArena));
  Cell* cells = static_cast<Cell*>(reserve(kArena / kCell * sizeof(Cell)));
  size_t used = 0;
  std::vector<std::pair<size_t, size_t>> arrays;  // begin, end

  c10::DataPtr allocate(size_t bytes) override {
    used = (used + kGap + kGap - 1) / kGap * kGap + 8;
    if (used + bytes + kGap > kArena) throw std::runtime_error("arrays too large to watch");
    unsigned char* data = begin + used;
    std::memset(data, 0xff, bytes);
    arrays.emplace_back(used, used + bytes);
    used += bytes;
    return {data, data, [](void*) {}, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return [](void*) {};
  }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }
  // Whether all of [offset, offset + size) is in one array.
  bool holds(size_t offset, size_t size) const {
    return std::any_of(arrays.begin(), arrays.end(), [&](const auto& array) {
      return offset >= array.first && offset + size <= array.second;
    });
  }
};

Arena& arena() {
  static Arena the_arena;
  return the_arena;
}

std::vector<Cell>& shared_cells() {
  static std::vector<Cell> cells;
  return cells;
}

bool unordered(const Access& a, const Access& b) {
  if (a.thread == b.thread || a.block_epoch != b.block_epoch) return false;
  return a.thread / kLanes != b.thread / kLanes || a.warp_epoch == b.warp_epoch;
}

void touch(Cell& cell, bool write, const char* kind) {
  const Thread& thread = block->threads[block->running];
  const Access now{static_cast<uint32_t>(block->running), thread.block_epoch, thread.warp_epoch};
  if (cell.launch != launches) cell = Cell{launches, blockIdx.x, false, 0, {}, {}};
  if (cell.block != blockIdx.x) {
    if (cell.written || (write && cell.readers > 0)) {
      fail((std::string("a race of two blocks in ") + kind).c_str());
    }
    cell = Cell{launches, blockIdx.x, false, 0, {}, {}};
  }
  bool race = cell.written && unordered(cell.write, now);
  for (int i = 0; write && i < cell.readers; ++i) race |= unordered(cell.reads[i], now);
  if (race) fail((std::string("a race in ") + kind).c_str());
  if (write) {
    cell.written = true;
    cell.readers = 0;
    cell.write = now;
  } else if (cell.readers == 0 || cell.reads[0].thread == now.thread) {
    cell.readers = std::max<uint8_t>(cell.readers, 1);
    cell.reads[0] = now;
  } else {
    cell.readers = 2;
    cell.reads[1] = now;
    std::swap(cell.reads[0], cell.reads[1]);
  }
}

void look(uintptr_t address, size_t size, bool write) {
  if (block == nullptr || block->running < 0) return;
  const uintptr_t shared = reinterpret_cast<uintptr_t>(run.shared);
  const uintptr_t array = reinterpret_cast<uintptr_t>(arena().begin);
  const size_t step = size < 4 ? kCell : 4;
  if (address + size > shared && address < shared + run.shared_size) {
    if (address < shared || address + size > shared + shared_now) {
      fail(write ? "a write behind the end of the shared memory"
                 : "a read behind the end of the shared memory");
    }
    for (size_t i = 0; i < size; i += step) {
      touch(shared_cells()[(address - shared + i) / kCell], write, "shared memory");
    }
  } else if (address + size > array && address < array + kArena) {
    if (!arena().holds(address - array, size)) {
      fail(write ? "a write outside of all arrays" : "a read outside of all arrays");
    }
    for (size_t i = 0; i < size; i += step) {
      touch(arena().cells[(address - array + i) / kCell], write, "an array");
    }
  }  // else the thread's own stack and what the launcher handed over
}

void enter() {
  block->kernel();
  block->threads[block->running].wait = Wait::kDone;
}

void wait_for(Wait what, const char* where) {
  const int index = block->running;
  Thread& self = block->threads[index];
  self.wait = what;
  self.where = where;
  block->running = -1;
  swapcontext(&self.context, &block->scheduler);
}

// Opens the barrier of threads [first, last) if all of them wait there. Threads that have returned
// count as waiting at a barrier of the block, as on a GPU, but not at one of their warp.
bool open(Block& own, int first, int last, Wait what) {
  const char* where = nullptr;
  for (int i = first; i < last; ++i) {
    const Thread& thread = own.threads[i];
    if (thread.wait == Wait::kDone && what == Wait::kBlock) continue;
    if (thread.wait != what) return false;
    if (where != nullptr && std::strcmp(where, thread.where) != 0) {
      throw std::runtime_error(std::string("threads meet at ") + where + " and " + thread.where);
    }
    where = thread.where;
  }
  for (int i = first; i < last; ++i) {
    Thread& thread = own.threads[i];
    if (thread.wait != what) continue;
    thread.wait = Wait::kNone;
    if (what == Wait::kBlock) ++thread.block_epoch;
    if (std::strcmp(thread.where, "__syncwarp") == 0) ++thread.warp_epoch;
  }
  return where != nullptr;
}

void run_block(int threads, const std::function<void()>& kernel) {
  Block own;
  own.threads.resize(threads);
  own.kernel = kernel;
  struct Reset {
    ~Reset() { block = nullptr; }
  } reset;
  block = &own;
  for (Thread& thread : own.threads) {
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = kStack;
    thread.context.uc_link = &own.scheduler;
    makecontext(&thread.context, enter, 0);
  }
  std::vector<int> turns(threads);
  for (int i = 0; i < threads; ++i) {
    turns[i] = run.order == Order::kDescending ? threads - 1 - i : i;
  }
  std::mt19937 random(1);
  while (true) {
    if (run.order == Order::kShuffled) std::shuffle(turns.begin(), turns.end(), random);
    int done = 0;
    for (const int i : turns) {
      Thread& thread = own.threads[i];
      if (thread.wait == Wait::kNone) {
        own.running = i;
        threadIdx.x = i;
        swapcontext(&own.scheduler, &thread.context);
        own.running = -1;
        // Not thrown by the thread itself: nothing can unwind from one stack to another.
        if (!own.problem.empty()) throw std::runtime_error(own.problem);
      }
      done += thread.wait == Wait::kDone;
    }
    if (done == threads) return;
    bool opened = false;
    for (int i = 0; i < threads; i += kLanes) {
      opened |= open(own, i, std::min(i + kLanes, threads), Wait::kWarp);
    }
    if (!opened && !open(own, 0, threads, Wait::kBlock)) {
      throw std::runtime_error("threads wait for each other for ever");
    }
  }
}

}  // namespace

void fail(const char* problem) {
  block->problem = problem;
  const int index = block->running;
  block->running = -1;
  swapcontext(&block->threads[index].context, &block->scheduler);
  std::abort();  // the scheduler does not come back
}

const Device& device() { return run.device; }

void guard(int change) { guards += change; }

int current_stream() { return guards; }

void allow_shared(const void* kernel, int bytes) {
  if (bytes > run.device.shared_limit) throw std::runtime_error("more than the device's limit");
  allowed[kernel] = bytes;
}

void launch(const void* kernel, int64_t blocks, int64_t threads, size_t shared, int stream,
            const std::function<void()>& body) {
  if (guards == 0) throw std::runtime_error("a launch without a device guard");
  if (stream != guards) throw std::runtime_error("a launch on another device's stream");
  if (blocks < 1 || threads < 1 || threads > 1024) throw std::runtime_error("an invalid launch");
  const auto limit = allowed.find(kernel);
  const size_t most = limit == allowed.end() ? 48 * 1024 : limit->second;
  if (shared > std::max<size_t>(most, 48 * 1024)) {
    throw std::runtime_error("more shared memory than was opted in to");
  }
  if (shared > run.shared_size) throw std::runtime_error("more shared memory than there is");
  shared_now = shared;
  shared_cells().resize(run.shared_size / kCell);
  ++launches;
  blockDim.x = static_cast<unsigned>(threads);
  gridDim.x = static_cast<unsigned>(blocks);
  for (int64_t i = 0; i < blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(i);
    std::memset(run.shared, 0xff, shared);
    // A block's shared memory is its own.
    std::fill(shared_cells().begin(), shared_cells().begin() + shared / kCell, Cell{});
    run_block(static_cast<int>(threads), body);
  }
}

void block_barrier() { wait_for(Wait::kBlock, "__syncthreads"); }

void warp_barrier(const char* where) { wait_for(Wait::kWarp, where); }

uint64_t exchange(unsigned mask, uint64_t value, int source, const char* where) {
  if (mask != 0xffffffff) fail("a shuffle without all lanes");
  const int self = block->running;
  Thread& thread = block->threads[self];
  const int turn = thread.turn++ % 2;
  thread.offered[turn] = value;
  wait_for(Wait::kWarp, where);
  return block->threads[self / kLanes * kLanes + source].offered[turn];
}

const char* watched(const Run& wanted, const std::function<void()>& body) {
  static std::string problem;
  problem.clear();
  run = wanted;
  guards = 0;
  allowed.clear();
  arena().used = 0;
  arena().arrays.clear();
  c10::Allocator* usual = c10::GetCPUAllocator();
  c10::SetCPUAllocator(&arena(), /*priority=*/1);
  try {
    body();
  } catch (const std::exception& error) {
    problem = error.what();
  }
  c10::SetCPUAllocator(usual, /*priority=*/1);
  return problem.c_str();
}

}  // namespace cuda_on_cpu

// What gcc calls for the loads and stores of instrumented sources.
#define WATCH(size)                                                 \
  extern "C" void __asan_load##size##_noabort(uintptr_t address) {  \
    cuda_on_cpu::look(address, size, false);                        \
  }                                                                 \
  extern "C" void __asan_store##size##_noabort(uintptr_t address) { \
    cuda_on_cpu::look(address, size, true);                         \
  }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
extern "C" void __asan_loadN_noabort(uintptr_t address, size_t size) {
  cuda_on_cpu::look(address, size, false);
}
extern "C" void __asan_storeN_noabort(uintptr_t address, size_t size) {
  cuda_on_cpu::look(address, size, true);
}
extern "C" void __asan_handle_no_return() {}
extern "C" void __asan_before_dynamic_init(const char*) {}
extern "C" void __asan_after_dynamic_init() {}
