// over_keys: runs a body for each sequence over a tile of its new tokens and all of its keys so far.
#pragma once

#include <memory>

#include "kernels/kernel.h"
#include "runtime/executor_choice.h"

namespace autodeploy {

// The kernel of an `over_keys` instruction, with kernels chosen for its body and the tile's size such that
// the body's values stay small at the longest sequence. Fills the choice. Throws as choose_kernels does.
std::unique_ptr<Kernel> make_over_keys(const ChoiceContext& context, const InstructionSpec& instruction,
                                       KernelChoice* choice);

}  // namespace autodeploy
