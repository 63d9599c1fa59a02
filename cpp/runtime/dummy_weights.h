// Weights that are made up, so that a model can run, and be measured, without its checkpoint.
#pragma once

#include <cstdint>

#include "runtime/weight_program.h"

namespace autodeploy {

// The weight program with every checkpoint tensor made up: the same numbers for the same seed, names and
// shapes on every machine. Sources that are read no more are left out; constants of the artifact stay what
// they are, since indices and masks are among them.
//
// What a param is like follows from its shape and format. Matrices are uniform around 0 with a deviation of
// at most 1 / sqrt(length of a row), so that activations stay as large as they are; vectors (scales and
// biases) lie near 1, integers are 0 and booleans true. A small param that is computed from tensors is
// computed from made-up ones, so that it keeps its sign and range; a large one is made up itself. Each
// segment of a param has its format.
WeightProgram with_dummy_weights(WeightProgram weights, uint64_t seed);

}  // namespace autodeploy
