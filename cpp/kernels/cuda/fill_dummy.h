// Makes weights up on the device (kernels/dummy_value.h).
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cuda/device.h"
#include "kernels/dummy_value.h"

namespace autodeploy::cuda {

// Writes elements [first, first + n) of a param whose element 0 lies at `param`, 64-byte aligned.
void fill_dummy(Stream stream, const DummyFill& fill, void* param, DType type, int64_t first, int64_t n);

}  // namespace autodeploy::cuda
