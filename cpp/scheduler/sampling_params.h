// How the tokens of one request are chosen, and when it ends.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

namespace autodeploy {

inline constexpr int32_t kMaxLogprobs = 128;
inline constexpr int32_t kMaxTokenLists =
    1024;  // entries of stop_token_ids, eos_token_ids; logit_bias may name every token

struct SamplingParams {
  int64_t max_tokens = 16;   // tokens to generate, at least 1
  double temperature = 1.0;  // 0: greedy; else [1e-4, 100]
  int64_t top_k = 0;         // keep the k most likely tokens, ties at the k-th included; 0 or -1: all
  double top_p = 1.0;        // (0, 1]: keep the smallest set of most likely tokens with at least this mass
  double min_p = 0.0;        // [0, 1]: keep tokens at least this likely, relative to the most likely one
  double repetition_penalty =
      1.0;  // (0, 100]: tokens of prompt and output; logits > 0 are divided, others multiplied
  double presence_penalty = 0.0;   // [-2, 2]: subtracted once for tokens of the output
  double frequency_penalty = 0.0;  // [-2, 2]: subtracted for each occurrence in the output
  std::vector<std::pair<int64_t, double>> logit_bias;  // token id, [-100, 100] added to its logit
  int64_t min_tokens = 0;        // tokens before EOS and stop ids may come; at most max_tokens
  bool ignore_eos = false;       // go on after EOS ids (stop ids still end the request)
  std::optional<uint64_t> seed;  // reproduces the draws, whatever runs beside them
  int32_t logprobs = -1;         // -1: none; n >= 0: of the chosen token and the n most likely ones
  std::vector<int64_t> stop_token_ids, eos_token_ids;
};

// Bounds that a request is checked against.
struct RequestLimits {
  int64_t vocab_size = 0;
  int64_t max_seq_len = 0;  // prompt and output together
};

// Throws Error(kInvalidArgument) "[request] field: expected range, found value" for the first thing that is
// wrong.
void check_request(std::span<const int64_t> prompt, const SamplingParams& params,
                   const RequestLimits& limits);

}  // namespace autodeploy
