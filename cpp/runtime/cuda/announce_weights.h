// Tells kernels which weights are read next.
#pragma once

#include <span>

#include "runtime/executor.h"
#include "runtime/executor_choice.h"
#include "runtime/program_spec.h"

namespace autodeploy::cuda {

// To each kernel that can bring weights (kernels/cuda/next_weights.h) those of the next linear that follows
// it within a few instructions.
void announce_weights(std::span<ChosenKernel> kernels, const ProgramSpec& program,
                      std::span<const ParamBinding> params);

}  // namespace autodeploy::cuda
