// Runs steps on the processors: the executor, then the sampler.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "core/thread_pool.h"
#include "runtime/executor.h"
#include "runtime/sampler.h"
#include "scheduler/model_runner.h"

namespace autodeploy {

class CpuModelRunner final : public ModelRunner {
 public:
  // All arguments outlive the runner; the executor is bound.
  CpuModelRunner(Executor* executor, Sampler* sampler, ThreadPool* pool)
      : executor_(executor), sampler_(sampler), pool_(pool) {}

  // The processors work for the caller, so the whole step is done here and wait() only hands it over.
  void launch(const Step& step) override;
  BatchResult wait() override;
  RunnerStats stats() const override;

 private:
  Executor* executor_;
  Sampler* sampler_;
  ThreadPool* pool_;
  std::span<const SampledRow> rows_;
  std::atomic<int64_t> num_decode_steps_ = 0;
};

}  // namespace autodeploy
