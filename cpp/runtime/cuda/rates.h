// What a device reaches at most, measured: the ceilings that kernels are seen beside.
#pragma once

#include <string>

#include "runtime/device_library.h"

namespace autodeploy::cuda {

// JSON: "copy_bytes_per_second" (read and written) of a copy on the device, and "operations_per_second" of a
// matrix product by this library's own `linear` with the name of its "kernel"; each the best of several.
// What was asked for stands beside them. Throws Error.
std::string measure_rates(int index, const RateOptions& options);

}  // namespace autodeploy::cuda
