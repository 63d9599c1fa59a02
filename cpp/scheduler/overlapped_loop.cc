#include <exception>
#include <optional>
#include <utility>

#include "core/error.h"
#include "scheduler/failure_text.h"
#include "scheduler/step_loop.h"

namespace autodeploy {
namespace {

// Between two calls one step is in flight. A call launches the next one behind it, waits for it and closes
// it.
class OverlappedLoop final : public StepLoop {
 public:
  OverlappedLoop(Scheduler* scheduler, ModelRunner* runner) : scheduler_(scheduler), runner_(runner) {
    AD_ICHECK(scheduler->max_open_steps() >= 2 && runner->max_in_flight() >= 2,
              "overlapping takes caches planned for two open steps and a runner that takes two, found ",
              scheduler->max_open_steps(), " and ", runner->max_in_flight());
  }

  ~OverlappedLoop() override {
    while (num_in_flight_ > 0) wait();
  }
  OverlappedLoop(const OverlappedLoop&) = delete;
  OverlappedLoop& operator=(const OverlappedLoop&) = delete;

  StepStatus step() override {
    // A step that failed to launch is closed first, in its turn.
    while (num_in_flight_ < 2 && !launch_failure_) {
      const Step* step = scheduler_->schedule();
      if (step == nullptr) break;
      launch(*step);
    }
    return drain();
  }

  StepStatus drain() override {
    if (num_in_flight_ > 0) {
      const BatchResult result = wait();
      if (result.failure.empty()) {
        scheduler_->complete(result);
        return StepStatus::kRan;
      }
      failure_ = result.failure;
      scheduler_->fail(failure_);
      return result.fatal ? stop() : StepStatus::kRan;
    }
    if (!launch_failure_) return StepStatus::kIdle;
    failure_ = *std::exchange(launch_failure_, std::nullopt);
    scheduler_->fail(failure_);
    return StepStatus::kRan;
  }

  const std::string& failure() const override { return failure_; }

 private:
  void launch(const Step& step) {
    try {
      runner_->launch(step);
      ++num_in_flight_;
    } catch (const std::exception& error) {
      launch_failure_ = failure_text(error);
    }
  }

  BatchResult wait() {
    --num_in_flight_;
    try {
      return runner_->wait();
    } catch (const std::exception& error) {
      BatchResult result;
      result.failure = failure_text(error);
      return result;
    }
  }

  // No step in flight comes back.
  StepStatus stop() {
    num_in_flight_ = 0;
    launch_failure_.reset();
    while (scheduler_->num_open_steps() > 0) scheduler_->fail(failure_);
    scheduler_->fail_all(failure_);
    return StepStatus::kStopped;
  }

  Scheduler* scheduler_;
  ModelRunner* runner_;
  int num_in_flight_ = 0;                      // launched and not waited for
  std::optional<std::string> launch_failure_;  // of the newest open step, which is not in flight
  std::string failure_;
};

}  // namespace

std::unique_ptr<StepLoop> make_overlapped_loop(Scheduler* scheduler, ModelRunner* runner) {
  return std::make_unique<OverlappedLoop>(scheduler, runner);
}

}  // namespace autodeploy
