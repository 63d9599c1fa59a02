#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <ostream>
#include <random>
#include <set>
#include <stdexcept>
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

struct Case {
  size_t model;
  int32_t open_steps;  // 2: steps overlap
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << kModels[c.model].title << (c.open_steps == 1 ? "_plain" : "_overlapped");
}

class SchedulerProperty : public testing::TestWithParam<Case> {
 protected:
  const FakeModel& model() const { return kModels[GetParam().model]; }
  int32_t open_steps() const { return GetParam().open_steps; }
};

// Whatever the chunks, the batches, the pages and the loop: each request gets the tokens that it gets alone.
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
                              .page_size = page_size,
                              .max_open_steps = open_steps()});
        s.runner->runs_now = [&] { return random(0, 2) == 0; };
        auto loop = s.make_loop();
        std::map<RequestId, std::vector<int64_t>> tokens;
        for (size_t i = 0; i < jobs.size(); ++i) {
          s.scheduler->add(static_cast<RequestId>(i), jobs[i].prompt, jobs[i].params);
        }
        while (loop->step() == StepStatus::kRan) {
          s.scheduler->audit();
          s.runner->check_in_flight();
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
        EXPECT_EQ(s.runner->most_in_flight, open_steps());
        EXPECT_EQ(s.cache->used_bytes(), 0);
        EXPECT_FALSE(s.scheduler->has_work());
        if (HasFailure()) return;
      }
    }
  }
}

// A stream of random requests, and what came of them.
class Stream {
 public:
  struct Counts {
    int finished = 0, cancelled = 0, failed = 0, waited = 0;
    int64_t wasted = 0;
  };

  Stream(const FakeModel& model, int32_t open_steps, uint32_t seed)
      : model_(model), rng_(seed), s_(model, limits(model, open_steps)) {
    s_.runner->runs_now = [this] { return random(0, 2) == 0; };
    s_.runner->on_launch = [this](const Step&, FakeRunner& runner) {
      cancel_one();
      if (happens()) throw std::runtime_error("[fake] failed to launch");
      if (happens()) runner.failure = "[fake] failed to finish";
    };
    s_.runner->on_run = [this](const Step& step, FakeRunner& runner) {
      for (const SampleRow& row : step.rows) ++rows_[static_cast<RequestId>(row.params->seed.value())];
      if (!step.rows.empty() && happens()) {
        runner.rows()[static_cast<size_t>(random(0, step.batch.num_rows - 1))].token = -1;
      }
      if (happens()) runner.failure = "[fake] failed while it ran";
    };
    s_.runner->on_wait = [this](const Step&, FakeRunner&) {
      if (happens()) throw std::runtime_error("[fake] failed to wait");
    };
  }

  int64_t random(int64_t lo, int64_t hi) { return std::uniform_int_distribution<int64_t>(lo, hi)(rng_); }

  void add() {
    Job job;
    job.prompt.resize(static_cast<size_t>(random(1, 40)));
    for (int64_t& t : job.prompt) t = random(0, model_.vocab_size - 1);
    job.params.max_tokens = random(1, 60 - static_cast<int64_t>(job.prompt.size()));
    job.params.seed = static_cast<uint64_t>(next_id_);  // tells whose rows are run
    if (random(0, 1)) job.params.eos_token_ids = {random(0, 96)};
    if (random(0, 3) == 0) job.params.stop_token_ids = {random(0, 96), random(0, 96)};
    if (random(0, 3) == 0) job.params.min_tokens = random(0, job.params.max_tokens);
    if (random(0, 3) == 0) job.params.logprobs = 1;
    s_.scheduler->check(job.prompt, job.params);
    s_.scheduler->add(next_id_, job.prompt, job.params);
    live_.insert(next_id_);
    jobs_[next_id_++] = std::move(job);
  }

  void cancel_one() {
    if (live_.empty() || random(0, 19) != 0) return;
    auto id = live_.begin();
    std::advance(id, random(0, static_cast<int64_t>(live_.size()) - 1));
    // What has ended is not known any more, even where its end was not collected yet.
    if (s_.scheduler->cancel(*id)) cancels_.insert(*id);
  }

  // What any loop may do next: schedule and launch, or close the oldest step.
  void advance() {
    const bool may_launch = s_.scheduler->num_open_steps() < s_.scheduler->max_open_steps() &&
                            (launched_.empty() || launched_.back());
    if (may_launch && (launched_.empty() || random(0, 2) > 0)) {
      const Step* step = s_.scheduler->schedule();
      if (step != nullptr) launched_.push_back(launch(*step));
      if (step != nullptr || launched_.empty()) return;
    }
    const bool in_flight = launched_.front();
    launched_.pop_front();
    if (!in_flight) return s_.scheduler->fail("[fake] failed to launch");
    cancel_one();
    try {
      const BatchResult result = s_.runner->wait();
      cancel_one();
      result.failure.empty() ? s_.scheduler->complete(result) : s_.scheduler->fail(result.failure);
    } catch (const std::runtime_error& error) {
      s_.scheduler->fail(error.what());
    }
  }

  // After each thing done.
  void check() {
    ASSERT_NO_THROW(s_.scheduler->audit());
    s_.runner->check_in_flight();
    collect();
    counts_.waited +=
        s_.scheduler->num_waiting() > 0 && s_.scheduler->num_running() < s_.cache->plan().limits.max_num_seqs;
  }

  // When nothing is left.
  void check_end() {
    EXPECT_TRUE(live_.empty());
    EXPECT_FALSE(s_.scheduler->has_work());
    EXPECT_EQ(s_.scheduler->num_open_steps(), 0);
    EXPECT_EQ(s_.cache->used_bytes(), 0);
    for (const auto& [id, reason] : ends_) {
      const auto got = static_cast<int64_t>(tokens_[id].size());
      // One that came to nothing where there was no token to take, and one that was launched meanwhile.
      const int64_t more = reason == FinishReason::kLength ? 0 : reason == FinishReason::kStop ? 1 : 2;
      EXPECT_GE(rows_[id], got);
      EXPECT_LE(rows_[id],
                got + (s_.scheduler->max_open_steps() == 1 ? std::max<int64_t>(more - 1, 0) : more))
          << "request " << id << ", " << finish_reason_name(reason);
    }
    counts_.wasted = s_.scheduler->counters().num_wasted_decodes;
    EXPECT_LE(counts_.wasted, static_cast<int64_t>(ends_.size()));
  }

  FakeStack& stack() { return s_; }
  const Counts& counts() const { return counts_; }

 private:
  CacheLimits limits(const FakeModel& model, int32_t open_steps) {
    CacheLimits limits{.max_seq_len = 60,
                       .max_num_seqs = random(1, 6),
                       .max_batch_tokens = random(6, 40),
                       .page_size = static_cast<int32_t>(random(1, 9)),
                       .max_open_steps = open_steps};
    auto states = model.states();
    limits.max_bytes = plan_caches(states, limits).bytes();
    if (limits.max_num_seqs > 2 && !model.paged.empty()) limits.max_bytes = limits.max_bytes * 2 / 3;
    return limits;
  }

  bool happens() { return random(0, 120) == 0; }

  bool launch(const Step& step) {
    try {
      s_.runner->launch(step);
      return true;
    } catch (const std::runtime_error&) {
      return false;
    }
  }

  void collect() {
    std::set<RequestId> seen;
    for (StepOutput& output : s_.scheduler->take_outputs()) {
      const RequestId id = output.request_id;
      ASSERT_TRUE(live_.contains(id)) << "request " << id << " had ended";
      ASSERT_TRUE(seen.insert(id).second) << "one output for each request";
      auto& all = tokens_[id];
      const Job& job = jobs_[id];
      all.insert(all.end(), output.new_token_ids.begin(), output.new_token_ids.end());
      const auto expected = model_.generate(job.prompt, job.params);
      ASSERT_LE(all.size(), expected.size());
      ASSERT_TRUE(std::equal(all.begin(), all.end(), expected.begin())) << "request " << id;
      ASSERT_EQ(output.logprobs.size(), job.params.logprobs >= 0 ? output.new_token_ids.size() : 0);
      for (size_t i = 0; i < output.logprobs.size(); ++i)
        ASSERT_EQ(output.logprobs[i].chosen.token, output.new_token_ids[i]);
      if (output.finish_reason == FinishReason::kNone) continue;
      live_.erase(id);
      ends_[id] = output.finish_reason;
      if (output.finish_reason == FinishReason::kCancelled) {
        ++counts_.cancelled;
        ASSERT_TRUE(cancels_.contains(id));
      } else if (output.finish_reason == FinishReason::kError) {
        ++counts_.failed;
        ASSERT_FALSE(output.error.empty());
      } else {
        ++counts_.finished;
        ASSERT_EQ(all, expected) << "request " << id;
      }
    }
  }

  const FakeModel& model_;
  std::mt19937 rng_;
  FakeStack s_;
  std::deque<bool> launched_;  // open steps, oldest first: whether they are in flight
  std::map<RequestId, Job> jobs_;
  std::map<RequestId, std::vector<int64_t>> tokens_;
  std::map<RequestId, int64_t> rows_;
  std::map<RequestId, FinishReason> ends_;
  std::set<RequestId> live_, cancels_;
  RequestId next_id_ = 1;
  Counts counts_;
};

// Arrivals, cancellations, failed steps and NaN rows at random: books balance after each step, nobody else is
// touched, everybody ends exactly once, and at the end everything is free.
class StreamProperty : public SchedulerProperty {
 protected:
  template <typename Advance>
  void run(const Advance& advance) {
    Stream::Counts sum;
    for (uint32_t seed = 0; seed < 8; ++seed) {
      SCOPED_TRACE(testing::Message() << "seed " << seed);
      Stream stream(model(), open_steps(), seed);
      const auto step = advance(stream.stack());
      for (int i = 0; i < 400 || stream.stack().scheduler->has_work(); ++i) {
        if (i < 350 && stream.random(0, 2) == 0) stream.add();
        stream.cancel_one();
        step(stream);
        stream.check();
        if (HasFailure()) return;
      }
      stream.check_end();
      sum.finished += stream.counts().finished;
      sum.cancelled += stream.counts().cancelled;
      sum.failed += stream.counts().failed;
      sum.waited += stream.counts().waited;
      sum.wasted += stream.counts().wasted;
    }
    EXPECT_GT(sum.finished, 100);
    EXPECT_GT(sum.cancelled, 20);
    EXPECT_GT(sum.failed, 20);
    EXPECT_GT(sum.waited, 0);
    if (open_steps() == 1) {
      EXPECT_EQ(sum.wasted, 0);
    } else {
      EXPECT_GT(sum.wasted, 10);
    }
  }
};

TEST_P(StreamProperty, TheLoopKeepsTheBooks) {
  run([](FakeStack& stack) {
    return [loop = stack.make_loop()](Stream&) {
      const StepStatus status = loop->step();
      EXPECT_NE(status, StepStatus::kStopped) << loop->failure();
    };
  });
}

TEST_P(StreamProperty, AnyOrderOfCallsKeepsTheBooks) {
  run([](FakeStack&) { return [](Stream& stream) { stream.advance(); }; });
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (size_t model = 0; model < kModels.size(); ++model) {
    for (int32_t open_steps : {1, 2}) all.push_back({model, open_steps});
  }
  return all;
}

std::string title(const testing::TestParamInfo<Case>& info) { return testing::PrintToString(info.param); }

INSTANTIATE_TEST_SUITE_P(, SchedulerProperty, testing::ValuesIn(cases()), title);
INSTANTIATE_TEST_SUITE_P(, StreamProperty, testing::ValuesIn(cases()), title);

}  // namespace
}  // namespace autodeploy
