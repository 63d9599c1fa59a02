// attention over lists of keys: each token gathers the keys that its list names, and no others.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/attention_form.h"
#include "kernels/cpu/spec_check.h"

namespace autodeploy {
namespace {

constexpr int64_t kTokensAtOnce = 4;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

class ListedAttention final : public Kernel {
 public:
  explicit ListedAttention(const KernelSpec& spec) : form_(check_attention(spec)) {
    length_ = spec.in[kListedKeys].shape.back().constant;
    threads_ = spec.num_threads;
    // Per thread: which keys were met, a query, scores, and the keys they belong to.
    met_words_ = (std::max<int64_t>(spec.max_seq_len, 1) + 63) / 64;
    scratch_bytes_ = round_up(8 * met_words_ + 8 * length_ + 4 * length_ + 4 * form_.key_len, 64);
  }

  const char* name() const override { return "attention.listed"; }
  int64_t workspace_bytes() const override { return threads_ * scratch_bytes_; }

  void run(const KernelCall& call) const override {
    if (form_.appends) append_keys(form_, call);
    call.pool->parallel_for(
        call.batch->num_tokens, kTokensAtOnce, [&](int64_t begin, int64_t end, int thread) {
          const StepBatch& batch = *call.batch;
          int64_t seq =
              std::upper_bound(batch.query_start.begin(), batch.query_start.begin() + batch.num_seqs, begin) -
              batch.query_start.begin() - 1;
          for (int64_t token = begin; token < end; ++token) {
            while (token >= batch.query_start[seq + 1]) ++seq;
            for (int64_t head = 0; head < form_.kv_heads; ++head) attend(call, seq, token, head, thread);
          }
        });
  }

 private:
  // All query heads of one key head.
  void attend(const KernelCall& call, int64_t seq, int64_t token, int64_t kv_head, int thread) const {
    uint8_t* scratch = call.workspace + thread * scratch_bytes_;
    uint64_t* met = reinterpret_cast<uint64_t*>(scratch);
    int64_t* keys = reinterpret_cast<int64_t*>(met + met_words_);
    float* scores = reinterpret_cast<float*>(keys + length_);
    float* query = scores + length_;
    const int64_t kv_len = call.batch->kv_len[seq];
    const int64_t at = kv_len - (call.batch->query_start[seq + 1] - token);
    const int64_t count = gather(call, token, kv_head, at, kv_len, met, keys);
    const KeyValuePages kv = pages_of(form_, call, seq, kv_head);
    for (int64_t h = kv_head * form_.group; h < (kv_head + 1) * form_.group; ++h) {
      const TensorView &q = call.in[0], &out = call.out[0];
      const float* from = q.as<const float>() + token * q.stride[0] + h * q.stride[1];
      for (int64_t c = 0; c < form_.key_len; ++c) query[c] = from[c] * form_.scale;
      const float* sink = form_.sink(call, token, h);
      float top = sink ? *sink : -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < count; ++i) {
        scores[i] = score(call, kv, query, token, h, at, keys[i]);
        top = std::max(top, scores[i]);
      }
      float* to = out.as<float>() + token * out.stride[0] + h * out.stride[1];
      std::memset(to, 0, static_cast<size_t>(form_.value_len) * sizeof(float));
      if (count == 0) continue;
      float total = sink ? std::exp(*sink - top) : 0.0f;
      for (int64_t i = 0; i < count; ++i) {
        const float weight = std::exp(scores[i] - top);
        total += weight;
        const float* value = kv.value(keys[i]);
        for (int64_t c = 0; c < form_.value_len; ++c) to[c] += weight * value[c];
      }
      for (int64_t c = 0; c < form_.value_len; ++c) to[c] /= total;
    }
  }

  // The keys of a list that a token may see, each once; returns how many.
  int64_t gather(const KernelCall& call, int64_t token, int64_t kv_head, int64_t at, int64_t kv_len,
                 uint64_t* met, int64_t* keys) const {
    const TensorView& lists = call.in[kListedKeys];
    const int64_t* list = lists.as<const int64_t>() + token * lists.stride[0];
    if (form_.head_lists) list += kv_head * lists.stride[1];
    const int64_t low = form_.first_key(at), high = std::min(form_.end_key(at, kv_len), kv_len);
    std::memset(met, 0, static_cast<size_t>(std::min((kv_len + 63) / 64, met_words_)) * 8);
    int64_t count = 0;
    for (int64_t i = 0; i < length_; ++i) {
      const int64_t key = list[i];
      if (key < low || key >= high) continue;
      const uint64_t bit = uint64_t{1} << (key % 64);
      if (met[key / 64] & bit) continue;
      met[key / 64] |= bit;
      keys[count++] = key;
    }
    return count;
  }

  float score(const KernelCall& call, const KeyValuePages& kv, const float* query, int64_t token,
              int64_t head, int64_t at, int64_t key) const {
    const int64_t slot = key % kv.page_size;
    const float* from = kv.key_page(key);
    const int64_t step = kv.in_panels() ? kKeyPanel : 1;
    from += kv.in_panels() ? slot / kKeyPanel * kv.key_len * kKeyPanel + slot % kKeyPanel : slot * kv.key_len;
    float sum = 0;
    for (int64_t c = 0; c < form_.key_len; ++c) sum += query[c] * from[c * step];
    if (form_.softcap != 0) sum = form_.softcap * std::tanh(sum / form_.softcap);
    sum += form_.slope(call, head) * static_cast<float>(key - at);
    const int64_t distance = at - key;
    if (distance >= 0 && distance < form_.reach) sum += form_.table(call, token, head)[distance];
    return sum;
  }

  AttentionForm form_;
  int64_t length_ = 0, threads_ = 1, met_words_ = 0, scratch_bytes_ = 0;
};

}  // namespace

std::unique_ptr<Kernel> make_attention_listed(const KernelSpec& spec, std::string* why) {
  if (spec.in.size() <= kListedKeys || !spec.in[kListedKeys].present) {
    if (why) *why = "serves lists of keys only, found none";
    return nullptr;
  }
  if (!serves_float32_attention(spec, why)) return nullptr;
  return std::make_unique<ListedAttention>(spec);
}

}  // namespace autodeploy
