// What an executor checks before it binds a program and runs a step; each throws Error.
#pragma once

#include <span>
#include <vector>

#include "runtime/executor.h"

namespace autodeploy {

void check_options(const ExecutorOptions& options);
void check_params(const ProgramSpec& program, std::span<const ParamBinding> params, bool on_device);
void check_states(const ProgramSpec& program, const std::vector<StateSpec>& states,
                  std::span<const StateMemory> memory);
// The sizes of a step and of its arrays.
void check_batch(const StepBatch& batch, const ExecutorOptions& options);

}  // namespace autodeploy
