// A pool whose threads spin within a step and park between steps.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

#include "core/processors.h"

namespace autodeploy {

// A borrowed callable: no allocation, valid for the duration of the call it is passed to.
template <class Sig>
class FunctionRef;
template <class R, class... A>
class FunctionRef<R(A...)> {
 public:
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
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

  // Runs fn(thread_idx) once on every thread, the caller being thread 0; returns when all are done. Not
  // reentrant, and one caller at a time. Here and below, the first exception of fn is rethrown to the caller;
  // chunks not yet begun are then left out.
  void run(FunctionRef<void(int)> fn);
  // Splits [0, n) into chunks of `grain`, handed out in order; fn(begin, end, thread_idx). What is computed
  // for an index must not depend on the chunk it falls in, so that results are bitwise equal for any thread
  // count. Up to `grain` indices run on the caller alone, and a worker that has no processor just now is not
  // waited for.
  void parallel_for(int64_t n, int64_t grain, FunctionRef<void(int64_t, int64_t, int)> fn);

  // Between begin_step and end_step the workers spin; outside they park and use no CPU. Pairs may nest.
  void begin_step();
  void end_step();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace autodeploy
