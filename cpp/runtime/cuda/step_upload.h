// Brings the arrays of a step to the device in one copy.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "core/step_batch.h"
#include "kernels/cuda/device_step.h"
#include "runtime/cuda/device_api.h"

namespace autodeploy::cuda {

// Sizes that the arrays of a step are laid out for.
struct StepSizes {
  int64_t tokens = 0, seqs = 0, rows = 0;
  int64_t extra = 0;  // bytes of the caller's that travel along
  bool operator==(const StepSizes&) const = default;
};

// The arrays' places depend on the sizes alone, so that a graph recorded for sizes finds them in every
// replay; the lists of pages, whose length differs from step to step, come last.
class StepUpload {
 public:
  // Room for the largest steps of a plan, with logits of at most max_rows rows and so many bytes besides.
  // `slots`: steps that may be on their way at the same time.
  StepUpload(const CachePlan& plan, int64_t max_rows, int64_t max_extra, int slots);

  // Writes the batch, filled up with null sequences to `sizes` (each one token, one row), into pinned memory
  // and puts its copy into the queue. token_rows: see Step::token_rows; empty where all tokens are known. The
  // result's max_kv_len is that of the batch. A slot's memory is free again when its copy has passed.
  DeviceStep put(const StepBatch& batch, std::span<const int32_t> token_rows, const StepSizes& sizes,
                 int slot, Queue& queue);

  // Where the arrays of a step of these sizes lie; sizes known at recording.
  DeviceStep layout(const StepSizes& sizes) const;
  // Of sizes.extra bytes: where they are written before put(), pinned, and where they arrive.
  uint8_t* extra(int slot) const { return pinned_[static_cast<size_t>(slot)].data(); }
  const uint8_t* extra() const { return device_.data(); }
  // [T] of the last put(), on the device.
  const int32_t* token_rows(const StepSizes& sizes) const;

  static int64_t plan_bytes(const CachePlan& plan, int64_t max_rows, int64_t max_extra);  // on the device
  int64_t bytes() const { return device_.bytes(); }
  int64_t pinned_bytes() const;

 private:
  struct Places;
  static Places places_of(const StepSizes& sizes, int64_t num_groups);
  Places places(const StepSizes& sizes) const;

  std::vector<int32_t> page_sizes_;  // of each group
  int64_t num_groups_, max_pages_;
  DeviceMemory device_;
  std::vector<PinnedMemory> pinned_;
};

}  // namespace autodeploy::cuda
