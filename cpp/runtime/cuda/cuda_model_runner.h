// Runs steps on the device: decode-only steps as replayed graphs, others launch by launch.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "runtime/cuda/device_executor.h"
#include "runtime/cuda/device_sampler.h"
#include "runtime/cuda/step_upload.h"
#include "scheduler/model_runner.h"

namespace autodeploy::cuda {

struct CudaRunnerOptions {
  int64_t max_tokens = 0, max_seqs = 0, max_seq_len = 0;
  int64_t max_pages = 0;            // in all page tables of a step together
  std::vector<int32_t> page_sizes;  // of each group of pages
  bool graphs = true;               // off: decode-only steps are launched one by one, too (tests)
};

struct CudaRunnerCounters {
  int64_t decode_steps = 0, replayed_steps = 0, other_steps = 0, graphs = 0, graph_nodes = 0;
};

class CudaModelRunner final : public ModelRunner {
 public:
  // `executor` is bound and allocated; both outlive the runner.
  CudaModelRunner(DeviceExecutor* executor, Queue* queue, int64_t vocab_size, CudaRunnerOptions options);
  ~CudaModelRunner() override;

  int32_t max_in_flight() const override { return kInFlight; }
  void launch(const Step& step) override;
  BatchResult wait() override;

  // Device and pinned bytes that the runner takes besides the graphs.
  int64_t bytes() const;
  // The same before there is one, within a few percent.
  static int64_t plan_bytes(const CudaRunnerOptions& options, int64_t vocab_size);
  const CudaRunnerCounters& counters() const { return counters_; }
  // Batch sizes of the graphs, ascending; a step takes the smallest that holds it.
  const std::vector<int64_t>& ladder() const { return ladder_; }
  // Records the graphs of every size for greedy sampling now rather than when a step first asks for them.
  void record_graphs();

  static std::vector<int64_t> make_ladder(int64_t max_seqs);

 private:
  static constexpr int32_t kInFlight = 2;
  struct Flight {
    std::unique_ptr<Event> done;
    int64_t num_rows = 0;
    bool sampled = false;
  };

  // All launches of a step but its uploads.
  void enqueue(const StepBatch& batch, const DeviceStep& step, const StepSizes& sizes,
               DeviceSampler::Path path);
  const Graph& graph_for(int64_t size, DeviceSampler::Path path);

  DeviceExecutor* executor_;
  Queue* queue_;
  CudaRunnerOptions options_;
  StepUpload upload_;
  DeviceSampler sampler_;
  std::vector<int64_t> ladder_;
  std::map<std::pair<int64_t, int>, Graph> graphs_;
  Flight flights_[kInFlight];
  int64_t num_launched_ = 0, num_waited_ = 0;
  CudaRunnerCounters counters_;
};

}  // namespace autodeploy::cuda
