// A Program on the device, step by step: for verification and tests.
#pragma once

#include <memory>
#include <string>

#include "runtime/device_library.h"
#include "runtime/step_executor.h"

namespace autodeploy::cuda {

// Loads an artifact with weights and caches of its own; `plan` plans the caches for the program's states.
std::unique_ptr<StepExecutor> open_step_executor(const std::string& artifact_dir,
                                                 const DeviceExecutorOptions& options,
                                                 FunctionRef<CachePlan(std::vector<StateSpec>&)> plan);

}  // namespace autodeploy::cuda
