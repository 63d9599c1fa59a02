#include <exception>

#include "scheduler/failure_text.h"
#include "scheduler/step_loop.h"

namespace autodeploy {
namespace {

class PlainLoop final : public StepLoop {
 public:
  PlainLoop(Scheduler* scheduler, ModelRunner* runner) : scheduler_(scheduler), runner_(runner) {}

  StepStatus step() override {
    const Step* step = scheduler_->schedule();
    if (step == nullptr) return StepStatus::kIdle;
    const BatchResult result = run(*step);
    if (result.failure.empty()) {
      scheduler_->complete(result);
      return StepStatus::kRan;
    }
    failure_ = result.failure;
    scheduler_->fail(failure_);
    if (!result.fatal) return StepStatus::kRan;
    scheduler_->fail_all(failure_);
    return StepStatus::kStopped;
  }

  StepStatus drain() override { return StepStatus::kIdle; }

  const std::string& failure() const override { return failure_; }

 private:
  BatchResult run(const Step& step) {
    try {
      runner_->launch(step);
      return runner_->wait();
    } catch (const std::exception& error) {
      BatchResult result;
      result.failure = failure_text(error);
      return result;
    }
  }

  Scheduler* scheduler_;
  ModelRunner* runner_;
  std::string failure_;
};

}  // namespace

std::unique_ptr<StepLoop> make_plain_loop(Scheduler* scheduler, ModelRunner* runner) {
  return std::make_unique<PlainLoop>(scheduler, runner);
}

}  // namespace autodeploy
