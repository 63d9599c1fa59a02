#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/error.h"
#include "stack.h"

namespace autodeploy {
namespace {

using namespace testing_fakes;

constexpr CacheLimits overlapped(CacheLimits limits) {
  limits.max_open_steps = 2;
  return limits;
}

struct Overlapped : Stack {
  explicit Overlapped(FakeModel model = {}, CacheLimits limits = kLimits,
                      std::span<const int64_t> prefix = {})
      : Stack(model, overlapped(limits), prefix) {
    runner->runs_now = [] { return false; };  // as late as can be, where a test does not say otherwise
  }
  void run_early() {
    runner->runs_now = [] { return true; };
  }
  const SchedulerCounters& counters() const { return scheduler->counters(); }
};

// Parameters that end a request with its n-th token by a stop id.
SamplingParams stops_at(const std::vector<int64_t>& prompt, size_t n) {
  SamplingParams params = params_of(20);
  const std::vector<int64_t> all = FakeModel{}.generate(prompt, params);
  params.stop_token_ids = {all[n - 1]};
  EXPECT_EQ(std::find(all.begin(), all.end(), all[n - 1]) - all.begin(), static_cast<int64_t>(n - 1));
  return params;
}

TEST(OverlappedLoop, ANextStepNamesTheRowsOfTheOneInFlight) {
  const std::vector<int64_t> prefix{5, 9};
  Overlapped s({}, kLimits, prefix);
  s.scheduler->add(1, prompt_of(3), params_of(3));
  s.scheduler->add(2, prompt_of(40), params_of(2));  // has no row in the first two steps
  s.scheduler->add(3, prompt_of(2), params_of(9));
  std::vector<std::vector<int32_t>> token_rows, pending_rows;
  std::vector<std::vector<int64_t>> generated;
  std::set<const void*> arrays;
  s.runner->on_launch = [&](const Step& step, FakeRunner&) {
    token_rows.emplace_back(step.token_rows.begin(), step.token_rows.end());
    pending_rows.emplace_back();
    generated.emplace_back();
    for (const SampleRow& row : step.rows) {
      pending_rows.back().push_back(row.pending_row);
      generated.back().push_back(row.num_generated());
    }
    arrays.insert(step.batch.token_ids.data());
  };
  EXPECT_EQ(s.step(), StepStatus::kRan);
  EXPECT_EQ(s.runner->num_in_flight(), 1);
  ASSERT_EQ(token_rows.size(), 2U);  // two launches, of which the second knew nothing of the first's tokens
  EXPECT_TRUE(token_rows[0].empty());
  EXPECT_EQ(pending_rows[0], std::vector<int32_t>({-1}));
  ASSERT_EQ(token_rows[1].size(), 16U);  // a decode, and a chunk whose tokens are known
  EXPECT_EQ(token_rows[1][0], 0);
  EXPECT_TRUE(std::all_of(token_rows[1].begin() + 1, token_rows[1].end(), [](int32_t r) { return r == -1; }));
  EXPECT_EQ(pending_rows[1], std::vector<int32_t>({0}));
  EXPECT_EQ(generated[1], std::vector<int64_t>({1}));
  EXPECT_EQ(s.tokens[1].size(), 1U);
  s.drain();
  for (RequestId id : {1, 2, 3}) EXPECT_EQ(s.finish[id], FinishReason::kLength);
  EXPECT_EQ(arrays.size(), 2U) << "two sets of arrays for good";
  EXPECT_EQ(s.runner->most_in_flight, 2);
  // The third step decodes request 1, whose row was the first one, and has the last chunk of request 2; the
  // fourth decodes requests 2 and, as the last of its step, 3.
  EXPECT_EQ(token_rows[2][0], 0);
  EXPECT_EQ(generated[2].front(), 2);
}

TEST(OverlappedLoop, GivesTheTokensOfThePlainLoop) {
  const std::vector<int64_t> prefix{5, 9, 2};
  FakeModel model;
  model.paged = {{0, 0}, {6, 0}};
  model.slots = true;
  for (bool early : {false, true}) {
    Stack plain(model, kLimits, prefix);
    Overlapped s(model, kLimits, prefix);
    if (early) s.run_early();
    for (Stack* stack : {&plain, static_cast<Stack*>(&s)}) {
      for (RequestId id = 1; id <= 9; ++id) {
        SamplingParams params = params_of(3 + id * 2);
        params.logprobs = id % 3 == 0 ? 1 : -1;
        params.min_tokens = id % 4;
        params.stop_token_ids = {id, id + 30, id + 60};
        stack->scheduler->add(id, prompt_of(id * 4, id), params);
      }
      stack->drain();
    }
    EXPECT_EQ(s.tokens, plain.tokens);
    EXPECT_EQ(s.finish, plain.finish);
    EXPECT_EQ(s.stop, plain.stop);
    for (RequestId id = 1; id <= 9; ++id) {
      ASSERT_EQ(s.logprobs[id].size(), id % 3 == 0 ? s.tokens[id].size() : 0);
      for (size_t i = 0; i < s.logprobs[id].size(); ++i)
        EXPECT_EQ(s.logprobs[id][i].chosen.token, s.tokens[id][i]);
    }
    EXPECT_EQ(plain.scheduler->counters().num_wasted_decodes, 0);
    EXPECT_EQ(s.counters().num_prefill_tokens, plain.scheduler->counters().num_prefill_tokens);
    EXPECT_EQ(s.counters().num_decode_tokens - s.counters().num_wasted_decodes,
              plain.scheduler->counters().num_decode_tokens);
  }
}

TEST(OverlappedLoop, ARequestThatEndsByCountIsNotScheduledAgain) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(4), params_of(1));
  s.scheduler->add(2, prompt_of(4), params_of(3));
  s.drain();
  EXPECT_EQ(s.counters().num_steps, 3);
  EXPECT_EQ(s.counters().num_decode_tokens, 2);
  EXPECT_EQ(s.counters().num_wasted_decodes, 0);
}

TEST(OverlappedLoop, AStopTokenWastesOneDecodeAndKeepsThePagesUntilItHasPassed) {
  for (bool slots : {false, true}) {
    FakeModel model;
    model.slots = slots;
    CacheLimits limits = kLimits;
    limits.max_num_seqs = 1;
    Overlapped s(model, limits);
    SamplingParams params = params_of(20);
    params.stop_token_ids = {model.generate(prompt_of(4), params_of(1))[0]};
    s.scheduler->add(1, prompt_of(4), params);
    s.scheduler->add(2, prompt_of(5), params_of(2));
    EXPECT_EQ(s.step(), StepStatus::kRan);
    EXPECT_EQ(s.finish[1], FinishReason::kStop);
    EXPECT_EQ(s.tokens[1].size(), 1U);
    EXPECT_EQ(s.scheduler->num_running(), 0);
    EXPECT_TRUE(s.scheduler->has_work());
    EXPECT_FALSE(s.scheduler->cancel(1));
    EXPECT_EQ(s.cache->group_usage(0).used, 2);  // token 5 stands in a page of its own
    EXPECT_EQ(s.cache->slot_usage().used, slots ? 1 : 0);
    EXPECT_EQ(s.runner->num_in_flight(), 1);
    // Nobody is admitted to what the step in flight still has.
    EXPECT_EQ(s.step(), StepStatus::kRan);
    EXPECT_EQ(s.runner->num_steps, 2);
    EXPECT_EQ(s.cache->used_bytes(), 0);
    EXPECT_EQ(s.counters().num_wasted_decodes, 1);
    EXPECT_EQ(s.scheduler->num_waiting(), 1);
    s.drain();
    EXPECT_EQ(s.tokens[2], model.generate(prompt_of(5), params_of(2)));
  }
}

TEST(OverlappedLoop, PagesThatAnEndedRequestStillHasAreNotHandedOut) {
  CacheLimits limits = kLimits;
  limits.max_bytes = 17 * 64;  // 16 pages of 4 tokens beside the null page
  Overlapped s({}, limits);
  s.scheduler->add(1, prompt_of(8), stops_at(prompt_of(8), 2));  // 7 pages
  s.scheduler->add(2, prompt_of(30), params_of(20));             // 13 pages: waits for request 1
  EXPECT_EQ(s.step(), StepStatus::kRan);
  EXPECT_EQ(s.step(), StepStatus::kRan);
  EXPECT_EQ(s.finish[1], FinishReason::kStop);
  EXPECT_EQ(s.runner->num_steps, 3);
  EXPECT_EQ(s.scheduler->num_waiting(), 1);
  EXPECT_EQ(s.step(), StepStatus::kRan);  // closes the wasted step
  EXPECT_EQ(s.runner->num_steps, 3);
  s.drain();
  EXPECT_EQ(s.tokens[2], FakeModel{}.generate(prompt_of(30), params_of(20)));
}

TEST(OverlappedLoop, ChunksGoOnWithoutWaiting) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(40), params_of(2));
  std::vector<int64_t> first;
  s.runner->on_launch = [&](const Step& step, FakeRunner& runner) {
    first.push_back(step.batch.positions[0]);
    EXPECT_EQ(runner.num_in_flight(), runner.num_steps == 1 ? 1 : 2);
  };
  s.drain();
  EXPECT_EQ(first, std::vector<int64_t>({0, 16, 32, 40}));
  EXPECT_EQ(s.tokens[1], FakeModel{}.generate(prompt_of(40), params_of(2)));
}

TEST(OverlappedLoop, AWindowKeepsWhatTheOldestStepReads) {
  FakeModel model;
  model.paged = {{6, 0}, {0, 8}};
  CacheLimits limits = kLimits;
  limits.max_num_seqs = 1;
  Overlapped s(model, limits);
  s.scheduler->add(1, prompt_of(50), params_of(10));
  int64_t most = 0;
  s.runner->on_launch = [&](const Step& step, FakeRunner&) {
    // A step names what it may read, and not what only the one before may.
    const StepBatch::PageTable& table = step.batch.page_tables[0];
    const int64_t first = std::max<int64_t>(step.batch.positions[0] - 6 + 1, 0) / 4;
    for (int64_t p = 0; p < table.max_pages; ++p)
      EXPECT_EQ(table.pages[static_cast<size_t>(p)] != 0, p >= first && p * 4 < step.batch.kv_len[0]);
    most = std::max(most, s.cache->group_usage(0).used);
  };
  s.drain();
  EXPECT_EQ(s.tokens[1], model.generate(prompt_of(50), params_of(10)));
  EXPECT_GE(most, 8);  // two chunks of 16 tokens
  EXPECT_LE(most, s.cache->plan().groups[0].pages_for(64));
}

TEST(OverlappedLoop, CancelsInEveryState) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(3), params_of(40));
  s.scheduler->add(2, prompt_of(50), params_of(4));
  s.scheduler->add(3, prompt_of(9), params_of(4));
  s.step();  // in flight: a decode of request 1 and a chunk of request 2
  ASSERT_EQ(s.runner->num_in_flight(), 1);
  EXPECT_TRUE(s.scheduler->cancel(3));
  s.collect();
  EXPECT_EQ(s.finish[3], FinishReason::kCancelled);
  EXPECT_TRUE(s.scheduler->cancel(1));
  EXPECT_TRUE(s.scheduler->cancel(2));
  EXPECT_TRUE(s.scheduler->cancel(2));
  s.scheduler->audit();
  s.scheduler->add(4, prompt_of(7), params_of(3));
  bool alone = false;
  s.runner->on_launch = [&](const Step& step, FakeRunner&) { alone = step.batch.num_seqs == 1; };
  s.step();
  EXPECT_TRUE(alone) << "what was cancelled is not scheduled again";
  EXPECT_EQ(s.finish[1], FinishReason::kCancelled);
  EXPECT_EQ(s.finish[2], FinishReason::kCancelled);
  EXPECT_EQ(s.tokens[1].size(), 1U);
  EXPECT_EQ(s.counters().num_wasted_decodes, 0);
  EXPECT_FALSE(s.scheduler->cancel(1));
  s.runner->on_launch = nullptr;
  s.drain();
  EXPECT_EQ(s.tokens[4], FakeModel{}.generate(prompt_of(7), params_of(3)));
}

TEST(OverlappedLoop, CancelledWhileTwoStepsHaveIt) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(3), params_of(40));
  s.runner->on_launch = [&](const Step&, FakeRunner& runner) {
    if (runner.num_steps != 2) return;
    EXPECT_TRUE(s.scheduler->cancel(1));
  };
  s.step();
  EXPECT_EQ(s.finish[1], FinishReason::kCancelled);  // its first token is dropped
  EXPECT_TRUE(s.tokens[1].empty());
  EXPECT_GT(s.cache->used_bytes(), 0);
  s.drain();
  EXPECT_EQ(s.runner->num_steps, 2);
  EXPECT_EQ(s.counters().num_wasted_decodes, 1);
}

TEST(OverlappedLoop, ARowWithoutANumberEndsItsRequestInTheNextStepToo) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(4, 1), params_of(6));
  s.scheduler->add(2, prompt_of(4, 2), params_of(6));
  s.runner->on_run = [](const Step&, FakeRunner& runner) {
    if (runner.num_run == 3) runner.rows()[0].token = -1;
  };
  s.drain();
  EXPECT_EQ(s.finish[1], FinishReason::kError);
  EXPECT_NE(s.error[1].find("NaN"), std::string::npos) << s.error[1];
  EXPECT_EQ(s.tokens[1].size(), 2U);
  EXPECT_EQ(s.counters().num_wasted_decodes, 1);
  EXPECT_EQ(s.tokens[2], FakeModel{}.generate(prompt_of(4, 2), params_of(6)));
}

TEST(OverlappedLoop, AFailedLaunchIsClosedAfterTheStepBeforeIt) {
  for (bool early : {false, true}) {
    Overlapped s;
    if (early) s.run_early();
    s.scheduler->add(1, prompt_of(4, 1), stops_at(prompt_of(4, 1), 2));
    s.scheduler->add(2, prompt_of(4, 2), params_of(6));
    s.runner->on_launch = [](const Step&, FakeRunner& runner) {
      if (runner.num_steps == 3) throw std::runtime_error("[device] full");
    };
    s.step();
    EXPECT_EQ(s.step(), StepStatus::kRan);  // the second step passes, though the third cannot be launched
    EXPECT_EQ(s.runner->num_steps, 3);
    EXPECT_EQ(s.tokens[1].size(), 2U);
    EXPECT_EQ(s.finish[1], FinishReason::kStop) << "what has ended does not fail";
    EXPECT_EQ(s.tokens[2].size(), 2U);
    EXPECT_EQ(s.finish[2], FinishReason::kNone);
    s.scheduler->add(3, prompt_of(5, 3), params_of(3));
    EXPECT_EQ(s.step(), StepStatus::kRan);
    EXPECT_EQ(s.runner->num_steps, 3) << "nothing is launched before the failure is closed";
    EXPECT_EQ(s.finish[2], FinishReason::kError);
    EXPECT_EQ(s.error[2], "[device] full");
    EXPECT_EQ(s.loop->failure(), "[device] full");
    EXPECT_EQ(s.cache->used_bytes(), 0);
    EXPECT_EQ(s.counters().num_failed_steps, 1);
    s.drain();
    EXPECT_EQ(s.tokens[3], FakeModel{}.generate(prompt_of(5, 3), params_of(3)));
  }
}

TEST(OverlappedLoop, AFirstLaunchMayFail) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(4), params_of(6));
  s.runner->on_launch = [](const Step&, FakeRunner& runner) {
    if (runner.num_steps == 1) throw std::runtime_error("");
  };
  EXPECT_EQ(s.step(), StepStatus::kRan);
  EXPECT_EQ(s.finish[1], FinishReason::kError);
  EXPECT_FALSE(s.error[1].empty());
  EXPECT_EQ(s.step(), StepStatus::kIdle);
  EXPECT_EQ(s.runner->num_waited, 0);
}

// A step of decodes and chunks fails while the next one, which goes on with them and admits another request,
// is in flight.
void fail_one_of_two(const std::function<void(FakeRunner&)>& arm) {
  CacheLimits limits = kLimits;
  limits.max_batch_tokens = 8;
  FakeModel model;
  model.slots = true;
  Overlapped s(model, limits);
  s.scheduler->add(1, prompt_of(3, 1), params_of(30));
  s.step();  // in flight: a decode of request 1
  s.scheduler->add(2, prompt_of(14, 2), params_of(4));
  s.scheduler->add(3, prompt_of(5, 3), params_of(4));
  s.step();  // in flight: a decode of request 1, 7 tokens of request 2
  ASSERT_EQ(s.counters().num_steps, 2);
  arm(*s.runner);
  s.step();  // fails; in flight is the next decode, the rest of request 2, and nothing of request 3
  EXPECT_EQ(s.finish[1], FinishReason::kError);
  EXPECT_EQ(s.finish[2], FinishReason::kError);
  EXPECT_EQ(s.error[1], "[device] hiccup");
  EXPECT_EQ(s.tokens[1].size(), 2U);
  EXPECT_EQ(s.cache->num_sequences(), 2) << "the step in flight has them";
  EXPECT_EQ(s.scheduler->num_waiting(), 1);
  s.step();  // launches request 3, closes the step in flight
  EXPECT_EQ(s.cache->num_sequences(), 1);
  EXPECT_EQ(s.counters().num_failed_steps, 1);
  EXPECT_EQ(s.counters().num_wasted_decodes, 1);
  s.drain();
  EXPECT_EQ(s.tokens[3], model.generate(prompt_of(5, 3), params_of(4)));
  EXPECT_EQ(s.finish[3], FinishReason::kLength);
}

TEST(OverlappedLoop, AFailedStepEndsItsRequestsInTheNextOneToo) {
  fail_one_of_two([](FakeRunner& runner) {
    runner.on_run = [](const Step&, FakeRunner& r) {
      if (r.num_run == 3) r.failure = "[device] hiccup";
    };
  });
  fail_one_of_two([](FakeRunner& runner) {
    runner.on_wait = [](const Step&, FakeRunner& r) {
      if (r.num_waited == 3) throw std::runtime_error("[device] hiccup");
    };
  });
}

TEST(OverlappedLoop, AFailedStepLeavesThePrefillsOfTheNextOneAlone) {
  CacheLimits limits = kLimits;
  limits.max_batch_tokens = 8;
  Overlapped s({}, limits);
  s.scheduler->add(1, prompt_of(8, 1), params_of(30));
  s.scheduler->add(2, prompt_of(12, 2), params_of(5));
  s.scheduler->add(3, prompt_of(3, 3), params_of(5));
  s.runner->on_run = [](const Step&, FakeRunner& r) {
    if (r.num_run == 1) r.failure = "[device] hiccup";
  };
  s.step();  // request 1 alone fails; in flight is its decode beside the first chunk of request 2
  EXPECT_EQ(s.finish[1], FinishReason::kError);
  EXPECT_EQ(s.finish[2], FinishReason::kNone);
  s.drain();
  EXPECT_EQ(s.tokens[2], FakeModel{}.generate(prompt_of(12, 2), params_of(5)));
  EXPECT_EQ(s.tokens[3], FakeModel{}.generate(prompt_of(3, 3), params_of(5)));
  EXPECT_TRUE(s.tokens[1].empty());
}

TEST(OverlappedLoop, BothStepsMayFail) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(8, 1), params_of(30));
  s.scheduler->add(2, prompt_of(12, 2), params_of(5));
  s.runner->on_launch = [](const Step&, FakeRunner& r) { r.failure = "[device] hiccup"; };
  s.step();
  s.step();
  for (RequestId id : {1, 2}) EXPECT_EQ(s.finish[id], FinishReason::kError);
  EXPECT_EQ(s.counters().num_failed_steps, 2);
  EXPECT_EQ(s.step(), StepStatus::kIdle);
  EXPECT_EQ(s.cache->used_bytes(), 0);
}

TEST(OverlappedLoop, AFatalFailureEndsEverythingAtOnce) {
  for (bool launch_fails_too : {false, true}) {
    Overlapped s;
    for (RequestId id = 1; id <= 6; ++id) s.scheduler->add(id, prompt_of(10, id), params_of(5));
    s.runner->on_launch = [&](const Step&, FakeRunner& runner) {
      if (runner.num_steps == 2) {
        runner.failure = "[device] lost";
        runner.fatal = true;
      }
      if (runner.num_steps == 3 && launch_fails_too) throw std::runtime_error("[device] gone");
    };
    EXPECT_EQ(s.step(), StepStatus::kRan);
    EXPECT_EQ(s.step(), StepStatus::kStopped);
    EXPECT_EQ(s.loop->failure(), "[device] lost");
    for (RequestId id = 1; id <= 6; ++id) {
      EXPECT_EQ(s.finish[id], FinishReason::kError) << id;
      EXPECT_EQ(s.error[id], "[device] lost");
    }
    EXPECT_FALSE(s.scheduler->has_work());
    EXPECT_EQ(s.cache->used_bytes(), 0);
    EXPECT_EQ(s.runner->num_waited, 2) << "what is lost is not waited for";
    s.loop.reset();
    EXPECT_EQ(s.runner->num_waited, 2);
  }
}

TEST(OverlappedLoop, DrainingStartsNothing) {
  Overlapped s;
  EXPECT_EQ(s.loop->drain(), StepStatus::kIdle);
  s.scheduler->add(1, prompt_of(4), params_of(6));
  s.step();
  EXPECT_EQ(s.loop->drain(), StepStatus::kRan);
  s.collect();
  EXPECT_EQ(s.loop->drain(), StepStatus::kIdle);
  EXPECT_EQ(s.runner->num_steps, 2);
  EXPECT_EQ(s.tokens[1].size(), 2U);
  s.scheduler->audit();
  EXPECT_EQ(s.step(), StepStatus::kRan);  // and it goes on from there
  s.drain();
  EXPECT_EQ(s.tokens[1], FakeModel{}.generate(prompt_of(4), params_of(6)));
}

TEST(OverlappedLoop, ItsEndWaitsForWhatIsInFlight) {
  Overlapped s;
  s.scheduler->add(1, prompt_of(4), params_of(6));
  s.step();
  ASSERT_EQ(s.runner->num_in_flight(), 1);
  s.loop.reset();
  EXPECT_EQ(s.runner->num_in_flight(), 0);
  EXPECT_EQ(s.runner->num_waited, 2);
}

TEST(OverlappedLoop, NeedsARunnerAndCachesForTwo) {
  struct OneAtATime final : ModelRunner {
    void launch(const Step&) override {}
    BatchResult wait() override { return {}; }
  } runner;
  Overlapped two;
  EXPECT_THROW(make_overlapped_loop(two.scheduler.get(), &runner), Error);
  Stack one;
  EXPECT_THROW(make_overlapped_loop(one.scheduler.get(), two.runner.get()), Error);
}

}  // namespace
}  // namespace autodeploy
