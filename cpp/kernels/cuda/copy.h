// Copies from any layout to any other.
#pragma once

#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

// Copies src to dst, which have one shape and dtype and do not overlap.
void copy_strided(const TensorView& dst, const TensorView& src, Stream stream);

}  // namespace autodeploy::cuda
