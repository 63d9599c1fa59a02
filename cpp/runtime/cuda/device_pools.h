// The memory behind pages and slots, on the device.
#pragma once

#include <vector>

#include "cache_manager/state_pools.h"
#include "runtime/cuda/device_api.h"

namespace autodeploy::cuda {

// One allocation for all states of a plan, laid out as HostStatePools does; zeroed.
class DeviceStatePools final : public StateCopier {
 public:
  // `queue` outlives the pools.
  DeviceStatePools(const CachePlan& plan, Queue* queue);
  // One per state of the plan, in order.
  const std::vector<StateMemory>& memory() const { return memory_; }
  int64_t bytes() const { return storage_.bytes(); }

  void copy_page(int32_t group, int32_t from, int32_t to) override;
  void copy_slot(int32_t from, int32_t to) override;

 private:
  void copy(int32_t state, int32_t from, int32_t to);

  Queue* queue_;
  std::vector<std::vector<int32_t>> group_states_;
  std::vector<int32_t> slot_states_;
  DeviceMemory storage_;
  std::vector<StateMemory> memory_;
};

}  // namespace autodeploy::cuda
