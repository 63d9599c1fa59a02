// Forms composites of neighbouring instructions that the device has kernels for
// (kernels/cuda/linear_fused.h, kernels/cuda/attention_tensor.h).
#pragma once

#include "runtime/program_spec.h"

namespace autodeploy::cuda {

// The same program with composites in the place of their parts, which they carry: where no kernel serves a
// composite, its parts run. Values that only composites see inside are no longer written.
//   rms_norm or add_rms_norm, linear    the norm's result is read by that linear
//   linear, region                      the linear's result is read by that region alone, as column slices
// and all three together;
//   rope, or two of the same tables, attention    that attention alone reads the turned queries and keys
ProgramSpec fuse(ProgramSpec program);

}  // namespace autodeploy::cuda
