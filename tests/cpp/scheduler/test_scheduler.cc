#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "core/error.h"
#include "stack.h"

namespace autodeploy {
namespace {

using namespace testing_fakes;

TEST(Scheduler, APrefixStandsBeforeEveryPrompt) {
  const std::vector<int64_t> prefix{5, 9, 2};
  const std::vector<int64_t> prompt = prompt_of(21);
  std::vector<int64_t> joined = prefix;
  joined.insert(joined.end(), prompt.begin(), prompt.end());
  Stack plain, with({}, kLimits, prefix);
  plain.scheduler->add(1, joined, params_of(8));
  with.scheduler->add(1, prompt, params_of(8));
  with.runner->on_launch = [&](const Step& step, auto&) {
    for (const SampleRow& row : step.rows) {
      if (row.prompt.size() != prompt.size()) continue;  // the request below
      EXPECT_TRUE(std::equal(row.prompt.begin(), row.prompt.end(), prompt.begin(), prompt.end()));
      EXPECT_LE(row.generated.size(), 8u);
    }
  };
  plain.drain();
  with.drain();
  EXPECT_EQ(with.tokens[1], plain.tokens[1]);
  EXPECT_EQ(with.tokens[1].size(), 8u);
  EXPECT_EQ(with.finish[1], FinishReason::kLength);
  // The longest request leaves room for the prefix.
  with.scheduler->check(prompt_of(60), params_of(1));
  EXPECT_THROW(with.scheduler->check(prompt_of(60), params_of(2)), Error);
  with.scheduler->add(2, prompt_of(60), params_of(1));
  with.drain();
  EXPECT_EQ(with.tokens[2].size(), 1u);
}

TEST(Scheduler, DecodesComeFirstThenChunksThenAdmissions) {
  Stack s;
  s.scheduler->add(1, prompt_of(3), params_of(8));
  s.step();
  s.scheduler->add(2, prompt_of(40), params_of(2));
  s.scheduler->add(3, prompt_of(5), params_of(2));
  const Step* step = s.scheduler->schedule();
  ASSERT_NE(step, nullptr);
  EXPECT_EQ(step->batch.num_decodes, 1);
  EXPECT_EQ(step->batch.num_seqs, 2);  // the chunk of request 2 takes the rest of the 16 tokens
  EXPECT_EQ(step->batch.num_tokens, 16);
  EXPECT_EQ(step->batch.num_rows, 1);  // and its logits are not wanted yet
  EXPECT_EQ(s.scheduler->num_waiting(), 1);
  s.runner->launch(*step);
  s.scheduler->complete(s.runner->wait());
  s.collect();
  s.drain();
  for (RequestId id : {1, 2, 3}) EXPECT_EQ(s.finish[id], FinishReason::kLength);
  EXPECT_EQ(s.tokens[2], FakeModel{}.generate(prompt_of(40), params_of(2)));
}

TEST(Scheduler, WaitsForMemoryInOrderOfArrival) {
  CacheLimits limits = kLimits;
  limits.max_bytes = 17 * 64;  // 16 pages of 4 tokens beside the null page: one sequence of the largest size
  Stack s({}, limits);
  ASSERT_EQ(s.cache->group_usage(0).total, 16);
  s.scheduler->add(1, prompt_of(20), params_of(20));  // 10 pages
  s.scheduler->add(2, prompt_of(30), params_of(30));  // 15 pages: must wait
  s.scheduler->add(3, prompt_of(2), params_of(2));    // would fit, but does not overtake
  s.step();
  EXPECT_EQ(s.scheduler->num_running(), 1);
  EXPECT_EQ(s.scheduler->num_waiting(), 2);
  s.drain();
  EXPECT_EQ(s.tokens[2], FakeModel{}.generate(prompt_of(30), params_of(30)));
  EXPECT_EQ(s.tokens[3], FakeModel{}.generate(prompt_of(2), params_of(2)));
}

TEST(Scheduler, EndsAtStopIdsEosAndLength) {
  const FakeModel model;
  SamplingParams params = params_of(30);
  const std::vector<int64_t> free_run = model.generate(prompt_of(6), params);
  const int64_t third = free_run[2];
  ASSERT_EQ(std::count(free_run.begin(), free_run.begin() + 3, third), 1);
  const auto run = [&](SamplingParams p) {
    Stack s;
    s.scheduler->add(1, prompt_of(6), p);
    s.drain();
    return std::make_tuple(s.tokens[1].size(), s.finish[1], s.stop[1]);
  };
  params.eos_token_ids = {third, 1000000};
  EXPECT_EQ(run(params), std::make_tuple(size_t{3}, FinishReason::kStop, std::optional<int64_t>(third)));
  params.ignore_eos = true;
  EXPECT_EQ(run(params), std::make_tuple(size_t{30}, FinishReason::kLength, std::optional<int64_t>()));
  params.stop_token_ids = {third};
  EXPECT_EQ(run(params), std::make_tuple(size_t{3}, FinishReason::kStop, std::optional<int64_t>(third)));
  params.max_tokens = 3;  // both at once: the stop id says more
  EXPECT_EQ(run(params), std::make_tuple(size_t{3}, FinishReason::kStop, std::optional<int64_t>(third)));
  params.max_tokens = 2;
  EXPECT_EQ(run(params), std::make_tuple(size_t{2}, FinishReason::kLength, std::optional<int64_t>()));
}

TEST(Scheduler, CancelsInEveryState) {
  Stack s;
  EXPECT_FALSE(s.scheduler->cancel(1));
  s.scheduler->add(1, prompt_of(4), params_of(40));  // will be decoding
  s.step();
  s.scheduler->add(2, prompt_of(40), params_of(4));  // will be in the middle of its prompt
  s.step();
  s.scheduler->add(3, prompt_of(8), params_of(4));  // will be waiting
  EXPECT_TRUE(s.scheduler->cancel(3));
  EXPECT_TRUE(s.scheduler->cancel(2));
  s.collect();
  s.scheduler->audit();
  EXPECT_EQ(s.finish[2], FinishReason::kCancelled);
  EXPECT_EQ(s.finish[3], FinishReason::kCancelled);
  EXPECT_EQ(s.scheduler->num_running(), 1);
  // In an open step its pages stay until the step has passed, and its token is dropped.
  s.scheduler->add(4, prompt_of(8), params_of(4));
  const Step* step = s.scheduler->schedule();
  s.runner->launch(*step);
  const auto used = s.cache->group_usage(0).used;
  EXPECT_TRUE(s.scheduler->cancel(1));
  EXPECT_TRUE(s.scheduler->cancel(1));
  EXPECT_EQ(s.cache->group_usage(0).used, used);
  const size_t before = s.tokens[1].size();
  s.scheduler->complete(s.runner->wait());
  s.collect();
  s.scheduler->audit();
  EXPECT_EQ(s.finish[1], FinishReason::kCancelled);
  EXPECT_EQ(s.tokens[1].size(), before);
  EXPECT_LT(s.cache->group_usage(0).used, used);
  EXPECT_FALSE(s.scheduler->cancel(1));
  s.drain();
  EXPECT_EQ(s.tokens[4], FakeModel{}.generate(prompt_of(8), params_of(4)));
}

TEST(Scheduler, AFailedStepEndsItsRequestsAndNoOthers) {
  FakeModel model;
  model.slots = true;
  Stack s(model);
  for (RequestId id = 1; id <= 6; ++id) s.scheduler->add(id, prompt_of(10, id), params_of(5));
  s.runner->on_launch = [](const Step&, FakeRunner& runner) {
    if (runner.num_steps == 2) throw std::runtime_error("[device] expected to work, found smoke");
  };
  s.step();
  s.step();  // requests 1 and 2, and what was admitted beside them
  int failed = 0;
  for (RequestId id = 1; id <= 6; ++id) failed += s.finish[id] == FinishReason::kError;
  EXPECT_GT(failed, 0);
  EXPECT_LT(failed, 6);
  EXPECT_NE(s.error[1].find("smoke"), std::string::npos);
  s.drain();
  for (RequestId id = 1; id <= 6; ++id) {
    if (s.finish[id] == FinishReason::kError) continue;
    EXPECT_EQ(s.tokens[id], model.generate(prompt_of(10, id), params_of(5))) << "request " << id;
  }
  EXPECT_EQ(s.cache->slot_usage().used, 0);
}

TEST(Scheduler, RowsWithoutANumberEndTheirRequestOnly) {
  Stack s;
  s.scheduler->add(1, prompt_of(4, 1), params_of(6));
  s.scheduler->add(2, prompt_of(4, 2), params_of(6));
  s.runner->on_run = [](const Step& step, FakeRunner& runner) {
    if (runner.num_run == 3) runner.rows()[0].token = -1;
    ASSERT_LE(step.rows.size(), 2U);
  };
  s.drain();
  EXPECT_EQ(s.finish[1], FinishReason::kError);
  EXPECT_NE(s.error[1].find("NaN"), std::string::npos) << s.error[1];
  EXPECT_EQ(s.tokens[1].size(), 2U);
  EXPECT_EQ(s.finish[2], FinishReason::kLength);
}

TEST(Scheduler, AFatalFailureEndsEverything) {
  Stack s;
  for (RequestId id = 1; id <= 6; ++id) s.scheduler->add(id, prompt_of(10, id), params_of(5));
  s.runner->on_launch = [](const Step&, FakeRunner& runner) {
    runner.failure = "[device] lost";
    runner.fatal = true;
  };
  EXPECT_EQ(s.step(), StepStatus::kStopped);
  EXPECT_EQ(s.loop->failure(), "[device] lost");
  for (RequestId id = 1; id <= 6; ++id) EXPECT_EQ(s.finish[id], FinishReason::kError) << id;
  EXPECT_FALSE(s.scheduler->has_work());
}

TEST(Scheduler, RefusesBatchesThatCannotHoldTheDecodes) {
  CacheLimits limits = kLimits;
  limits.max_batch_tokens = 3;
  EXPECT_THROW(Stack({}, limits), Error);
}

struct BadRequest {
  const char* field;
  const char* value;
  std::function<void(std::vector<int64_t>&, SamplingParams&)> change;
};

TEST(Scheduler, NamesWhatIsWrongWithARequest) {
  const Stack s;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<BadRequest> cases = {
      {"prompt", "empty", [](auto& prompt, auto&) { prompt.clear(); }},
      {"prompt", "found 64", [](auto& prompt, auto&) { prompt.resize(64); }},
      {"prompt", "found 97", [](auto& prompt, auto&) { prompt[2] = 97; }},
      {"prompt", "found -1", [](auto& prompt, auto&) { prompt[0] = -1; }},
      {"max_tokens", "found 0", [](auto&, auto& p) { p.max_tokens = 0; }},
      {"max_tokens", "[1, 60]", [](auto&, auto& p) { p.max_tokens = 61; }},
      {"temperature", "found -0.5", [](auto&, auto& p) { p.temperature = -0.5; }},
      {"temperature", "found nan", [nan](auto&, auto& p) { p.temperature = nan; }},
      {"temperature", "found 1e-09", [](auto&, auto& p) { p.temperature = 1e-9; }},
      {"top_k", "found -2", [](auto&, auto& p) { p.top_k = -2; }},
      {"top_p", "found 0", [](auto&, auto& p) { p.top_p = 0; }},
      {"top_p", "found 1.5", [](auto&, auto& p) { p.top_p = 1.5; }},
      {"min_p", "found nan", [nan](auto&, auto& p) { p.min_p = nan; }},
      {"repetition_penalty", "found 0", [](auto&, auto& p) { p.repetition_penalty = 0; }},
      {"presence_penalty", "found 3", [](auto&, auto& p) { p.presence_penalty = 3; }},
      {"frequency_penalty", "found -3", [](auto&, auto& p) { p.frequency_penalty = -3; }},
      {"logit_bias", "found 200", [](auto&, auto& p) { p.logit_bias = {{200, 1.0}}; }},
      {"logit_bias", "found 101", [](auto&, auto& p) { p.logit_bias = {{20, 101.0}}; }},
      {"min_tokens", "found 9", [](auto&, auto& p) { p.min_tokens = 9; }},
      {"logprobs", "found 129", [](auto&, auto& p) { p.logprobs = 129; }},
      {"stop_token_ids", "found -4", [](auto&, auto& p) { p.stop_token_ids = {-4}; }},
      {"eos_token_ids", "found 2000", [](auto&, auto& p) { p.eos_token_ids.resize(2000); }},
  };
  EXPECT_NO_THROW(s.scheduler->check(prompt_of(4), params_of(8)));
  for (const BadRequest& bad : cases) {
    std::vector<int64_t> prompt = prompt_of(4);
    SamplingParams params = params_of(8);
    bad.change(prompt, params);
    try {
      s.scheduler->check(prompt, params);
      ADD_FAILURE() << bad.field << " " << bad.value << " was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument);
      EXPECT_NE(std::string(error.what()).find(std::string("[request] ") + bad.field + ":"),
                std::string::npos)
          << error.what();
      EXPECT_NE(std::string(error.what()).find(bad.value), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace autodeploy
