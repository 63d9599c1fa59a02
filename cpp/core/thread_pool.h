// A pool whose threads spin within a step and park between steps.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace autodeploy {

// A borrowed callable: no allocation, valid for the duration of the call it is passed to.
template <class Sig>
class FunctionRef;
template <class R, class... A>
class FunctionRef<R(A...)> {
 public:
  template <class F>
  FunctionRef(F&& f)  // NOLINT: implicit by design
      : object_(const_cast<void*>(static_cast<const void*>(&f))), call_([](void* o, A... a) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(o))(static_cast<A&&>(a)...);
        }) {}
  R operator()(A... a) const { return call_(object_, static_cast<A&&>(a)...); }

 private:
  void* object_;
  R (*call_)(void*, A...);
};

class ThreadPool {
 public:
  // num_threads counts the caller; 0 asks for the processors that affinity and the cgroup quota allow.
  explicit ThreadPool(int num_threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const;

  // Runs fn(thread_idx) once on every thread, the caller being thread 0; returns when all are done. Not reentrant.
  void run(FunctionRef<void(int)> fn);
  // Splits [0, n) into chunks of `grain`, handed out in order; fn(begin, end, thread_idx). What is computed for an index must not
  // depend on the chunk it falls in, so that results are bitwise equal for any thread count.
  void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t, int)> fn);

  // Between begin_step and end_step the workers spin; outside they park and use no CPU.
  void begin_step();
  void end_step();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Processors this process may use: affinity mask and cgroup CPU quota (v1 and v2), at least 1.
int available_processors();

}  // namespace autodeploy
