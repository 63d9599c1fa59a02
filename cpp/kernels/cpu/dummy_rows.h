// Made-up weights in the formats of checkpoints (kernels/dummy_value.h).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/dummy_value.h"

namespace autodeploy {

// Elements [first, first + n) of a param, as a checkpoint stores them. For block formats `first` and `n` are
// multiples of 32, and the fill has the quants of the format: shift leaves its bits, factor is 1, zero is the
// middle, center 0.
void write_dummy(const DummyFill& fill, Format format, int64_t first, int64_t n, uint8_t* dst);

}  // namespace autodeploy
