#include "core/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "core/error.h"

namespace autodeploy {
namespace {

inline void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// The published job, in one word: epoch in the high half; in the low half either the number of chunks that
// nobody has claimed yet, or kEveryone, which each worker answers once per epoch.
constexpr uint64_t kEveryone = 0x80000000u;
constexpr uint64_t kLow = 0xffffffffu;
constexpr int64_t kMaxChunks = 0x7fffffff;
constexpr uint64_t kStopEpoch = 0;  // epochs of jobs start at 1

}  // namespace

struct ThreadPool::Impl {
  // Claimed chunks keep the job alive: the caller returns only when all are done, so whoever claimed one may
  // read the job below.
  alignas(64) std::atomic<uint64_t> ticket{kStopEpoch};
  alignas(64) std::atomic<int64_t> done{0};
  alignas(64) std::atomic<bool> stop{false};
  std::atomic<int> in_step{0};
  std::atomic<bool> failed{false};
  std::atomic<int> sleepers{0};

  const FunctionRef<void(int)>* each = nullptr;
  const FunctionRef<void(int64_t, int64_t, int)>* chunk = nullptr;
  int64_t n = 0, grain = 1, num_chunks = 0;
  uint64_t epoch = 0;
  std::exception_ptr error;  // guarded by mutex

  int spin_limit = 512;  // rounds of cpu_relax before a waiting thread gives way to others
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;

  template <class F>
  void guarded(F&& f) {
    try {
      f();
    } catch (...) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!error) error = std::current_exception();
      failed.store(true, std::memory_order_relaxed);
    }
  }

  // Claims and runs chunks until none is left.
  void run_chunks(int thread_idx) {
    int64_t claimed = 0;
    uint64_t t = ticket.load(std::memory_order_acquire);
    while ((t & kLow) != 0 && (t & kEveryone) == 0) {
      if (!ticket.compare_exchange_weak(t, t - 1, std::memory_order_acq_rel, std::memory_order_acquire))
        continue;
      const int64_t begin = (num_chunks - static_cast<int64_t>(t & kLow)) * grain;
      if (!failed.load(std::memory_order_relaxed)) {
        guarded([&] { (*chunk)(begin, std::min(n, begin + grain), thread_idx); });
      }
      ++claimed;
      t = ticket.load(std::memory_order_acquire);
    }
    if (claimed) done.fetch_add(claimed, std::memory_order_release);
  }

  void publish(uint64_t low) {
    failed.store(false, std::memory_order_relaxed);
    done.store(0, std::memory_order_relaxed);
    epoch = epoch == kLow ? 1 : epoch + 1;
    ticket.store(epoch << 32 | low, std::memory_order_seq_cst);
    wake_sleepers();
  }

  void wake_sleepers() {
    if (sleepers.load(std::memory_order_seq_cst) == 0) return;
    { std::lock_guard<std::mutex> lock(mutex); }
    wake.notify_all();
  }

  void finish(int64_t expected) {
    for (int spins = 0; done.load(std::memory_order_acquire) != expected;) {
      cpu_relax();
      if (++spins >= spin_limit) {
        spins = 0;
        sched_yield();
      }
    }
    if (failed.load(std::memory_order_relaxed)) {
      std::exception_ptr e;
      {
        std::lock_guard<std::mutex> lock(mutex);
        e = std::exchange(error, nullptr);
      }
      std::rethrow_exception(e);
    }
  }

  bool has_work(uint64_t answered) const {
    const uint64_t t = ticket.load(std::memory_order_seq_cst);
    return (t & kEveryone) ? (t >> 32) != answered : (t & kLow) != 0;
  }

  void worker(int thread_idx) {
    uint64_t answered = kStopEpoch;
    int spins = 0;
    while (!stop.load(std::memory_order_relaxed)) {
      const uint64_t t = ticket.load(std::memory_order_acquire);
      if ((t & kEveryone) && (t >> 32) != answered) {
        answered = t >> 32;
        guarded([&] { (*each)(thread_idx); });
        done.fetch_add(1, std::memory_order_release);
        spins = 0;
      } else if (!(t & kEveryone) && (t & kLow) != 0) {
        run_chunks(thread_idx);
        spins = 0;
      } else if (++spins < spin_limit) {
        cpu_relax();
      } else if (in_step.load(std::memory_order_relaxed) > 0) {
        spins = 0;
        sched_yield();
      } else {
        spins = 0;
        std::unique_lock<std::mutex> lock(mutex);
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        wake.wait(lock, [&] {
          return has_work(answered) || in_step.load(std::memory_order_seq_cst) > 0 ||
                 stop.load(std::memory_order_seq_cst);
        });
        sleepers.fetch_sub(1, std::memory_order_seq_cst);
      }
    }
  }
};

ThreadPool::ThreadPool(int num_threads) : impl_(std::make_unique<Impl>()) {
  AD_CHECK(num_threads >= 0 && num_threads <= 1024, ErrorKind::kInvalidArgument,
           "[thread pool] expected 0 (automatic) to 1024 threads, found ", num_threads);
  const int processors = available_processors();
  if (num_threads == 0) num_threads = std::min(processors, 1024);
  if (num_threads > processors) impl_->spin_limit = 8;  // somebody else needs this processor to get on
  impl_->workers.reserve(static_cast<size_t>(num_threads - 1));
  for (int i = 1; i < num_threads; ++i) impl_->workers.emplace_back([this, i] { impl_->worker(i); });
}

ThreadPool::~ThreadPool() {
  impl_->stop.store(true, std::memory_order_seq_cst);
  impl_->wake_sleepers();
  for (std::thread& t : impl_->workers) t.join();
}

int ThreadPool::num_threads() const { return static_cast<int>(impl_->workers.size()) + 1; }

void ThreadPool::run(FunctionRef<void(int)> fn) {
  Impl& p = *impl_;
  if (p.workers.empty()) return fn(0);
  p.each = &fn;
  p.publish(kEveryone);
  p.guarded([&] { fn(0); });
  p.finish(static_cast<int64_t>(p.workers.size()));
}

void ThreadPool::parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t, int)> fn) {
  if (n <= 0) return;
  Impl& p = *impl_;
  grain = std::max<int64_t>(grain, 1);
  if (n > grain && n / grain >= kMaxChunks) grain = n / kMaxChunks + 1;
  if (n <= grain || p.workers.empty()) {
    for (int64_t begin = 0; begin < n; begin += grain) fn(begin, std::min(n, begin + grain), 0);
    return;
  }
  p.chunk = &fn;
  p.n = n;
  p.grain = grain;
  p.num_chunks = (n - 1) / grain + 1;
  p.publish(static_cast<uint64_t>(p.num_chunks));
  p.run_chunks(0);
  p.finish(p.num_chunks);
}

void ThreadPool::begin_step() {
  if (impl_->workers.empty()) return;
  if (impl_->in_step.fetch_add(1, std::memory_order_seq_cst) == 0) impl_->wake_sleepers();
}

void ThreadPool::end_step() {
  if (!impl_->workers.empty()) impl_->in_step.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace autodeploy
