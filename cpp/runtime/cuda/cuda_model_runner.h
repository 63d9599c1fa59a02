// Runs steps on the device: decode-only steps as replayed graphs, others launch by launch.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/cuda/device_executor.h"
#include "runtime/cuda/device_sampler.h"
#include "runtime/cuda/step_clock.h"
#include "runtime/cuda/step_upload.h"
#include "scheduler/model_runner.h"

namespace autodeploy::cuda {

class CudaModelRunner final : public ModelRunner {
 public:
  // `executor` is bound and allocated for the plan's limits; it and `queue` outlive the runner. `device`:
  // index. `time_steps`: fill in the times of stats().
  CudaModelRunner(DeviceExecutor* executor, Queue* queue, int device, int64_t vocab_size,
                  const CachePlan& plan, bool time_steps = false);
  ~CudaModelRunner() override;

  int32_t max_in_flight() const override { return kInFlight; }
  void launch(const Step& step) override;
  BatchResult wait() override;
  RunnerStats stats() const override;

  // Bytes that the runner takes on the device besides the graphs, and pinned on the host.
  int64_t bytes() const { return upload_.bytes() + sampler_.bytes(); }
  int64_t pinned_bytes() const { return upload_.pinned_bytes() + sampler_.pinned_bytes(); }
  // bytes() of a runner that is not there yet.
  static int64_t plan_bytes(const CachePlan& plan, int64_t vocab_size);
  // Batch sizes of the graphs, ascending; a step takes the smallest that holds it.
  const std::vector<int64_t>& ladder() const { return ladder_; }
  static std::vector<int64_t> make_ladder(int64_t max_seqs);

 private:
  static constexpr int32_t kInFlight = 2;
  struct Flight {
    std::unique_ptr<Event> done;
    int64_t num_rows = 0;
  };

  // All launches of a step but its uploads.
  void enqueue(const StepBatch& batch, const DeviceStep& step, const StepSizes& sizes,
               DeviceSampler::Path path);
  const Graph& graph_for(int64_t size, DeviceSampler::Path path);
  void put(const Step& step, int slot);

  DeviceExecutor* executor_;
  Queue* queue_;
  const int device_;
  const int64_t max_seq_len_;
  StepUpload upload_;
  DeviceSampler sampler_;
  std::vector<int64_t> ladder_;
  std::map<std::pair<int64_t, int>, Graph> graphs_;
  Flight flights_[kInFlight];
  int64_t num_launched_ = 0, num_waited_ = 0;
  std::optional<StepClock> clock_;  // where steps are timed
  std::atomic<int64_t> num_decode_steps_ = 0, num_replayed_steps_ = 0;
};

}  // namespace autodeploy::cuda
