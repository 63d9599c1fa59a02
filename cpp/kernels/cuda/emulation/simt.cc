#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/emulation/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace autodeploy::cuda::simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;

[[noreturn]] void die(const char* why) {
  const Thread& t = current();
  std::fprintf(stderr, "[emulation] %s: block (%u, %u, %u), thread (%u, %u, %u)\n", why, t.block_idx.x,
               t.block_idx.y, t.block_idx.z, t.thread_idx.x, t.thread_idx.y, t.thread_idx.z);
  std::abort();
}

#if defined(__x86_64__)
extern "C" void ad_simt_switch(void** save, void* load);
asm(R"(
.text
.type ad_simt_switch,@function
.hidden ad_simt_switch
ad_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size ad_simt_switch,.-ad_simt_switch
)");
#endif

// Counts arrivals; a generation ends when all that are expected have come.
struct Barrier {
  int arrived = 0;
  uint64_t generation = 0;
};

struct Warp {
  Barrier barrier;
  uint32_t mask = 0;   // of the open exchange
  uint32_t alive = 0;  // lanes that have not ended
  alignas(16) uint8_t slots[2][32][kExchangeBytes];
};

struct Fiber {
  Thread thread;
  int index = 0;
  bool done = false;
  const uint64_t* waits_at = nullptr;  // runs again when this has another value than waits_for
  uint64_t waits_for = 0;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

struct Machine {
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxThreads);
  std::vector<Warp> warps = std::vector<Warp>(kMaxThreads / 32);
  uint8_t* stacks = nullptr;
  std::unique_ptr<uint8_t[]> shared_storage{new uint8_t[kMaxShared + 128]};
  uint8_t* shared = nullptr;
  Fiber* current = nullptr;
  Thread idle;  // when no kernel runs
  const std::function<void()>* body = nullptr;
  int num_threads = 0, num_alive = 0;
  Barrier block_barrier;
  int count[2] = {0, 0};  // of sync_block_count, by the parity of the generation
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif

  Machine() {
    void* p = mmap(nullptr, kStackBytes * kMaxThreads, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die("no memory for the stacks of threads");
    stacks = static_cast<uint8_t*>(p);
    const auto at = reinterpret_cast<uintptr_t>(shared_storage.get());
    shared = shared_storage.get() + (128 - at % 128) % 128;
  }
  ~Machine() { munmap(stacks, kStackBytes * kMaxThreads); }
};

Machine& machine() {
  static thread_local Machine m;
  return m;
}

void to_scheduler() {
  Machine& m = machine();
#if defined(__x86_64__)
  ad_simt_switch(&m.current->stack_pointer, m.stack_pointer);
#else
  swapcontext(&m.current->context, &m.context);
#endif
}

void end_generation(Barrier& b) {
  b.arrived = 0;
  ++b.generation;
}

void wait_for(Barrier& b, uint64_t generation) {
  while (b.generation == generation) {
    Fiber& f = *machine().current;
    f.waits_at = &b.generation;
    f.waits_for = generation;
    to_scheduler();
  }
}

// What a fiber runs.
void fiber_main() {
  Machine& m = machine();
  (*m.body)();
  Fiber& f = *m.current;
  f.done = true;
  --m.num_alive;
  Warp& w = m.warps[static_cast<size_t>(f.index / 32)];
  w.alive &= ~(1u << (f.index % 32));
  // Threads that have ended are not waited for.
  if (m.num_alive > 0 && m.block_barrier.arrived == m.num_alive) end_generation(m.block_barrier);
  if (w.barrier.arrived > 0 && w.barrier.arrived == __builtin_popcount(w.mask & w.alive))
    end_generation(w.barrier);
  to_scheduler();
  die("a thread that has ended runs again");
}

void start(Fiber& f) {
  Machine& m = machine();
  uint8_t* stack = m.stacks + kStackBytes * static_cast<size_t>(f.index);
#if defined(__x86_64__)
  auto* top = reinterpret_cast<void**>(stack + kStackBytes - 64);
  *--top = nullptr;                               // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&fiber_main);  // where the first switch returns to
  for (int i = 0; i < 6; ++i) *--top = nullptr;   // the registers that a switch restores
  f.stack_pointer = top;
#else
  getcontext(&f.context);
  f.context.uc_stack.ss_sp = stack;
  f.context.uc_stack.ss_size = kStackBytes;
  f.context.uc_link = nullptr;
  makecontext(&f.context, fiber_main, 0);
#endif
}

void resume(Fiber& f) {
  Machine& m = machine();
  m.current = &f;
  f.waits_at = nullptr;
#if defined(__x86_64__)
  ad_simt_switch(&m.stack_pointer, f.stack_pointer);
#else
  swapcontext(&m.context, &f.context);
#endif
  m.current = nullptr;
}

void run_block(const uint3& block_idx, const dim3& grid, const dim3& block) {
  Machine& m = machine();
  const int n = m.num_threads;
  m.num_alive = n;
  m.block_barrier = {};
  m.count[0] = m.count[1] = 0;
  for (int w = 0; w * 32 < n; ++w) {
    Warp& warp = m.warps[static_cast<size_t>(w)];
    warp.barrier = {};
    const int lanes = std::min(32, n - w * 32);
    warp.alive = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
  }
  for (int i = 0; i < n; ++i) {
    Fiber& f = m.fibers[static_cast<size_t>(i)];
    f.index = i;
    f.done = false;
    f.waits_at = nullptr;
    const auto u = static_cast<unsigned>(i);
    f.thread = {{u % block.x, u / block.x % block.y, u / block.x / block.y}, block_idx, block, grid};
    start(f);
  }
  // The order of threads differs from pass to pass, so that none can count on it.
  for (uint64_t pass = 0; m.num_alive > 0; ++pass) {
    bool progress = false;
    const int from = static_cast<int>(pass * 37 % static_cast<uint64_t>(n));
    const bool backwards = pass % 2 == 1;
    for (int k = 0; k < n; ++k) {
      const int i = ((backwards ? from - k : from + k) % n + n) % n;
      Fiber& f = m.fibers[static_cast<size_t>(i)];
      if (f.done || (f.waits_at && *f.waits_at == f.waits_for)) continue;
      resume(f);
      progress = true;
    }
    if (!progress) {
      for (int i = 0; i < n; ++i) {
        if (!m.fibers[static_cast<size_t>(i)].done) m.idle = m.fibers[static_cast<size_t>(i)].thread;
      }
      die("threads wait at barriers that others do not reach");
    }
  }
}

}  // namespace

Thread& current() {
  Machine& m = machine();
  return m.current ? m.current->thread : m.idle;
}
uint8_t* dynamic_shared() { return machine().shared; }
int lane() { return machine().current->index % 32; }

void sync_block() {
  Machine& m = machine();
  const uint64_t generation = m.block_barrier.generation;
  if (++m.block_barrier.arrived == m.num_alive)
    end_generation(m.block_barrier);
  else
    wait_for(m.block_barrier, generation);
}

int sync_block_count(int predicate) {
  Machine& m = machine();
  const uint64_t parity = m.block_barrier.generation % 2;
  m.count[parity] += predicate;
  m.count[1 - parity] = 0;
  sync_block();
  return m.count[parity];
}

const uint8_t* exchange(uint32_t mask, const void* value, size_t bytes) {
  Machine& m = machine();
  Fiber& f = *m.current;
  Warp& w = m.warps[static_cast<size_t>(f.index / 32)];
  const int lane = f.index % 32;
  if (!(mask >> lane & 1u)) die("a thread takes part in an exchange whose mask leaves it out");
  if (w.barrier.arrived == 0)
    w.mask = mask;
  else if (w.mask != mask)
    die("lanes of a warp meet in exchanges with different masks");
  const uint64_t generation = w.barrier.generation;
  auto& slots = w.slots[generation % 2];
  std::memcpy(slots[lane], value, bytes);
  if (++w.barrier.arrived == __builtin_popcount(mask & w.alive))
    end_generation(w.barrier);
  else
    wait_for(w.barrier, generation);
  return &slots[0][0];
}

void copy_async(void* to, const void* from, size_t bytes) {
  Thread& t = current();
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    die("a copy's addresses are not aligned to its size");
  std::memset(to, 0xff, bytes);
  t.copies.push_back({to, from, bytes, t.copy_group});
}

void commit_copies() { ++current().copy_group; }

void wait_copies(int pending_groups) {
  Thread& t = current();
  std::erase_if(t.copies, [&](const AsyncCopy& c) {
    if (c.group >= t.copy_group - pending_groups) return false;
    if (c.from)
      std::memcpy(c.to, c.from, c.bytes);
    else
      std::memset(c.to, 0, c.bytes);
    return true;
  });
}

void run_grid(const dim3& grid, const dim3& block, size_t shared, const std::function<void()>& body) {
  Machine& m = machine();
  const int64_t threads = int64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > kMaxThreads) die("a block has 1 to 1024 threads");
  if (shared > kMaxShared) die("a block has at most 227 KiB of shared memory");
  if (grid.y > 65535 || grid.z > 65535) die("a grid has at most 65535 blocks in y and z");
  m.num_threads = static_cast<int>(threads);
  m.body = &body;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        std::memset(m.shared, 0xff, shared);
        run_block({x, y, z}, grid, block);
      }
    }
  }
  m.body = nullptr;
}

}  // namespace autodeploy::cuda::simt
