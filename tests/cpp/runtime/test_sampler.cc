#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "runtime/sampler.h"

namespace autodeploy {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(int64_t vocab, uint32_t seed, float scale) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> row(static_cast<size_t>(vocab));
  for (float& x : row) x = normal(rng);
  return row;
}

SamplingParams sampling(double temperature) {
  SamplingParams params;
  params.temperature = temperature;
  params.seed = 11;
  return params;
}

// The definition, in double and by sorting: logits after bias and penalties, then the filtered distribution.
struct Reference {
  std::vector<double> logits;
  std::vector<double> probs;  // [vocab], 0 for what was filtered out

  Reference(const std::vector<float>& raw, const SampleRow& row) : logits(raw.begin(), raw.end()) {
    const SamplingParams& p = *row.params;
    for (auto [token, bias] : p.logit_bias) logits[static_cast<size_t>(token)] += bias;
    if (static_cast<int64_t>(row.generated.size()) < p.min_tokens) {
      for (int64_t t : p.stop_token_ids) logits[static_cast<size_t>(t)] = -INFINITY;
      for (int64_t t : p.eos_token_ids) {
        if (!p.ignore_eos) logits[static_cast<size_t>(t)] = -INFINITY;
      }
    }
    for (size_t t = 0; t < logits.size(); ++t) {
      const auto times = [&](auto span) {
        return std::count(span.begin(), span.end(), static_cast<int64_t>(t));
      };
      const auto generated = times(row.generated);
      if (generated + times(row.prompt) > 0) {
        logits[t] = logits[t] > 0 ? logits[t] / p.repetition_penalty : logits[t] * p.repetition_penalty;
      }
      if (generated > 0)
        logits[t] -= p.frequency_penalty * static_cast<double>(generated) + p.presence_penalty;
    }
    if (p.temperature == 0) return;
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    const double max = logits[order[0]];
    probs.resize(logits.size());
    const auto normalise = [&] {
      const double total = std::accumulate(probs.begin(), probs.end(), 0.0);
      for (double& x : probs) x /= total;
    };
    for (size_t t = 0; t < logits.size(); ++t) probs[t] = std::exp((logits[t] - max) / p.temperature);
    if (p.top_k > 0 && p.top_k < static_cast<int64_t>(logits.size())) {
      const double kth = logits[order[static_cast<size_t>(p.top_k - 1)]];
      for (size_t t = 0; t < logits.size(); ++t) {
        if (logits[t] < kth) probs[t] = 0;
      }
    }
    normalise();
    if (p.top_p < 1) {
      double before = 0;
      for (size_t i = 0; i < order.size(); ++i) {
        const double x = probs[order[i]];
        if (before >= p.top_p && i > 0) probs[order[i]] = 0;
        before += x;
      }
      normalise();
    }
    for (double& x : probs) x = x < p.min_p * probs[order[0]] ? 0 : x;
    normalise();
  }
};

class SamplerTest : public testing::Test {
 protected:
  // The tokens of rows with the same logits.
  std::vector<SampledRow> sample(std::vector<float> logits, const std::vector<SampleRow>& rows,
                                 int threads = 1) {
    const auto vocab = static_cast<int64_t>(logits.size());
    std::vector<float> all;
    for (size_t r = 0; r < rows.size(); ++r) all.insert(all.end(), logits.begin(), logits.end());
    const std::vector<float> before = all;
    TensorView view;
    view.data = all.data();
    view.ndim = 2;
    view.shape = {static_cast<int64_t>(rows.size()), vocab};
    view.stride = {vocab, 1};
    ThreadPool pool(threads);
    Sampler sampler(vocab, static_cast<int64_t>(rows.size()), threads);
    const auto result = sampler.sample(view, rows, pool);
    EXPECT_EQ(std::memcmp(before.data(), all.data(), all.size() * sizeof(float)), 0)
        << "logits are left as they were";
    return {result.begin(), result.end()};
  }

  int64_t sample_one(const std::vector<float>& logits, const SamplingParams& params,
                     std::vector<int64_t> prompt = {0}, std::vector<int64_t> generated = {}) {
    return sample(logits, {{&params, prompt, generated}})[0].token;
  }
};

TEST_F(SamplerTest, GreedyTakesTheFirstLargest) {
  std::vector<float> logits = random_logits(1000, 1, 2);
  logits[400] = logits[700] = 50;
  EXPECT_EQ(sample_one(logits, sampling(0)), 400);
}

TEST_F(SamplerTest, BadRowsGiveNoToken) {
  for (double temperature : {0.0, 1.0}) {
    std::vector<float> logits = random_logits(100, 1, 2);
    logits[70] = std::nanf("");
    EXPECT_EQ(sample_one(logits, sampling(temperature)), -1);
    logits[70] = kInf;
    EXPECT_EQ(sample_one(logits, sampling(temperature)), -1);
    std::fill(logits.begin(), logits.end(), -kInf);
    EXPECT_EQ(sample_one(logits, sampling(temperature)), -1);
    logits[33] = -5;
    EXPECT_EQ(sample_one(logits, sampling(temperature)), 33);
    SamplingParams forbidden = sampling(temperature);
    forbidden.min_tokens = 1;
    forbidden.eos_token_ids = {33};
    EXPECT_EQ(sample_one(logits, forbidden), -1);
  }
}

struct Case {
  const char* title;
  std::function<void(SamplingParams&)> change;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"plain", [](auto&) {}},
      {"cold", [](auto& p) { p.temperature = 0.05; }},
      {"hot", [](auto& p) { p.temperature = 3; }},
      {"top_k", [](auto& p) { p.top_k = 5; }},
      {"top_k_of_one", [](auto& p) { p.top_k = 1; }},
      {"top_k_large", [](auto& p) { p.top_k = 300; }},
      {"top_p", [](auto& p) { p.top_p = 0.8; }},
      {"top_p_tiny", [](auto& p) { p.top_p = 1e-6; }},
      {"top_p_hot", [](auto& p) { p.top_p = 0.97, p.temperature = 5; }},
      {"min_p", [](auto& p) { p.min_p = 0.1; }},
      {"min_p_of_one", [](auto& p) { p.min_p = 1; }},
      {"all_filters", [](auto& p) { p.top_k = 20, p.top_p = 0.9, p.min_p = 0.05, p.temperature = 1.5; }},
      {"top_p_and_min_p", [](auto& p) { p.top_p = 0.99, p.min_p = 0.02, p.temperature = 2; }},
      {"repetition", [](auto& p) { p.repetition_penalty = 1.8; }},
      {"repetition_below_one", [](auto& p) { p.repetition_penalty = 0.6, p.top_k = 40; }},
      {"presence", [](auto& p) { p.presence_penalty = 1.5, p.top_p = 0.9; }},
      {"frequency", [](auto& p) { p.frequency_penalty = 0.7; }},
      {"negative_penalties", [](auto& p) { p.frequency_penalty = -1, p.presence_penalty = -1; }},
      {"bias", [](auto& p) { p.logit_bias = {{7, 9.0}, {8, -100.0}, {9, 100.0}}, p.temperature = 40; }},
      {"min_tokens", [](auto& p) { p.min_tokens = 9, p.eos_token_ids = {3, 5}, p.stop_token_ids = {4}; }},
      {"min_tokens_ignore_eos",
       [](auto& p) { p.min_tokens = 9, p.eos_token_ids = {3}, p.ignore_eos = true; }},
      {"min_tokens_reached", [](auto& p) { p.min_tokens = 4, p.eos_token_ids = {3, 5}; }},
  };
  return all;
}

class SamplerDistribution : public SamplerTest, public testing::WithParamInterface<size_t> {};

// Draws at many positions follow the distribution by definition, and never leave its support.
TEST_P(SamplerDistribution, MatchesTheDefinition) {
  const std::vector<int64_t> prompt = {1, 2, 2, 3, 60, 7};
  const std::vector<int64_t> generated = {5, 5, 5, 9};
  for (float scale : {0.5F, 3.0F}) {
    std::vector<float> logits = random_logits(613, 3, scale);
    logits[100] = -kInf;
    SamplingParams params = sampling(1);
    cases()[GetParam()].change(params);
    const Reference reference(logits, {&params, prompt, generated});
    // Positions differ by the seeds: rows share prompt and output.
    constexpr int kDraws = 4000;
    std::vector<SamplingParams> seeds(kDraws, params);
    std::vector<SampleRow> rows;
    for (int i = 0; i < kDraws; ++i) {
      seeds[static_cast<size_t>(i)].seed = static_cast<uint64_t>(i) * 77;
      rows.push_back({&seeds[static_cast<size_t>(i)], prompt, generated});
    }
    std::vector<int> counts(logits.size());
    for (const SampledRow& row : sample(logits, rows)) {
      ASSERT_GE(row.token, 0);
      ++counts[static_cast<size_t>(row.token)];
    }
    // Chi-square over tokens with enough expected draws; the rest as one cell.
    double chi = 0, rest_expected = 0;
    int cells = 0, rest = 0;
    for (size_t t = 0; t < counts.size(); ++t) {
      const double expected = reference.probs[t] * kDraws;
      ASSERT_TRUE(expected > 0 || counts[t] == 0) << "token " << t << " was filtered out";
      if (expected < 5) {
        rest_expected += expected;
        rest += counts[t];
        continue;
      }
      chi += (counts[t] - expected) * (counts[t] - expected) / expected;
      ++cells;
    }
    if (rest_expected > 1) chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected, ++cells;
    const double freedom = std::max(cells - 1, 1);
    EXPECT_LT(chi, freedom + 5 * std::sqrt(2 * freedom)) << cells << " cells, logits of scale " << scale;
  }
}

TEST_P(SamplerDistribution, GreedyFollowsTheSameEdits) {
  const std::vector<int64_t> prompt = {1, 2, 2, 3, 60, 7};
  const std::vector<int64_t> generated = {5, 5, 5, 9};
  for (uint32_t seed = 0; seed < 20; ++seed) {
    std::vector<float> logits = random_logits(64, seed, 1);
    logits[5] += 2;
    logits[3] += 2;
    SamplingParams params = sampling(1);
    cases()[GetParam()].change(params);
    params.temperature = 0;
    const Reference reference(logits, {&params, prompt, generated});
    const auto best =
        std::max_element(reference.logits.begin(), reference.logits.end()) - reference.logits.begin();
    EXPECT_EQ(sample(logits, {{&params, prompt, generated}})[0].token, best) << "seed " << seed;
  }
}

INSTANTIATE_TEST_SUITE_P(, SamplerDistribution, testing::Range<size_t>(0, cases().size()),
                         [](const auto& info) { return cases()[info.param].title; });

TEST_F(SamplerTest, ReproducesWhateverRunsBeside) {
  const std::vector<float> logits = random_logits(5000, 9, 2);
  std::vector<SamplingParams> params(9, sampling(1));
  for (size_t i = 0; i < params.size(); ++i) {
    params[i].seed = 100 + i;
    cases()[i * 2].change(params[i]);
  }
  const std::vector<int64_t> prompt = {4, 5, 6}, generated = {7, 7};
  std::vector<SampleRow> rows;
  for (const auto& p : params) rows.push_back({&p, prompt, generated});
  const auto together = sample(logits, rows, 2);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(sample(logits, {rows[i]})[0].token, together[i].token) << "row " << i;
  }
  // Another position or another seed draws anew.
  std::map<int64_t, int> seen;
  const SamplingParams p = sampling(2);
  for (int i = 0; i < 50; ++i) {
    const std::vector<int64_t> longer(static_cast<size_t>(i), 1);
    ++seen[sample(logits, {{&p, prompt, longer}})[0].token];
  }
  EXPECT_GT(seen.size(), 10U);
}

TEST_F(SamplerTest, LogprobsAreOfTheModelsOwnDistribution) {
  std::vector<float> logits = random_logits(3000, 5, 3);
  logits[10] = logits[20];
  SamplingParams params = sampling(0.7);
  params.logit_bias = {{1234, 100.0}};
  for (int32_t n : {0, 1, 5, kMaxLogprobs}) {
    params.logprobs = n;
    const std::vector<int64_t> prompt = {1};
    const ChosenLogprob got = sample(logits, {{&params, prompt, {}}})[0].logprob;
    double total = 0;
    for (float x : logits) total += std::exp(static_cast<double>(x));
    const auto logprob = [&](int64_t t) {
      return static_cast<double>(logits[static_cast<size_t>(t)]) - std::log(total);
    };
    EXPECT_EQ(got.chosen.token, 1234);
    EXPECT_NEAR(got.chosen.logprob, logprob(1234), 1e-5);
    EXPECT_EQ(got.rank,
              1 + std::count_if(logits.begin(), logits.end(), [&](float x) { return x > logits[1234]; }));
    std::vector<int64_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    ASSERT_EQ(got.top.size(), static_cast<size_t>(n));
    for (size_t i = 0; i < got.top.size(); ++i) {
      EXPECT_EQ(got.top[i].token, order[i]) << i;
      EXPECT_NEAR(got.top[i].logprob, logprob(order[i]), 1e-5) << i;
    }
  }
}

TEST_F(SamplerTest, LogprobsOfAVocabularySmallerThanAskedFor) {
  SamplingParams params = sampling(0);
  params.logprobs = 20;
  const std::vector<int64_t> prompt = {1};
  const auto got = sample({1, 5, 5, -kInf}, {{&params, prompt, {}}})[0].logprob;
  ASSERT_EQ(got.top.size(), 4U);
  EXPECT_EQ(got.top[0].token, 1);
  EXPECT_EQ(got.top[1].token, 2);
  EXPECT_EQ(got.top[3].logprob, -kInf);
}

}  // namespace
}  // namespace autodeploy
