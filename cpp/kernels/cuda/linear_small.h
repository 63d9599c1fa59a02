// linear for 1 to kMaxSmallRows rows (linear_small_kernel.h), by the type of its elements and what follows
// it.
#pragma once

#include "core/dtype.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/linear_small_kernel.h"

namespace autodeploy::cuda {

// Defined for StoreLinear, and for the epilogues of linear_epilogue.h.

// Once, before the first run: false where the device has too little shared memory.
template <class Epilogue>
bool prepare_small_linear();

// args.rows is 1 to kMaxSmallRows, and norms() where args.norm is on. Launch shape by choose_small_linear().
template <class Epilogue>
void run_small_linear(DType dtype, const SmallLinearArgs& args, const Epilogue& epilogue, int processors,
                      Stream stream);

// Whether so many rows can be normed by the kernel that multiplies them.
bool small_linear_norms(int64_t rows, int64_t cols);

}  // namespace autodeploy::cuda
