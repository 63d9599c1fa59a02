// linear in half precision: few rows by the kernels that stream the weights, more by cuBLASLt, or by tiles of
// our own.
#pragma once

#include <memory>
#include <string>

#include "kernels/kernel.h"

namespace autodeploy::cuda {

std::unique_ptr<Kernel> make_linear_fast(const KernelSpec& spec, std::string* why);

}  // namespace autodeploy::cuda
