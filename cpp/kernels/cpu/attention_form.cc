#include "kernels/cpu/attention_form.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/cpu/spec_check.h"

namespace autodeploy {
namespace {

using Shape = std::vector<int64_t>;

void append_key(const KeyValuePages& kv, int64_t at, const float* key) {
  const int64_t slot = at % kv.page_size;
  float* page = kv.key_page(at);
  if (!kv.in_panels()) {
    std::memcpy(page + slot * kv.key_len, key, static_cast<size_t>(kv.key_len) * sizeof(float));
    return;
  }
  float* lane = page + slot / kKeyPanel * kv.key_len * kKeyPanel + slot % kKeyPanel;
  for (int64_t c = 0; c < kv.key_len; ++c) lane[c * kKeyPanel] = key[c];
}

// The state: two components [heads, width] of as many heads.
void check_state(const SpecCheck& check, const StateSpec& state, AttentionForm* form) {
  const bool is_kv = state.kind == StateSpec::Kind::kPaged && state.components.size() == 2 &&
                     state.components[0].shape.size() == 2 && state.components[1].shape.size() == 2 &&
                     state.components[0].shape[0] == state.components[1].shape[0] &&
                     state.components[0].shape[0] >= 1;
  check.that(is_kv, "a paged state of k [heads, width] and v [heads, width]", "state '" + state.name + "'");
  check.that(state.group >= 0 && state.page_size > 0, "a state with a page group",
             "state '" + state.name + "' without one");
  form->kv_heads = state.components[0].shape[0];
  form->key_len = state.components[0].shape[1];
  form->value_len = state.components[1].shape[1];
  form->page_size = state.page_size;
  form->page_group = state.group;
}

void check_bias(const SpecCheck& check, const KernelSpec& spec, const Dim& tokens, AttentionForm* form) {
  const Dim heads = fixed(form->q_heads);
  form->has_sinks = spec.in[kSinks].present;
  form->token_sinks = form->has_sinks && spec.in[kSinks].shape.size() == 2;
  if (form->has_sinks) {
    const OperandSpec& sinks = *check.optional_input(kSinks, "sinks", form->token_sinks ? 2 : 1, 1);
    check.shape(sinks, "sinks",
                form->token_sinks ? std::vector<Dim>{tokens, heads} : std::vector<Dim>{heads});
  }
  form->has_slopes = spec.in[kSlopes].present;
  if (form->has_slopes) check.shape(*check.optional_input(kSlopes, "slopes", 1, 0), "slopes", {heads});
  if (const OperandSpec* table = check.optional_input(kBiasTable, "bias_table", 3, 1)) {
    form->reach = check.static_dim(*table, "bias_table", 2);
    check.that(form->reach <= INT32_MAX, "a bias_table of fewer distances", shape_text(table->shape));
    check.shape(*table, "bias_table", {tokens, heads, fixed(form->reach)});
  }
  const OperandSpec& lists = spec.in[kListedKeys];
  form->head_lists = lists.present && lists.shape.size() == 3;
  if (lists.present) {
    check.optional_input(kListedKeys, "indices", form->head_lists ? 3 : 2, 1);
    const Dim length = fixed(check.static_dim(lists, "indices", form->head_lists ? 2 : 1));
    check.shape(lists, "indices",
                form->head_lists ? std::vector<Dim>{tokens, fixed(form->kv_heads), length}
                                 : std::vector<Dim>{tokens, length});
    check.that(lists.dtype == DType::kI64, "indices of integers", std::string(dtype_name(lists.dtype)));
  }
}

}  // namespace

AttentionForm check_attention(const KernelSpec& spec) {
  AttentionForm form;
  const SpecCheck check(spec);
  check.arity(kAttentionOperands, 1, 1);
  check_state(check, spec.states[0], &form);
  const OperandSpec &q = check.input(0, "q", 3, 1), &out = check.output(0, "out", 3, 1);
  const OperandSpec *k = check.optional_input(1, "k", 3, 1), *v = check.optional_input(2, "v", 3, 1);
  check.that((k == nullptr) == (v == nullptr), "keys and values, or neither", "one of them");
  form.q_heads = check.static_dim(q, "q", 1);
  form.appends = k != nullptr;
  const Dim tokens = q.shape[0], kv_heads = fixed(form.kv_heads), key_len = fixed(form.key_len);
  if (k && v) {
    check.shape(*k, "k", {tokens, kv_heads, key_len});
    check.shape(*v, "v", {tokens, kv_heads, fixed(form.value_len)});
  }
  check.that(form.q_heads % form.kv_heads == 0, "query heads in whole groups of key heads",
             shape_text(q.shape) + " and " + std::to_string(form.kv_heads));
  form.group = form.q_heads / form.kv_heads;
  check.shape(q, "q", {tokens, fixed(form.q_heads), key_len});
  check.shape(out, "out", {tokens, fixed(form.q_heads), fixed(form.value_len)});
  form.scale = static_cast<float>(check.finite("scale"));
  form.softcap = static_cast<float>(check.finite("softcap"));
  check.that(form.softcap >= 0, "'softcap' of at least 0", std::to_string(form.softcap));
  form.causal = spec.attrs.boolean("causal");
  form.window = check.integer("window", 0, INT32_MAX);
  form.chunk = check.integer("chunk", 0, INT32_MAX);
  check_bias(check, spec, tokens, &form);
  return form;
}

bool serves_float32_attention(const KernelSpec& spec, std::string* why) {
  if (!serves_float32(spec, {0, 1, 2, kSinks, kSlopes, kBiasTable}, why)) return false;
  for (const StateSpec& s : spec.states) {
    for (const StateComponentSpec& c : s.components) {
      if (c.dtype == DType::kF32) continue;
      if (why) *why = "serves float32 caches only, found " + std::string(dtype_name(c.dtype));
      return false;
    }
  }
  return true;
}

KeyValuePages pages_of(const AttentionForm& form, const KernelCall& call, int64_t seq, int64_t kv_head) {
  const StateMemory& memory = *call.states[0];
  const StepBatch::PageTable& table = call.batch->page_tables[static_cast<size_t>(form.page_group)];
  KeyValuePages kv;
  kv.pages = table.pages.data() + seq * table.max_pages;
  kv.page_size = form.page_size;
  kv.k = memory.data[0] + kv_head * form.page_size * form.key_len * 4;
  kv.v = memory.data[1] + kv_head * form.page_size * form.value_len * 4;
  kv.k_bytes = memory.bytes[0];
  kv.v_bytes = memory.bytes[1];
  kv.key_len = form.key_len;
  kv.value_len = form.value_len;
  return kv;
}

void append_keys(const AttentionForm& form, const KernelCall& call) {
  const StepBatch& batch = *call.batch;
  const TensorView &k = call.in[1], &v = call.in[2];
  call.pool->parallel_for(batch.num_tokens, 32, [&](int64_t begin, int64_t end, int) {
    int64_t seq =
        std::upper_bound(batch.query_start.begin(), batch.query_start.begin() + batch.num_seqs, begin) -
        batch.query_start.begin() - 1;
    for (int64_t token = begin; token < end; ++token) {
      while (token >= batch.query_start[seq + 1]) ++seq;
      const int64_t at = batch.kv_len[seq] - (batch.query_start[seq + 1] - token);
      for (int64_t head = 0; head < form.kv_heads; ++head) {
        const KeyValuePages kv = pages_of(form, call, seq, head);
        append_key(kv, at, k.as<const float>() + token * k.stride[0] + head * k.stride[1]);
        std::memcpy(kv.value(at), v.as<const float>() + token * v.stride[0] + head * v.stride[1],
                    static_cast<size_t>(form.value_len) * sizeof(float));
      }
    }
  });
}

}  // namespace autodeploy
