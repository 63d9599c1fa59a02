#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/emulation/simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <memory>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace autodeploy::cuda::simt {
namespace {

constexpr size_t kStackBytes = 128 * 1024;
constexpr size_t kMaxCluster = 8, kMaxFibers = 4096;
constexpr size_t kSharedPitch = (kMaxShared + 127) / 128 * 128;

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

// What a block has of its own; blocks of a cluster run together.
struct Block {
  uint8_t* shared = nullptr;
  Barrier barrier{};
  std::array<Barrier, 16> some_barriers{};
  int count[2] = {0, 0};  // of sync_block_count, by the parity of the generation
  int num_alive = 0;
};

struct Fiber {
  Thread thread;
  int index = 0;  // in the cluster
  Block* block = nullptr;
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
  std::vector<Fiber> fibers = std::vector<Fiber>(kMaxFibers);
  std::vector<Warp> warps = std::vector<Warp>(kMaxFibers / 32);
  uint8_t* stacks = nullptr;
  std::unique_ptr<uint8_t[]> shared_storage{new uint8_t[kMaxCluster * kSharedPitch + 128]};
  std::vector<Block> blocks = std::vector<Block>(kMaxCluster);
  Fiber* current = nullptr;
  Thread idle;  // when no kernel runs
  const std::function<void()>* body = nullptr;
  int num_threads = 0, num_alive = 0;  // of a block; of the cluster
  unsigned cluster = 1;                // blocks of it
  Barrier cluster_barrier;
#if defined(__x86_64__)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif

  Machine() {
    void* p = mmap(nullptr, kStackBytes * kMaxFibers, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) die("no memory for the stacks of threads");
    stacks = static_cast<uint8_t*>(p);
    const auto at = reinterpret_cast<uintptr_t>(shared_storage.get());
    for (size_t b = 0; b < kMaxCluster; ++b)
      blocks[b].shared = shared_storage.get() + (128 - at % 128) % 128 + b * kSharedPitch;
  }
  ~Machine() { munmap(stacks, kStackBytes * kMaxFibers); }
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
  Block& block = *f.block;
  --block.num_alive;
  Warp& w = m.warps[static_cast<size_t>(f.index / 32)];
  w.alive &= ~(1u << (f.index % 32));
  // Threads that have ended are not waited for.
  if (block.num_alive > 0 && block.barrier.arrived == block.num_alive) end_generation(block.barrier);
  if (m.num_alive > 0 && m.cluster_barrier.arrived == m.num_alive) end_generation(m.cluster_barrier);
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

// The blocks of a cluster, from `first` on along x.
void run_cluster(const uint3& first, const dim3& grid, const dim3& block) {
  Machine& m = machine();
  const int per_block = m.num_threads, n = per_block * static_cast<int>(m.cluster);
  m.num_alive = n;
  m.cluster_barrier = {};
  for (size_t b = 0; b < m.cluster; ++b) m.blocks[b] = {m.blocks[b].shared, {}, {}, {0, 0}, per_block};
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
    const auto u = static_cast<unsigned>(i % per_block), b = static_cast<unsigned>(i / per_block);
    f.block = &m.blocks[b];
    f.thread = {{u % block.x, u / block.x % block.y, u / block.x / block.y},
                {first.x + b, first.y, first.z},
                block,
                grid};
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
uint8_t* dynamic_shared() { return machine().current->block->shared; }
int lane() { return machine().current->index % 32; }

namespace {
void sync(Barrier& b, int expected) {
  const uint64_t generation = b.generation;
  if (++b.arrived == expected)
    end_generation(b);
  else
    wait_for(b, generation);
}
}  // namespace

void sync_block() {
  Block& block = *machine().current->block;
  sync(block.barrier, block.num_alive);
}

void sync_cluster() {
  Machine& m = machine();
  sync(m.cluster_barrier, m.num_alive);
}
int cluster_rank() { return machine().current->index / machine().num_threads; }
const void* of_peer(const void* shared, int rank) {
  const Machine& m = machine();
  if (rank < 0 || rank >= static_cast<int>(m.cluster)) die("a cluster has no such block");
  return m.blocks[static_cast<size_t>(rank)].shared +
         (static_cast<const uint8_t*>(shared) - m.current->block->shared);
}

void sync_some(int id, int threads) {
  if (id < 1 || id > 15 || threads < 32 || threads % 32 != 0)
    die("a barrier has an id of 1 to 15 and whole warps");
  sync(machine().current->block->some_barriers[static_cast<size_t>(id)], threads);
}

namespace {
void end_phase_if_done(SharedBarrier* b) {
  if (b->arrived < b->expected || b->bytes > 0) return;
  b->arrived = 0;
  ++b->phase;
}
}  // namespace

void init(SharedBarrier* b, uint32_t arrivals) { *b = {arrivals, 0, 0, 0}; }
void arrive(SharedBarrier* b) {
  if (++b->arrived > b->expected) die("more arrivals at a barrier than it expects");
  end_phase_if_done(b);
}
void announce(SharedBarrier* b, uint32_t bytes) { b->bytes += bytes; }
void wait(SharedBarrier* b, uint32_t parity) {
  // The phase that is not over yet has the parity of `phase`.
  while (b->phase % 2 == parity) {
    Fiber& f = *machine().current;
    f.waits_at = &b->phase;
    f.waits_for = b->phase;
    to_scheduler();
  }
}

void copy_box(void* to, const uint8_t* from, const std::array<int64_t, 4>& shape,
              const std::array<int64_t, 4>& stride, const Coordinates& box, const Coordinates& at,
              SharedBarrier* b) {
  if ((static_cast<uint8_t*>(to) - dynamic_shared()) % 128 != 0) die("a box's target is not aligned");
  auto* bytes = static_cast<uint8_t*>(to);
  int64_t row = 0;
  for (int32_t i = 0; i < box[3]; ++i) {
    for (int32_t j = 0; j < box[2]; ++j) {
      for (int32_t k = 0; k < box[1]; ++k, ++row) {
        const bool inside = at[3] + i < shape[3] && at[2] + j < shape[2] && at[1] + k < shape[1];
        for (int32_t c = 0; c < box[0]; ++c) {
          uint8_t* target = bytes + row * 128 + ((c / 8) ^ (row % 8)) * 16 + c % 8 * 2;
          if (inside && at[0] + c < shape[0])
            std::memcpy(target,
                        from + (at[3] + i) * stride[3] + (at[2] + j) * stride[2] + (at[1] + k) * stride[1] +
                            (at[0] + c) * stride[0],
                        2);
          else
            std::memset(target, 0, 2);
        }
      }
    }
  }
  b->bytes -= row * 128;
  if (b->bytes < 0) die("a box has more bytes than were announced");
  end_phase_if_done(b);
}

int sync_block_count(int predicate) {
  Block& block = *machine().current->block;
  const uint64_t parity = block.barrier.generation % 2;
  block.count[parity] += predicate;
  block.count[1 - parity] = 0;
  sync_block();
  return block.count[parity];
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

void run_grid(const dim3& grid, const dim3& block, size_t shared, unsigned cluster,
              const std::function<void()>& body) {
  Machine& m = machine();
  const int64_t threads = int64_t{block.x} * block.y * block.z;
  if (threads < 1 || threads > kMaxThreads) die("a block has 1 to 1024 threads");
  if (shared > kMaxShared) die("a block has at most 227 KiB of shared memory");
  if (grid.y > 65535 || grid.z > 65535) die("a grid has at most 65535 blocks in y and z");
  if (cluster < 1 || cluster > kMaxCluster || grid.x % cluster != 0)
    die("a grid's blocks along x are a multiple of its clusters', which are at most 8");
  if (cluster > 1 && (threads % 32 != 0 || static_cast<size_t>(threads) * cluster > kMaxFibers))
    die("clusters are emulated for whole warps, and at most 4096 threads");
  m.num_threads = static_cast<int>(threads);
  m.cluster = cluster;
  m.body = &body;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; x += cluster) {
        for (unsigned b = 0; b < cluster; ++b) std::memset(m.blocks[b].shared, 0xff, shared);
        run_cluster({x, y, z}, grid, block);
      }
    }
  }
  m.body = nullptr;
}

}  // namespace autodeploy::cuda::simt
