// Chooses a kernel for each instruction, or takes a composite apart where none serves it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/kernel.h"
#include "runtime/executor.h"
#include "runtime/program_spec.h"

namespace autodeploy {

struct ChosenKernel {
  const InstructionSpec* instruction = nullptr;  // of the Program, or a part of one
  std::unique_ptr<Kernel> kernel;
  KernelChoice choice;
};

struct ChoiceContext {
  const ProgramSpec& program;
  const std::vector<RegionProgram>& regions;  // of the outer program where this one is a body's
  std::span<const ParamBinding> params;
  std::span<const StateSpec> states;
  const ExecutorOptions& options;
  const BodySpec* body = nullptr;  // whose program this is
};

// The final instruction list. Throws Error(kUnsupported) naming the instruction that nothing can run, with
// every kernel's reason.
std::vector<ChosenKernel> choose_kernels(const ChoiceContext& context);

}  // namespace autodeploy
