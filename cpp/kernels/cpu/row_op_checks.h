// What instructions of token-wise ops must look like, on any backend. Each throws Error(kInvalidArtifact)
// where one does not.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"

namespace autodeploy {

void check_select_rows(const KernelSpec& spec);
void check_known_length(const KernelSpec& spec);
int64_t check_rope(const KernelSpec& spec);  // half of the rotary dim

}  // namespace autodeploy
