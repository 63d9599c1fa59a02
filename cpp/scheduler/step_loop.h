// The order in which scheduling and running alternate.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "scheduler/model_runner.h"
#include "scheduler/scheduler.h"

namespace autodeploy {

enum class StepStatus : uint8_t {
  kIdle,     // there was nothing to run
  kRan,      // one step has been closed: it has passed, or failed and ended its requests
  kStopped,  // a failure that no later step survives; failure() says which
};

class StepLoop {
 public:
  // Waits for what is in flight; its results are lost.
  virtual ~StepLoop() = default;
  virtual StepStatus step() = 0;
  // As step(), but starts nothing: kIdle when no step is open.
  virtual StepStatus drain() = 0;
  // The last failed step, empty when none has failed.
  virtual const std::string& failure() const = 0;
};

// Both arguments outlive the loop.
//
// schedule, launch, wait, complete.
std::unique_ptr<StepLoop> make_plain_loop(Scheduler* scheduler, ModelRunner* runner);
// Schedules and launches a step before it waits for the one before, so that the host prepares steps and hands
// out tokens while the runner is busy. Same tokens. For a runner that takes two steps, and caches planned for
// two.
std::unique_ptr<StepLoop> make_overlapped_loop(Scheduler* scheduler, ModelRunner* runner);

}  // namespace autodeploy
