// States that outlive a step: declarations, and the memory behind them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace autodeploy {

struct StateComponentSpec {
  std::string name;
  std::vector<int64_t> shape;  // per token (paged) or per sequence (slot, conv)
  DType dtype = DType::kF32;
};

// Declared by the Program; the cache manager builds its pools from these alone and fills group and page_size.
struct StateSpec {
  enum class Kind { kPaged, kSlot, kConv };
  std::string name;
  Kind kind = Kind::kPaged;
  int64_t window = 0, chunk = 0;
  std::vector<StateComponentSpec> components;
  int32_t group = -1;     // index into StepBatch::page_tables, paged states only
  int32_t page_size = 0;  // tokens per page, paged states only
};

// Memory of one state: component c of page or slot i starts at data[c] + i * bytes[c]. The layout inside a
// page or a slot belongs to the kernels of the op that owns the state.
struct StateMemory {
  std::vector<uint8_t*> data;
  std::vector<int64_t> bytes;
};

}  // namespace autodeploy
