// What a kernel may bring to the second-level cache for the one that multiplies after it: memory would idle
// between the last bytes that this kernel asks for and the first that the next one does.
#pragma once

#include <cstdint>

namespace autodeploy::cuda {

struct NextWeights {
  const void* data = nullptr;  // 16-byte aligned; nullptr: none
  int64_t bytes = 0;
  int32_t parts = 1;  // equal pieces that are read from their starts at the same time: slices of a gate
  bool far = false;   // kernels that leave memory idle stand between
};

// Of kernels that can.
class BringsNextWeights {
 public:
  virtual ~BringsNextWeights() = default;
  virtual void set_next(const NextWeights& next) = 0;
};

}  // namespace autodeploy::cuda
