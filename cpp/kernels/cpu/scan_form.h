// Kernels of recurrences that have two forms, for tests and measurements that compare them.
#pragma once

#include <memory>
#include <string>

#include "kernels/cpu/isa.h"
#include "kernels/kernel.h"

namespace autodeploy {

enum class ScanForm {
  kBest,    // whichever is faster, by the number of a sequence's tokens in the step
  kTokens,  // token by token
};

std::unique_ptr<Kernel> make_ssd(const KernelSpec& spec, std::string* why, Isa isa,
                                 ScanForm form = ScanForm::kBest);
std::unique_ptr<Kernel> make_gated_delta_rule(const KernelSpec& spec, std::string* why, Isa isa,
                                              ScanForm form = ScanForm::kBest);
std::unique_ptr<Kernel> make_linear_attention(const KernelSpec& spec, std::string* why, Isa isa,
                                              ScanForm form = ScanForm::kBest);
std::unique_ptr<Kernel> make_mlstm(const KernelSpec& spec, std::string* why, Isa isa,
                                   ScanForm form = ScanForm::kBest);

}  // namespace autodeploy
