// attention on tensor cores, and a composite of it with the rotary embeddings before it, which the loader
// forms where this kernel takes it:
//
//   op               in                          out   states
//   rope+attention   q, k, v, cos, sin, sinks?   out   attention's
//
// of  q' = rope(q, cos, sin), k' = rope(k, cos, sin), out = attention(q', k', v, sinks), where q' and k' are
// read by that attention alone, both ropes have the same tables, cos and sin [T, R2], and the same
// `interleaved`, and the attention has no slopes, bias_table and indices. Operands are those of the parts
// (docs/program.md): q [T, Hq, D], k [T, Hkv, D] and v [T, Hkv, Dv] are views with any strides of tokens and
// heads. Attributes: those of attention
// (`scale`, `causal`, `window`, `chunk`, `softcap`), and `interleaved`; the first 2 * R2 channels turn. q'
// and k' are rounded as they are between the parts. `out` must lie apart from all inputs.
#pragma once

#include <memory>
#include <string>

#include "kernels/kernel.h"

namespace autodeploy::cuda {

std::unique_ptr<Kernel> make_attention_tensor(const KernelSpec& spec, std::string* why);
std::unique_ptr<Kernel> make_rope_attention(const KernelSpec& spec, std::string* why);

}  // namespace autodeploy::cuda
