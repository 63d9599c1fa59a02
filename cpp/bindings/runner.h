// Drives an Executor without an engine: the caller says what each step holds. For verification and tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache_manager/state_pools.h"
#include "core/step_batch.h"
#include "core/thread_pool.h"
#include "runtime/executor.h"
#include "runtime/weight_loader.h"

namespace autodeploy {

struct RunnerOptions {
  int64_t max_tokens = 0, max_seqs = 0, max_seq_len = 0;
  int num_threads = 0;               // 0: automatic
  int32_t page_size = 0;             // tokens; 0: the default
  bool exact = false;                // forbid int8 activations
  bool poison = false;               // values are NaN until written, and share no memory
  std::string device = "cpu";        // or "cuda", "cuda-emulated"
  std::string act = "float32";       // what the activation type is bound to; the CPU has float32 alone
  bool dummy = false;                // on a device: weights are made up
  bool replay = false;               // on a device: decode-only steps as graphs
  bool uniform_routing = false;      // where weights are made up: rows go to any experts alike
  std::vector<std::string> plugins;  // libraries of an author's own operators
};

// One step. Sequence i holds tokens [query_start[i], query_start[i+1]) and lives in cache slot slot[i], a
// number in [0, max_seqs).
struct RunnerStep {
  std::vector<int64_t> token_ids, positions;       // [T]
  std::vector<int32_t> query_start, kv_len, slot;  // [B+1], [B], [B]
  std::vector<uint8_t> has_state;                  // [B]
  std::vector<int32_t> rows;                       // [R]
  std::vector<int32_t> prompt_len;                 // [B], or empty: kv_len
};

// Every cache slot owns fixed pages, which are spread over the pools so that no kernel can count on
// neighbours.
class Runner {
 public:
  Runner(const std::string& artifact_dir, const RunnerOptions& options);

  StepExecutor& executor() { return *executor_; }
  // Checks a step and makes it the current one; throws Error(kInvalidArgument). The batch is valid until the
  // next call.
  const StepBatch& prepare(RunnerStep step);

 private:
  void open_on_host(const std::string& artifact_dir);
  void open_on_device(const std::string& artifact_dir);
  CachePlan plan(std::vector<StateSpec>& states);
  void check(const RunnerStep& step) const;

  RunnerOptions options_;
  ThreadPool pool_;
  LoadedWeights weights_;
  std::unique_ptr<HostStatePools> pools_;
  std::unique_ptr<StepExecutor> executor_;
  int64_t vocab_size_ = 0;
  bool has_slots_ = false;
  std::vector<int32_t> page_sizes_, pages_per_seq_;  // per group
  RunnerStep step_;
  std::vector<int32_t> slots_;
  std::vector<std::vector<int32_t>> pages_;  // per group
  std::vector<StepBatch::PageTable> tables_;
  StepBatch batch_;
};

}  // namespace autodeploy
