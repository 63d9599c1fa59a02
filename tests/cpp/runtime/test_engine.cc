#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "fake_backend.h"

namespace autodeploy {
namespace {

using testing_fakes::FakeBackend;
using testing_fakes::FakeModel;
using testing_fakes::FakeRunner;

// Every test runs with the plain loop and with the overlapped one.
class EngineLoops : public testing::TestWithParam<int32_t> {
 protected:
  const CacheLimits limits_{.max_seq_len = 128,
                            .max_num_seqs = 4,
                            .max_batch_tokens = 16,
                            .page_size = 4,
                            .max_open_steps = GetParam()};
};

std::string title(const testing::TestParamInfo<int32_t>& info) {
  return info.param == 1 ? "plain" : "overlapped";
}

std::vector<int64_t> prompt_of(int64_t len, int64_t salt = 0) {
  std::vector<int64_t> prompt;
  for (int64_t i = 0; i < len; ++i) prompt.push_back((i * 37 + salt * 11) % 97);
  return prompt;
}

SamplingParams params_of(int64_t max_tokens) {
  SamplingParams params;
  params.max_tokens = max_tokens;
  return params;
}

struct Collected {
  std::map<RequestId, std::vector<int64_t>> tokens;
  std::map<RequestId, StepOutput> last;

  void take(std::vector<StepOutput> outputs) {
    for (StepOutput& output : outputs) {
      auto& all = tokens[output.request_id];
      all.insert(all.end(), output.new_token_ids.begin(), output.new_token_ids.end());
      if (output.finish_reason == FinishReason::kNone) continue;
      EXPECT_FALSE(last.contains(output.request_id)) << "request " << output.request_id << " ended twice";
      last[output.request_id] = std::move(output);
    }
  }
  // Until n requests have ended.
  void wait(Engine& engine, size_t n) {
    for (int i = 0; i < 5000 && last.size() < n; ++i) take(engine.wait_outputs(2.0));
    EXPECT_EQ(last.size(), n);
  }
};

// Lets a test stop the engine in the middle of a step.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++arrived_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
  }
  void wait_for_arrival() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return arrived_ > 0; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  bool open_ = false;
};

void wait_until(const std::function<bool()>& happened) {
  for (int i = 0; i < 500 && !happened(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_TRUE(happened());
}

TEST_P(EngineLoops, ServesRequestsFromManyThreads) {
  const FakeModel model;
  Engine engine(std::make_unique<FakeBackend>(model, limits_));
  std::mutex mutex;
  std::map<RequestId, std::vector<int64_t>> expected;
  std::vector<std::thread> clients;
  for (int c = 0; c < 3; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < 15; ++i) {
        const auto prompt = prompt_of(1 + (c * 7 + i * 5) % 40, c * 100 + i);
        const auto params = params_of(1 + i % 9);
        const RequestId id = engine.add_request(prompt, params);
        const std::lock_guard lock(mutex);
        expected[id] = model.generate(prompt, params);
      }
    });
  }
  Collected got;
  got.wait(engine, 45);
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(got.tokens, expected);
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.num_requests, 45);
  EXPECT_EQ(stats.num_length, 45);
  EXPECT_EQ(stats.num_running + stats.num_waiting, 0);
  EXPECT_EQ(stats.cache_used_bytes, 0);
  EXPECT_GT(stats.cache_total_bytes, 0);
  EXPECT_GT(stats.step_seconds_total, 0);
  int64_t generated = 0, prompts = 0;
  for (const auto& [id, tokens] : expected) generated += static_cast<int64_t>(tokens.size());
  for (int c = 0; c < 3; ++c) {
    for (int i = 0; i < 15; ++i) prompts += 1 + (c * 7 + i * 5) % 40;
  }
  EXPECT_EQ(stats.num_generated_tokens, generated);
  EXPECT_EQ(stats.num_prefill_tokens, prompts);
  EXPECT_EQ(stats.num_decode_tokens, generated - 45);
  EXPECT_FALSE(engine.health().has_value());
}

TEST_P(EngineLoops, MalformedRequestsLeaveTheOthersAlone) {
  const FakeModel model;
  Engine engine(std::make_unique<FakeBackend>(model, limits_));
  const RequestId good = engine.add_request(prompt_of(5), params_of(30));
  const auto refused = [&](std::vector<int64_t> prompt, SamplingParams params) {
    try {
      engine.add_request(prompt, params);
      ADD_FAILURE() << "a malformed request was accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kInvalidArgument) << error.what();
    }
  };
  refused({}, params_of(4));
  refused(prompt_of(128), params_of(4));
  refused({97}, params_of(4));
  refused(prompt_of(4), params_of(125));
  SamplingParams params = params_of(4);
  params.top_p = 2;
  refused(prompt_of(4), params);
  Collected got;
  got.wait(engine, 1);
  EXPECT_EQ(got.tokens[good], model.generate(prompt_of(5), params_of(30)));
}

TEST_P(EngineLoops, CancelsWhatRunsAndWhatWaits) {
  auto backend = std::make_unique<FakeBackend>(FakeModel{}, limits_);
  Gate gate;
  backend->fake().on_launch = [&](const Step&, FakeRunner& runner) {
    if (runner.num_steps == 3) gate.pass();
  };
  Engine engine(std::move(backend));
  std::vector<RequestId> ids;
  for (int i = 0; i < 7; ++i) ids.push_back(engine.add_request(prompt_of(4, i), params_of(100)));
  gate.wait_for_arrival();  // four run, three wait
  for (RequestId id : ids) engine.cancel(id);
  engine.cancel(ids[0]);
  engine.cancel(12345);
  gate.open();
  Collected got;
  got.wait(engine, 7);
  for (RequestId id : ids) {
    EXPECT_EQ(got.last[id].finish_reason, FinishReason::kCancelled);
    EXPECT_LE(got.tokens[id].size(), 3U);
  }
  wait_until(
      [&] { return engine.stats().cache_used_bytes == 0; });  // the step in flight may have their pages
  engine.cancel(ids[0]);                                      // has ended: ignored
  EXPECT_TRUE(engine.wait_outputs(0.01).empty());
}

TEST_P(EngineLoops, AFailedStepIsReportedAndTheEngineGoesOn) {
  const FakeModel model;
  auto backend = std::make_unique<FakeBackend>(model, limits_);
  backend->fake().on_launch = [](const Step&, FakeRunner& runner) {
    if (runner.num_steps == 2) throw std::runtime_error("[kernel] broke");
  };
  Engine engine(std::move(backend));
  const RequestId first = engine.add_request(prompt_of(3), params_of(5));
  Collected got;
  got.wait(engine, 1);
  EXPECT_EQ(got.last[first].finish_reason, FinishReason::kError);
  EXPECT_EQ(got.last[first].error, "[kernel] broke");
  const RequestId second = engine.add_request(prompt_of(3), params_of(5));
  got.wait(engine, 2);
  EXPECT_EQ(got.tokens[second], model.generate(prompt_of(3), params_of(5)));
  EXPECT_FALSE(engine.health().has_value());
  EXPECT_EQ(engine.stats().num_failed_steps, 1);
  EXPECT_EQ(engine.stats().num_errors, 1);
}

TEST_P(EngineLoops, AFatalFailureStopsItWithOneClearError) {
  auto backend = std::make_unique<FakeBackend>(FakeModel{}, limits_);
  Gate gate;
  backend->fake().on_launch = [&](const Step&, FakeRunner& runner) {
    gate.pass();
    if (runner.num_steps < 3) return;
    runner.failure = "[device] fell off";
    runner.fatal = true;
  };
  Engine engine(std::move(backend));
  for (int i = 0; i < 6; ++i) engine.add_request(prompt_of(3, i), params_of(50));
  gate.open();
  Collected got;
  got.wait(engine, 6);
  for (const auto& [id, output] : got.last) EXPECT_EQ(output.error, "[device] fell off");
  try {
    engine.wait_outputs(5.0);
    ADD_FAILURE() << "a stopped engine has nothing to wait for";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("fell off"), std::string::npos);
  }
  EXPECT_EQ(engine.health(), "[device] fell off");
  EXPECT_THROW(engine.add_request(prompt_of(3), params_of(5)), Error);
  engine.close();
}

TEST_P(EngineLoops, ABrokenInvariantStopsItToo) {
  auto backend = std::make_unique<FakeBackend>(FakeModel{}, limits_);
  backend->fake().on_run = [](const Step&, FakeRunner& runner) { runner.rows().resize(7); };
  Engine engine(std::move(backend));
  engine.add_request(prompt_of(3), params_of(50));
  Collected got;
  got.wait(engine, 1);
  EXPECT_EQ(got.last.begin()->second.finish_reason, FinishReason::kError);
  wait_until([&] { return engine.health().has_value(); });
}

TEST_P(EngineLoops, CloseEndsEverythingAndWakesWaiters) {
  auto backend = std::make_unique<FakeBackend>(FakeModel{}, limits_);
  Gate gate;
  backend->fake().on_launch = [&](const Step&, FakeRunner&) { gate.pass(); };
  Engine engine(std::move(backend));
  for (int i = 0; i < 9; ++i) engine.add_request(prompt_of(3, i), params_of(50));
  gate.wait_for_arrival();
  engine.add_request(prompt_of(3), params_of(50));  // not yet taken when the engine is closed
  std::thread closer([&] { engine.close(); });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_THROW(engine.add_request(prompt_of(3), params_of(50)), Error);
  gate.open();
  closer.join();
  Collected got;
  got.wait(engine, 10);
  for (const auto& [id, output] : got.last) EXPECT_EQ(output.finish_reason, FinishReason::kCancelled);
  EXPECT_TRUE(engine.wait_outputs(60.0).empty());
  engine.close();
}

TEST_P(EngineLoops, SeedsOfItsOwnDiffer) {
  auto backend = std::make_unique<FakeBackend>(FakeModel{}, limits_);
  std::mutex mutex;
  std::vector<uint64_t> seeds;
  backend->fake().on_launch = [&](const Step& step, FakeRunner&) {
    const std::lock_guard lock(mutex);
    for (const SampleRow& row : step.rows) seeds.push_back(row.params->seed.value());
  };
  Engine engine(std::move(backend));
  SamplingParams params = params_of(1);
  engine.add_request(prompt_of(3), params);
  engine.add_request(prompt_of(3), params);
  params.seed = 5;
  engine.add_request(prompt_of(3), params);
  Collected got;
  got.wait(engine, 3);
  const std::lock_guard lock(mutex);
  ASSERT_EQ(seeds.size(), 3U);
  EXPECT_NE(seeds[0], seeds[1]);
  EXPECT_EQ(seeds[2], 5U);
}

double cpu_seconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](timeval t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) * 1e-6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

TEST_P(EngineLoops, SleepsWhenIdle) {
  Engine engine(std::make_unique<FakeBackend>(FakeModel{}, limits_));
  engine.add_request(prompt_of(3), params_of(5));
  Collected got;
  got.wait(engine, 1);
  const double before = cpu_seconds();
  EXPECT_TRUE(engine.wait_outputs(1.0).empty());
  EXPECT_LT(cpu_seconds() - before, 0.001);
}

TEST_P(EngineLoops, RandomClientsGetTheirTokens) {
  FakeModel model;
  model.paged = {{0, 0}, {9, 0}};
  model.slots = true;
  CacheLimits limits = limits_;
  auto states = model.states();
  limits.max_bytes = plan_caches(states, limits).bytes() * 2 / 3;
  Engine engine(std::make_unique<FakeBackend>(model, limits));
  std::mt19937 rng(3);
  const auto random = [&](int64_t lo, int64_t hi) {
    return std::uniform_int_distribution<int64_t>(lo, hi)(rng);
  };
  std::map<RequestId, std::vector<int64_t>> expected;
  std::map<RequestId, bool> cancelled;
  Collected got;
  for (int i = 0; i < 150; ++i) {
    std::vector<int64_t> prompt(static_cast<size_t>(random(1, 60)));
    for (int64_t& t : prompt) t = random(0, 96);
    const SamplingParams params = params_of(random(1, 60));
    const RequestId id = engine.add_request(prompt, params);
    expected[id] = model.generate(prompt, params);
    if (random(0, 4) == 0) {
      const RequestId victim = random(1, id);
      engine.cancel(victim);
      cancelled[victim] = true;
    }
    if (random(0, 3) == 0) got.take(engine.wait_outputs(0.001));
  }
  got.wait(engine, 150);
  for (const auto& [id, tokens] : expected) {
    if (got.last[id].finish_reason == FinishReason::kCancelled) {
      EXPECT_TRUE(cancelled[id]);
      ASSERT_LE(got.tokens[id].size(), tokens.size());
      EXPECT_TRUE(std::equal(got.tokens[id].begin(), got.tokens[id].end(), tokens.begin()));
    } else {
      EXPECT_EQ(got.tokens[id], tokens) << "request " << id;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, EngineLoops, testing::Values(1, 2), title);

constexpr CacheLimits kOverlapped{
    .max_seq_len = 128, .max_num_seqs = 4, .max_batch_tokens = 16, .page_size = 4, .max_open_steps = 2};

TEST(Engine, TokensArriveWhileTheNextStepIsInFlight) {
  const FakeModel model;
  auto backend = std::make_unique<FakeBackend>(model, kOverlapped);
  Gate gate;
  std::atomic<int64_t> launched = 0, launched_at_wait = 0;
  backend->fake().on_launch = [&](const Step&, FakeRunner& runner) { launched = runner.num_steps; };
  backend->fake().on_wait = [&](const Step&, FakeRunner& runner) {
    if (runner.num_waited == 1) launched_at_wait = launched.load();
    if (runner.num_waited == 2) gate.pass();
  };
  Engine engine(std::move(backend));
  const RequestId id = engine.add_request(prompt_of(3), params_of(5));
  gate.wait_for_arrival();  // the engine waits for the second step
  EXPECT_EQ(launched_at_wait, 2);
  EXPECT_EQ(launched, 3);
  Collected got;
  got.take(engine.wait_outputs(60.0));  // and the first one's token is there
  EXPECT_EQ(got.tokens[id].size(), 1U);
  EXPECT_EQ(engine.stats().num_steps, 1);
  gate.open();
  got.wait(engine, 1);
  EXPECT_EQ(got.tokens[id], model.generate(prompt_of(3), params_of(5)));
}

TEST(Engine, DoesNotSleepWhileAStepIsInFlight) {
  const FakeModel model;
  Engine engine(std::make_unique<FakeBackend>(model, kOverlapped));
  SamplingParams params = params_of(20);
  params.stop_token_ids = {model.generate(prompt_of(3), params_of(1))[0]};
  engine.add_request(prompt_of(3), params);
  Collected got;
  got.wait(engine, 1);
  // Nobody asks for anything more, yet the second step, which came too late to be of use, is closed.
  wait_until([&] { return engine.stats().num_steps == 2; });
  EXPECT_EQ(engine.stats().cache_used_bytes, 0);
  EXPECT_EQ(got.last.begin()->second.finish_reason, FinishReason::kStop);
}

TEST(Engine, AFailedLaunchDoesNotHoldTokensBack) {
  const FakeModel model;
  auto backend = std::make_unique<FakeBackend>(model, kOverlapped);
  backend->fake().on_launch = [](const Step&, FakeRunner& runner) {
    if (runner.num_steps == 3) throw std::runtime_error("[kernel] broke");
  };
  Engine engine(std::move(backend));
  engine.add_request(prompt_of(3), params_of(9));
  std::vector<size_t> tokens;
  for (int step = 0; step < 3; ++step) {
    const std::vector<StepOutput> outputs = engine.wait_outputs(60.0);
    ASSERT_EQ(outputs.size(), 1U);
    tokens.push_back(outputs[0].new_token_ids.size());
    EXPECT_EQ(outputs[0].error, step == 2 ? "[kernel] broke" : "");
  }
  EXPECT_EQ(tokens, std::vector<size_t>({1, 1, 0}));
  EXPECT_FALSE(engine.health().has_value());
}

TEST(Engine, ABrokenInvariantWaitsForWhatIsInFlight) {
  auto backend = std::make_unique<FakeBackend>(FakeModel{}, kOverlapped);
  std::atomic<int64_t> waited = 0, launched = 0;
  backend->fake().on_launch = [&](const Step&, FakeRunner&) { ++launched; };
  backend->fake().on_wait = [&](const Step&, FakeRunner&) { ++waited; };
  backend->fake().on_run = [](const Step&, FakeRunner& runner) {
    if (runner.num_run == 1) runner.rows().resize(7);
  };
  Engine engine(std::move(backend));
  engine.add_request(prompt_of(3), params_of(50));
  Collected got;
  got.wait(engine, 1);
  engine.close();
  EXPECT_TRUE(engine.health().has_value());
  EXPECT_EQ(launched, 2);
  EXPECT_EQ(waited, 2);
}

}  // namespace
}  // namespace autodeploy
