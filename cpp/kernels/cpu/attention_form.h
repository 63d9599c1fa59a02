// What the kernels of attention have in common: an instruction's checked form, where keys and values lie, and
// appending them.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cpu/attention_tile.h"
#include "kernels/kernel.h"

namespace autodeploy {

// Operands, in order.
constexpr size_t kAttentionOperands = 7, kSinks = 3, kSlopes = 4, kBiasTable = 5, kListedKeys = 6;

struct AttentionForm {
  int64_t q_heads = 0, kv_heads = 0, key_len = 0, value_len = 0;
  int64_t group = 0;     // query heads of a key head
  bool appends = false;  // false: the state holds the step's keys and values already
  bool causal = true;
  bool token_sinks = false;  // sinks [T, Hq], not [Hq]
  bool head_lists = false;   // indices [T, Hkv, n], not [T, n]
  bool has_sinks = false, has_slopes = false;
  int64_t window = 0, chunk = 0;
  int64_t reach = 0;  // distances of the bias table, 0 without one
  int64_t page_size = 0;
  int32_t page_group = 0;
  float scale = 0, softcap = 0;

  bool biased() const { return has_slopes || reach > 0; }

  // Keys [first_key, end_key) are those that a query may see.
  int64_t first_key(int64_t query) const {
    int64_t first = window > 0 && query - window + 1 > 0 ? query - window + 1 : 0;
    if (chunk > 0 && query / chunk * chunk > first) first = query / chunk * chunk;
    return first;
  }
  int64_t end_key(int64_t query, int64_t kv_len) const {
    int64_t end = causal ? query + 1 : kv_len;
    if (chunk > 0 && (query / chunk + 1) * chunk < end) end = (query / chunk + 1) * chunk;
    return end;
  }

  const float* sink(const KernelCall& call, int64_t token, int64_t head) const {
    if (!has_sinks) return nullptr;
    const TensorView& sinks = call.in[kSinks];
    const float* of_token = sinks.as<const float>() + (token_sinks ? token * sinks.stride[0] : 0);
    return of_token + head * sinks.stride[token_sinks ? 1 : 0];
  }
  float slope(const KernelCall& call, int64_t head) const {
    if (!has_slopes) return 0;
    const TensorView& slopes = call.in[kSlopes];
    return slopes.as<const float>()[head * slopes.stride[0]];
  }
  // [reach], or nullptr.
  const float* table(const KernelCall& call, int64_t token, int64_t head) const {
    if (reach == 0) return nullptr;
    const TensorView& table = call.in[kBiasTable];
    return table.as<const float>() + token * table.stride[0] + head * table.stride[1];
  }
};

// Throws Error(kInvalidArtifact) where the instruction is wrong.
AttentionForm check_attention(const KernelSpec& spec);
// Whether operands, result and caches are float32; else says so in *why.
bool serves_float32_attention(const KernelSpec& spec, std::string* why);

KeyValuePages pages_of(const AttentionForm& form, const KernelCall& call, int64_t seq, int64_t kv_head);
// Puts the step's keys and values into the sequences' pages.
void append_keys(const AttentionForm& form, const KernelCall& call);

}  // namespace autodeploy
