// Slots of sequences, and which tokens of a step are a sequence's.
#pragma once

#include <cstdint>

#include "core/state.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_step.h"

namespace autodeploy::cuda {

struct SlotStep {
  const int32_t *token_seq = nullptr, *query_start = nullptr, *slot = nullptr;
  const uint8_t* has_state = nullptr;

  SlotStep() = default;
  explicit SlotStep(const DeviceStep& s)
      : token_seq(s.token_seq), query_start(s.query_start), slot(s.slot), has_state(s.has_state) {}
};

// One component of a state with slots.
struct SlotComponent {
  uint8_t* data = nullptr;  // slot 0
  int64_t bytes = 0;        // from slot to slot

  SlotComponent() = default;
  SlotComponent(const StateMemory& memory, size_t component)
      : data(memory.data[component]), bytes(memory.bytes[component]) {}
  template <class T>
  AD_DEVICE T* of(int32_t slot) const {
    return reinterpret_cast<T*>(data + slot * bytes);
  }
};

}  // namespace autodeploy::cuda
