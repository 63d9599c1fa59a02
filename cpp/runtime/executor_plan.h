// Every byte and every choice of an executor, in words.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "runtime/block.h"
#include "runtime/executor.h"

namespace autodeploy {

// See StepExecutor::plan_json.
std::string executor_plan_json(const ProgramSpec& program, const ExecutorOptions& options,
                               std::span<const ParamBinding> bindings,
                               const std::vector<StateSpec>& state_specs, const Block& block);

}  // namespace autodeploy
