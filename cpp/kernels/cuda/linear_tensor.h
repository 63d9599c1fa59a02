// linear for many rows (linear_tensor_kernel.h), by the type of its elements.
#pragma once

#include "core/dtype.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/linear_tensor_kernel.h"

namespace autodeploy::cuda {

// Once, before the first run: false where the device has too little shared memory.
bool prepare_tensor_linear();

// args.splits and args.partial are filled in; `workspace` has tensor_linear_workspace() bytes. With
// args.order, for expert_linear, there is no workspace.
void run_tensor_linear(DType dtype, TensorLinearArgs args, int processors, uint8_t* workspace, Stream stream);

// For up to so many rows.
int64_t tensor_linear_workspace(int64_t max_rows, int64_t cols, int64_t outputs, int processors);

// Whether results can be stored two by two.
inline bool stores_pairs(const DeviceRows& y, int64_t outputs) {
  bool even = outputs % 2 == 0 && reinterpret_cast<uintptr_t>(y.data) % 4 == 0;
  for (int d = 0; d < y.dims; ++d) even = even && (y.shape[d] <= 1 || y.stride[d] % 2 == 0);
  return even;
}

}  // namespace autodeploy::cuda
