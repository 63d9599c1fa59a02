// linear for 1 to kMaxSmallRows rows (linear_small_kernel.h), by the type of its elements.
#pragma once

#include <string>

#include "core/dtype.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/linear_small_kernel.h"

namespace autodeploy::cuda {

// Once, before the first run: false where the device has too little shared memory.
bool prepare_small_linear();

// Rows beyond 1 .. kMaxSmallRows are not served. Launch shape by choose_small_linear().
void run_small_linear(DType dtype, const SmallLinearArgs& args, int processors, Stream stream);

}  // namespace autodeploy::cuda
