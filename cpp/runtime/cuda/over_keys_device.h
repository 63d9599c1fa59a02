// over_keys on the device: runs a body for each sequence over a tile of its new tokens and its keys so far.
#pragma once

#include <memory>

#include "kernels/kernel.h"
#include "runtime/executor_choice.h"

namespace autodeploy::cuda {

// See make_over_keys of runtime/over_keys.h.
std::unique_ptr<Kernel> make_over_keys_on_device(const ChoiceContext& context,
                                                 const InstructionSpec& instruction, KernelChoice* choice);

}  // namespace autodeploy::cuda
