#include "runtime/cpu_model_runner.h"

namespace autodeploy {
namespace {

// The workers spin from here to the end of the step, also when that comes by an exception.
class StepScope {
 public:
  explicit StepScope(ThreadPool* pool) : pool_(pool) { pool_->begin_step(); }
  ~StepScope() { pool_->end_step(); }
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;

 private:
  ThreadPool* pool_;
};

}  // namespace

void CpuModelRunner::launch(const Step& step) {
  rows_ = {};
  if (step.batch.num_decodes == step.batch.num_seqs) ++num_decode_steps_;
  const StepScope scope(pool_);
  TensorView logits = executor_->run(step.batch);
  if (step.rows.empty()) return;
  logits.shape[1] = sampler_->vocab_size();  // columns beyond are padding of the head
  rows_ = sampler_->sample(logits, step.rows, *pool_);
}

BatchResult CpuModelRunner::wait() {
  BatchResult result;
  result.rows = rows_;
  return result;
}

RunnerStats CpuModelRunner::stats() const {
  RunnerStats stats;
  stats.num_decode_steps = num_decode_steps_;
  return stats;
}

}  // namespace autodeploy
