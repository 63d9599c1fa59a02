// A user's job, from the queue to its last token.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "cache_manager/cache_manager.h"
#include "scheduler/sampling_params.h"

namespace autodeploy {

using RequestId = int64_t;

enum class FinishReason : uint8_t { kNone, kStop, kLength, kCancelled, kError };
// "stop", "length", "cancelled", "error"; nullptr for kNone.
const char* finish_reason_name(FinishReason reason);

struct TokenLogprob {
  int64_t token = -1;
  float logprob =
      0;  // natural logarithm, of the model's own distribution: before bias, penalties and temperature
};

// Of a generated token: its own, its rank (1: the most likely one) and the most likely tokens, most likely
// first.
struct ChosenLogprob {
  TokenLogprob chosen;
  int32_t rank = 0;
  std::vector<TokenLogprob> top;
};

// What one step brought to one request.
struct StepOutput {
  RequestId request_id = 0;
  std::vector<int64_t> new_token_ids;   // a token that ended the request included
  std::vector<ChosenLogprob> logprobs;  // one per new token where asked for
  FinishReason finish_reason = FinishReason::kNone;
  std::optional<int64_t> stop_token_id;  // the EOS or stop id that ended it
  std::string error;                     // for kError
};

struct Request {
  RequestId id = 0;
  SamplingParams params;
  std::vector<int64_t> tokens;  // the model's prefix, prompt, output; room for all of it is reserved
  int64_t prefix_len = 0;
  int64_t prompt_len = 0;    // the prefix included
  int64_t num_computed = 0;  // tokens whose states are in the caches

  // What the open steps bring, once they have passed.
  int32_t num_open_steps = 0;  // that it is part of
  int64_t num_scheduled = 0;   // num_computed then
  int32_t num_pending = 0;     // tokens that they generate
  int32_t pending_row = -1;    // row of the newest of these tokens in its step

  enum class Status : uint8_t { kWaiting, kRunning, kFinished };
  Status status = Status::kWaiting;
  bool cancelled = false;    // ends when the oldest open step that it is part of has passed
  SequenceId sequence = -1;  // while running, and until no open step has it

  int64_t len() const { return static_cast<int64_t>(tokens.size()); }
  int64_t num_generated() const { return len() - prompt_len; }
  // Pending tokens count in the following: what the next step may do.
  bool is_decode() const {
    return num_generated() + num_pending > 0 && num_scheduled == len() + num_pending - 1;
  }
  // Nothing is left to compute but what open steps do.
  bool fully_scheduled() const { return num_generated() + num_pending >= params.max_tokens; }
  // Tokens that the caches ever hold of it: the last one is never fed back.
  int64_t max_cached() const { return prompt_len + params.max_tokens - 1; }
  // What the user gave.
  std::span<const int64_t> prompt() const {
    return std::span<const int64_t>(tokens).subspan(static_cast<size_t>(prefix_len),
                                                    static_cast<size_t>(prompt_len - prefix_len));
  }
  std::span<const int64_t> generated() const { return std::span<const int64_t>(tokens).subspan(prompt_len); }
};

}  // namespace autodeploy
