#include "scheduler/sampling_params.h"

#include <string>

#include "core/error.h"

namespace autodeploy {
namespace {

// Written so that NaN fails.
void check_range(const char* field, double value, double low, double high, const char* hint = "") {
  AD_CHECK(value >= low && value <= high, ErrorKind::kInvalidArgument, "[request] ", field,
           ": expected a value in [", low, ", ", high, "]", hint, ", found ", value);
}

void check_token(const char* field, int64_t token, int64_t vocab_size) {
  AD_CHECK(token >= 0 && token < vocab_size, ErrorKind::kInvalidArgument, "[request] ", field,
           ": expected token ids in [0, ", vocab_size, "), found ", token);
}

// Ids beyond the vocabulary are harmless here (some generation configs name them): they never come.
void check_ids(const char* field, const std::vector<int64_t>& ids) {
  AD_CHECK(ids.size() <= kMaxTokenLists, ErrorKind::kInvalidArgument, "[request] ", field,
           ": expected at most ", kMaxTokenLists, " token ids, found ", ids.size());
  for (int64_t id : ids) {
    AD_CHECK(id >= 0, ErrorKind::kInvalidArgument, "[request] ", field, ": expected token ids >= 0, found ",
             id);
  }
}

void check_sampling(const SamplingParams& p, int64_t vocab_size) {
  AD_CHECK(p.temperature == 0 || (p.temperature >= 1e-4 && p.temperature <= 100), ErrorKind::kInvalidArgument,
           "[request] temperature: expected 0 (greedy) or a value in [0.0001, 100], found ", p.temperature);
  AD_CHECK(p.top_k >= -1, ErrorKind::kInvalidArgument,
           "[request] top_k: expected a value >= 1, or 0 or -1 for all tokens, found ", p.top_k);
  AD_CHECK(p.top_p > 0 && p.top_p <= 1, ErrorKind::kInvalidArgument,
           "[request] top_p: expected a value in (0, 1], found ", p.top_p);
  check_range("min_p", p.min_p, 0, 1);
  AD_CHECK(p.repetition_penalty > 0 && p.repetition_penalty <= 100, ErrorKind::kInvalidArgument,
           "[request] repetition_penalty: expected a value in (0, 100], found ", p.repetition_penalty);
  check_range("presence_penalty", p.presence_penalty, -2, 2);
  check_range("frequency_penalty", p.frequency_penalty, -2, 2);
  for (const auto& [token, bias] : p.logit_bias) {
    check_token("logit_bias", token, vocab_size);
    check_range("logit_bias", bias, -100, 100);
  }
  AD_CHECK(static_cast<int64_t>(p.logit_bias.size()) <= vocab_size, ErrorKind::kInvalidArgument,
           "[request] logit_bias: expected at most ", vocab_size, " entries, found ", p.logit_bias.size());
  AD_CHECK(p.min_tokens >= 0 && p.min_tokens <= p.max_tokens, ErrorKind::kInvalidArgument,
           "[request] min_tokens: expected a value in [0, max_tokens = ", p.max_tokens, "], found ",
           p.min_tokens);
  AD_CHECK(p.logprobs >= -1 && p.logprobs <= kMaxLogprobs, ErrorKind::kInvalidArgument,
           "[request] logprobs: expected none or a value in [0, ", kMaxLogprobs, "], found ", p.logprobs);
  check_ids("stop_token_ids", p.stop_token_ids);
  check_ids("eos_token_ids", p.eos_token_ids);
}

}  // namespace

void check_request(std::span<const int64_t> prompt, const SamplingParams& params,
                   const RequestLimits& limits) {
  AD_CHECK(!prompt.empty(), ErrorKind::kInvalidArgument,
           "[request] prompt: expected at least 1 token, found an empty prompt");
  const auto prompt_len = static_cast<int64_t>(prompt.size());
  AD_CHECK(prompt_len < limits.max_seq_len, ErrorKind::kInvalidArgument,
           "[request] prompt: expected at most ", limits.max_seq_len - 1, " tokens (max_seq_len - 1), found ",
           prompt_len, "; shorten it or raise max_seq_len");
  for (int64_t token : prompt) check_token("prompt", token, limits.vocab_size);
  const int64_t room = limits.max_seq_len - prompt_len;
  AD_CHECK(params.max_tokens >= 1 && params.max_tokens <= room, ErrorKind::kInvalidArgument,
           "[request] max_tokens: expected a value in [1, ", room, "] (max_seq_len ", limits.max_seq_len,
           " less ", prompt_len, " tokens of the prompt), found ", params.max_tokens);
  check_sampling(params, limits.vocab_size);
}

}  // namespace autodeploy
