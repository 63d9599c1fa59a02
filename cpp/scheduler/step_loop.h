// The order in which scheduling and running alternate. An overlapped loop, which launches a step before the
// tokens of the one before it have arrived, is another implementation of this interface.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "scheduler/model_runner.h"
#include "scheduler/scheduler.h"

namespace autodeploy {

enum class StepStatus : uint8_t {
  kIdle,     // there was nothing to run
  kRan,      // one step has passed, or failed and ended its requests
  kStopped,  // a failure that no later step survives; failure() says which
};

class StepLoop {
 public:
  virtual ~StepLoop() = default;
  virtual StepStatus step() = 0;
  // The last failed step, empty when none has failed.
  virtual const std::string& failure() const = 0;
};

// schedule, launch, wait, complete. Both arguments outlive the loop.
std::unique_ptr<StepLoop> make_plain_loop(Scheduler* scheduler, ModelRunner* runner);

}  // namespace autodeploy
