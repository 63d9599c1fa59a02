// Times steps by the device's clock: how long a decode step works, and how long the device waits between two.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "runtime/cuda/device_api.h"
#include "scheduler/model_runner.h"

namespace autodeploy::cuda {

// The latest of many times, in microseconds.
class LatestTimes {
 public:
  static constexpr size_t kKept = 4096;
  LatestTimes() { kept_.reserve(kKept); }
  void add(float us);
  TimesSummary summary() const;

 private:
  int64_t count_ = 0;
  std::vector<float> kept_;
};

// Marks in the queue around the work of each step; they are read once the step has been waited for, so that
// nothing waits for them. Memory is fixed. All calls but summaries come from one thread.
class StepClock {
 public:
  // `in_flight`: steps that are launched and not waited for at most.
  explicit StepClock(int in_flight) : marks_(static_cast<size_t>(in_flight) + 1) {}

  // Around the kernels of the step of this number; a step that fails to launch leaves its number to the next.
  // `decodes`: each of its sequences has one token; `goes_on`: one of them had a step before.
  void begin(int64_t number, Stream stream);
  void end(int64_t number, Stream stream, bool decodes, bool goes_on);
  // The step has passed, and so have those before it.
  void passed(int64_t number);

  // From any thread.
  void summarise(RunnerStats* stats) const;

 private:
  struct Marks {
    Event begin{true}, end{true};
    int64_t number = -1;
    bool decodes = false, goes_on = false;
  };
  // The marks of the step before the oldest in flight are still there.
  Marks& at(int64_t number) { return marks_[static_cast<size_t>(number) % marks_.size()]; }

  std::vector<Marks> marks_;
  mutable std::mutex mutex_;
  LatestTimes steps_, gaps_;
};

}  // namespace autodeploy::cuda
