// Routing that is forced uniform, so that a mixture of experts with made-up weights is measured at the load
// that a trained router aims at.
#pragma once

#include <cstdint>

#include "runtime/program_spec.h"

namespace autodeploy {

// The program with every choice of experts replaced: where the ids of an `expert_linear` come from a `topk`
// or a `sort` of scores (through views and whatever computes integers from integers; the last one counts
// where scores are cut down in stages), that instruction becomes `topk.uniform` or `sort.uniform`. Its values
// stay what they are; its indices are distinct ones, each as likely as any other, drawn from the seed, the
// instruction, and the place, position and token of the row. Throws Error(kInvalidArgument) where the program
// has no experts, or ids come from elsewhere.
ProgramSpec with_uniform_routing(ProgramSpec program, uint64_t seed);

}  // namespace autodeploy
