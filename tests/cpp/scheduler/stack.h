// A FakeStack with its loop, and what came out of it.
#pragma once

#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "fake_runner.h"

namespace autodeploy::testing_fakes {

inline constexpr CacheLimits kLimits{
    .max_seq_len = 64, .max_num_seqs = 4, .max_batch_tokens = 16, .page_size = 4};

inline std::vector<int64_t> prompt_of(int64_t len, int64_t salt = 0) {
  std::vector<int64_t> prompt;
  for (int64_t i = 0; i < len; ++i) prompt.push_back((i * 37 + salt * 11) % 97);
  return prompt;
}

inline SamplingParams params_of(int64_t max_tokens) {
  SamplingParams params;
  params.max_tokens = max_tokens;
  params.seed = 0;
  return params;
}

struct Stack : FakeStack {
  explicit Stack(FakeModel model = {}, CacheLimits limits = kLimits, std::span<const int64_t> prefix = {})
      : FakeStack(model, limits, prefix), loop(make_loop()) {}

  // One step by the loop; collects what came up.
  StepStatus step() {
    const StepStatus status = loop->step();
    collect();
    scheduler->audit();
    runner->check_in_flight();
    return status;
  }
  void collect() {
    for (StepOutput& output : scheduler->take_outputs()) {
      EXPECT_EQ(finish[output.request_id], FinishReason::kNone) << "nothing comes after the end";
      auto& all = tokens[output.request_id];
      all.insert(all.end(), output.new_token_ids.begin(), output.new_token_ids.end());
      finish[output.request_id] = output.finish_reason;
      error[output.request_id] = output.error;
      stop[output.request_id] = output.stop_token_id;
      auto& logs = logprobs[output.request_id];
      logs.insert(logs.end(), output.logprobs.begin(), output.logprobs.end());
    }
  }
  void drain() {
    for (int i = 0; i < 10000 && step() == StepStatus::kRan; ++i) {
    }
    EXPECT_FALSE(scheduler->has_work());
    EXPECT_EQ(scheduler->num_open_steps(), 0);
    EXPECT_EQ(cache->used_bytes(), 0);
  }

  std::unique_ptr<StepLoop> loop;
  std::map<RequestId, std::vector<int64_t>> tokens;
  std::map<RequestId, FinishReason> finish;
  std::map<RequestId, std::string> error;
  std::map<RequestId, std::optional<int64_t>> stop;
  std::map<RequestId, std::vector<ChosenLogprob>> logprobs;
};

}  // namespace autodeploy::testing_fakes
