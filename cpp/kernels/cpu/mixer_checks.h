// What instructions of token mixers must look like, on any backend. Each throws Error(kInvalidArtifact) where
// one does not. (Those of attention: attention_form.h.)
#pragma once

#include "kernels/kernel.h"

namespace autodeploy {

void check_causal_conv1d(const KernelSpec& spec);
void check_window(const KernelSpec& spec);
void check_ssd(const KernelSpec& spec);
void check_linear_attention(const KernelSpec& spec);
void check_linear_scan(const KernelSpec& spec);
void check_wkv(const KernelSpec& spec);
void check_mlstm(const KernelSpec& spec);
void check_selective_scan(const KernelSpec& spec);
void check_gated_delta_rule(const KernelSpec& spec);

}  // namespace autodeploy
