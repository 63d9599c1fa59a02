#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "autodeploy/autodeploy.hpp"

namespace {

const std::string kArtifact = std::string(AUTODEPLOY_TEST_DATA) + "/golden/tiny";

autodeploy::Options options(int threads = 1) {
  autodeploy::Options o;
  o.num_threads = threads;
  o.max_num_seqs = 3;
  return o;
}

autodeploy::Params greedy(int64_t max_tokens) {
  autodeploy::Params p;
  p.max_tokens = max_tokens;
  p.temperature = 0;
  return p;
}

std::vector<int64_t> prompt_of(int64_t i) {
  std::vector<int64_t> prompt;
  for (int64_t k = 0; k <= i % 11; ++k) prompt.push_back((i * 7 + k * 5) % 40);
  return prompt;
}

TEST(CppWrapper, StreamsAndJoins) {
  autodeploy::Engine engine(kArtifact, options());
  autodeploy::Request streamed = engine.add_request({3, 14, 15, 9, 26, 5}, greedy(6));
  std::vector<int64_t> tokens;
  while (auto output = streamed.next())
    tokens.insert(tokens.end(), output->token_ids.begin(), output->token_ids.end());
  EXPECT_TRUE(streamed.finished());
  ASSERT_EQ(tokens.size(), 6U);
  EXPECT_EQ(tokens[0], 28);
  autodeploy::Params params = greedy(6);
  params.logprobs = 2;
  const autodeploy::Output joined = engine.add_request({3, 14, 15, 9, 26, 5}, params).wait();
  EXPECT_EQ(joined.token_ids, tokens);
  EXPECT_EQ(joined.finish_reason, AUTODEPLOY_FINISH_LENGTH);
  ASSERT_EQ(joined.logprobs.size(), 6U);
  EXPECT_EQ(joined.logprobs[0].top.size(), 2U);
  EXPECT_EQ(engine.vocab_size(), 40);
  EXPECT_EQ(engine.max_seq_len(), 64);
  EXPECT_FALSE(engine.health().has_value());
  EXPECT_NE(engine.plan().find("\"caches\""), std::string::npos);
  EXPECT_NE(engine.stats().find("\"num_length\":2"), std::string::npos) << engine.stats();
}

// Each request gets the tokens that it gets alone, whoever waits for whose outputs; and so with another
// number of threads.
TEST(CppWrapper, ManyThreadsShareAnEngine) {
  std::vector<std::vector<int64_t>> alone;
  {
    autodeploy::Engine engine(kArtifact, options());
    for (int64_t i = 0; i < 24; ++i)
      alone.push_back(engine.add_request(prompt_of(i), greedy(1 + i)).wait().token_ids);
  }
  autodeploy::Engine engine(kArtifact, options(2));
  std::vector<std::thread> clients;
  std::vector<std::vector<int64_t>> got(24);
  for (int64_t c = 0; c < 4; ++c) {
    clients.emplace_back([&, c] {
      std::vector<autodeploy::Request> mine;
      for (int64_t i = c; i < 24; i += 4) mine.push_back(engine.add_request(prompt_of(i), greedy(1 + i)));
      for (size_t k = mine.size(); k-- > 0;) got[static_cast<size_t>(c) + 4 * k] = mine[k].wait().token_ids;
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(got, alone);
}

TEST(CppWrapper, ErrorsAreExceptions) {
  EXPECT_THROW(autodeploy::Engine("/no/such/artifact"), autodeploy::Exception);
  autodeploy::Engine engine(kArtifact, options());
  try {
    engine.add_request({}, greedy(3));
    ADD_FAILURE() << "an empty prompt was accepted";
  } catch (const autodeploy::Exception& error) {
    EXPECT_EQ(error.status(), AUTODEPLOY_INVALID_ARGUMENT);
    EXPECT_NE(std::string(error.what()).find("empty prompt"), std::string::npos);
  }
  autodeploy::Options o = options();
  o.progress = [](int64_t, int64_t) -> bool { throw std::logic_error("enough"); };
  EXPECT_THROW(autodeploy::Engine(kArtifact, o), std::logic_error);
  o.progress = [](int64_t, int64_t) { return false; };
  EXPECT_THROW(autodeploy::Engine(kArtifact, o), autodeploy::Exception);
}

TEST(CppWrapper, RequestsEndWithTheirObject) {
  autodeploy::Engine engine(kArtifact, options());
  autodeploy::Request kept = engine.add_request({1, 2}, greedy(3));
  {
    autodeploy::Request dropped = engine.add_request({1, 2, 3}, greedy(60));
    EXPECT_FALSE(dropped.next(0).has_value() && dropped.finished());
  }
  EXPECT_EQ(kept.wait().token_ids.size(), 3U);
  autodeploy::Request cancelled = engine.add_request({1, 2, 3}, greedy(60));
  cancelled.cancel();
  const autodeploy::Output output = cancelled.wait();
  EXPECT_TRUE(output.finish_reason == AUTODEPLOY_FINISH_CANCELLED || output.token_ids.size() == 60U);
  autodeploy::Request moved = std::move(kept);
  EXPECT_TRUE(moved.finished());
}

// Less than a thousandth of a processor, the workers of the pool included.
TEST(CppWrapper, SleepsWhenIdle) {
  autodeploy::Engine engine(kArtifact, options(2));
  engine.add_request({1, 2, 3}, greedy(20)).wait();
  const auto cpu_seconds = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
  };
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const double before = cpu_seconds();
  std::this_thread::sleep_for(std::chrono::seconds(2));
  EXPECT_LT(cpu_seconds() - before, 0.002);
}

TEST(CppWrapper, ARequestMayOutliveItsEngine) {
  auto engine = std::make_unique<autodeploy::Engine>(kArtifact, options());
  autodeploy::Request request = engine->add_request({1, 2}, greedy(20));
  engine.reset();
  EXPECT_EQ(request.wait().token_ids.size(), 20U);
}

}  // namespace
