#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "fake_runner.h"
#include "scheduler/step_loop.h"

namespace autodeploy {
namespace {

using testing_fakes::FakeModel;
using testing_fakes::FakeRunner;
using testing_fakes::FakeStack;

const std::vector<FakeModel> kModels = {
    {"full", {{0, 0}}, false},
    {"window", {{7, 0}, {0, 0}}, false},
    {"chunk", {{0, 8}, {0, 0}}, false},
    {"slots_only", {}, true},
    {"hybrid", {{0, 0}, {12, 0}, {0, 0}}, true},
};

struct Job {
  std::vector<int64_t> prompt;
  SamplingParams params;
};

class SchedulerProperty : public testing::TestWithParam<size_t> {
 protected:
  const FakeModel& model() const { return kModels[GetParam()]; }
};

// Whatever the chunks, the batches and the pages: each request gets the tokens that it gets alone.
TEST_P(SchedulerProperty, TokensDoNotDependOnTheCompany) {
  std::mt19937 rng(7);
  const auto random = [&](int64_t lo, int64_t hi) {
    return std::uniform_int_distribution<int64_t>(lo, hi)(rng);
  };
  std::vector<Job> jobs(10);
  for (Job& job : jobs) {
    job.prompt.resize(static_cast<size_t>(random(1, 50)));
    for (int64_t& t : job.prompt) t = random(0, model().vocab_size - 1);
    job.params.max_tokens = random(1, 20);
    job.params.seed = 0;
    if (random(0, 1)) job.params.eos_token_ids = {random(0, 96), random(0, 96)};
  }
  for (int64_t max_num_seqs : {1, 3, 8}) {
    for (int64_t max_batch_tokens : {8, 13, 64}) {
      for (int32_t page_size : {1, 5, 16}) {
        SCOPED_TRACE(testing::Message() << max_num_seqs << " sequences, " << max_batch_tokens
                                        << " tokens, pages of " << page_size);
        FakeStack s(model(), {.max_seq_len = 70,
                              .max_num_seqs = max_num_seqs,
                              .max_batch_tokens = max_batch_tokens,
                              .page_size = page_size});
        auto loop = make_plain_loop(s.scheduler.get(), s.runner.get());
        std::map<RequestId, std::vector<int64_t>> tokens;
        for (size_t i = 0; i < jobs.size(); ++i) {
          s.scheduler->add(static_cast<RequestId>(i), jobs[i].prompt, jobs[i].params);
        }
        while (loop->step() == StepStatus::kRan) {
          s.scheduler->audit();
          for (StepOutput& output : s.scheduler->take_outputs()) {
            auto& all = tokens[output.request_id];
            all.insert(all.end(), output.new_token_ids.begin(), output.new_token_ids.end());
          }
        }
        for (size_t i = 0; i < jobs.size(); ++i) {
          ASSERT_EQ(tokens[static_cast<RequestId>(i)], model().generate(jobs[i].prompt, jobs[i].params))
              << "request " << i;
        }
        EXPECT_LE(s.runner->most_seqs, max_num_seqs);
        if (HasFailure()) return;
      }
    }
  }
}

// Arrivals, cancellations, failed steps and NaN rows at random: books balance after each step, nobody else is
// touched, everybody ends exactly once, and at the end everything is free.
TEST_P(SchedulerProperty, RandomStreamsKeepTheBooks) {
  int finished = 0, cancelled = 0, failed = 0, waited = 0;
  for (uint32_t seed = 0; seed < 8; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const auto random = [&](int64_t lo, int64_t hi) {
      return std::uniform_int_distribution<int64_t>(lo, hi)(rng);
    };
    CacheLimits limits{.max_seq_len = 60,
                       .max_num_seqs = random(1, 6),
                       .max_batch_tokens = random(6, 40),
                       .page_size = static_cast<int32_t>(random(1, 9))};
    auto states = model().states();
    limits.max_bytes = plan_caches(states, limits).bytes();
    if (limits.max_num_seqs > 2 && !model().paged.empty()) limits.max_bytes = limits.max_bytes * 2 / 3;
    FakeStack s(model(), limits);
    s.runner->on_launch = [&](const Step& step, FakeRunner& runner) {
      if (random(0, 60) == 0) throw std::runtime_error("[fake] failed to launch");
      if (random(0, 60) == 0) runner.failure = "[fake] failed to finish";
      if (!step.rows.empty() && random(0, 60) == 0) {
        runner.rows()[static_cast<size_t>(random(0, step.batch.num_rows - 1))].token = -1;
      }
    };
    std::map<RequestId, Job> jobs;
    std::map<RequestId, std::vector<int64_t>> tokens;
    std::set<RequestId> live, cancels;
    RequestId next_id = 1;
    const auto collect = [&] {
      for (StepOutput& output : s.scheduler->take_outputs()) {
        const RequestId id = output.request_id;
        ASSERT_TRUE(live.contains(id)) << "request " << id << " had ended";
        auto& all = tokens[id];
        all.insert(all.end(), output.new_token_ids.begin(), output.new_token_ids.end());
        const auto expected = model().generate(jobs[id].prompt, jobs[id].params);
        ASSERT_LE(all.size(), expected.size());
        ASSERT_TRUE(std::equal(all.begin(), all.end(), expected.begin())) << "request " << id;
        if (output.finish_reason == FinishReason::kNone) continue;
        live.erase(id);
        if (output.finish_reason == FinishReason::kCancelled) {
          ++cancelled;
          ASSERT_TRUE(cancels.contains(id));
        } else if (output.finish_reason == FinishReason::kError) {
          ++failed;
          ASSERT_FALSE(output.error.empty());
        } else {
          ++finished;
          ASSERT_EQ(all, expected) << "request " << id;
        }
      }
    };
    for (int i = 0; i < 400; ++i) {
      if (random(0, 2) == 0 && i < 350) {
        Job job;
        job.prompt.resize(static_cast<size_t>(random(1, 40)));
        for (int64_t& t : job.prompt) t = random(0, model().vocab_size - 1);
        job.params.max_tokens = random(1, 60 - static_cast<int64_t>(job.prompt.size()));
        job.params.seed = 0;
        if (random(0, 1)) job.params.eos_token_ids = {random(0, 96)};
        s.scheduler->check(job.prompt, job.params);
        s.scheduler->add(next_id, job.prompt, job.params);
        live.insert(next_id);
        jobs[next_id++] = std::move(job);
      }
      const auto cancel_one = [&] {
        if (live.empty() || random(0, 9) != 0) return;
        auto id = live.begin();
        std::advance(id, random(0, static_cast<int64_t>(live.size()) - 1));
        cancels.insert(*id);
        ASSERT_TRUE(s.scheduler->cancel(*id));
      };
      cancel_one();
      collect();
      waited += s.scheduler->num_waiting() > 0 && s.scheduler->num_running() < limits.max_num_seqs;
      // The plain loop by hand, so that cancellations meet an open step too.
      if (const Step* step = s.scheduler->schedule()) {
        cancel_one();
        try {
          s.runner->launch(*step);
          const BatchResult result = s.runner->wait();
          result.failure.empty() ? s.scheduler->complete(result) : s.scheduler->fail(result.failure);
        } catch (const std::runtime_error& error) {
          s.scheduler->fail(error.what());
        }
      }
      ASSERT_NO_THROW(s.scheduler->audit());
      collect();
      if (HasFailure()) return;
    }
    s.runner->on_launch = nullptr;
    auto loop = make_plain_loop(s.scheduler.get(), s.runner.get());
    while (loop->step() == StepStatus::kRan) collect();
    EXPECT_TRUE(live.empty());
    s.scheduler->audit();
    EXPECT_EQ(s.cache->used_bytes(), 0);
  }
  EXPECT_GT(finished, 100);
  EXPECT_GT(cancelled, 20);
  EXPECT_GT(failed, 20);
  EXPECT_GT(waited, 0);
}

INSTANTIATE_TEST_SUITE_P(, SchedulerProperty, testing::Range<size_t>(0, kModels.size()),
                         [](const auto& info) { return kModels[info.param].title; });

}  // namespace
}  // namespace autodeploy
