// Regions of a Program: JSON -> RegionProgram, checked.
#pragma once

#include <string>

#include "kernels/generic/region.h"
#include "runtime/program_fields.h"

namespace autodeploy::program_format {

RegionProgram read_region(const Json& j, const std::string& where, DType act, bool lenient);

}  // namespace autodeploy::program_format
