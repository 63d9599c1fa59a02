#include "runtime/cuda/device_pools.h"

namespace autodeploy::cuda {

DeviceStatePools::DeviceStatePools(const CachePlan& plan, Queue* queue)
    : queue_(queue),
      slot_states_(plan.slots.states),
      storage_(plan.bytes(), "caches"),
      memory_(place_states(plan, storage_.data())) {
  for (const PageGroupPlan& group : plan.groups) group_states_.push_back(group.states);
  queue->fill(storage_.data(), 0, storage_.bytes());
}

void DeviceStatePools::copy_page(int32_t group, int32_t from, int32_t to) {
  for (int32_t state : group_states_[static_cast<size_t>(group)]) copy(state, from, to);
}

void DeviceStatePools::copy_slot(int32_t from, int32_t to) {
  for (int32_t state : slot_states_) copy(state, from, to);
}

void DeviceStatePools::copy(int32_t state, int32_t from, int32_t to) {
  const StateMemory& memory = memory_[static_cast<size_t>(state)];
  for (size_t c = 0; c < memory.data.size(); ++c) {
    queue_->copy_on_device(memory.data[c] + to * memory.bytes[c], memory.data[c] + from * memory.bytes[c],
                           memory.bytes[c]);
  }
}

}  // namespace autodeploy::cuda
