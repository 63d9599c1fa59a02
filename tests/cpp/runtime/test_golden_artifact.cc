// The golden artifact from its files to logits: what the Python interpreter computed, whole and in pieces.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "cache_manager/state_pools.h"
#include "runtime/executor.h"
#include "runtime/program_reader.h"
#include "runtime/weight_loader.h"
#include "weight_files.h"

namespace autodeploy {
namespace {

using testing::golden_dir;

class Golden {
 public:
  explicit Golden(int threads) : pool_(threads), executor_(load_program(golden_dir())) {
    const ProgramSpec& program = executor_.program();
    weights_ = load_weights(load_weight_program(golden_dir()), golden_dir(), program.params, pool_);
    std::vector<StateSpec> states = program.states;
    CacheLimits limits;
    limits.max_seq_len = 64;
    limits.max_num_seqs = 2;
    limits.max_batch_tokens = 64;
    plan_ = plan_caches(states, limits);
    states_ = std::make_unique<HostStatePools>(plan_);
    std::vector<ParamBinding> params;
    for (const ParamSpec& p : program.params) {
      params.push_back({weights_.plain(p.name).data, weights_.packed(p.name), 0});
    }
    ExecutorOptions options;
    options.max_tokens = 64;
    options.max_seqs = 2;
    options.max_rows = 2;
    options.max_seq_len = 64;
    options.exact = true;
    options.pool = &pool_;
    executor_.bind(params, states, states_->memory(), options);
  }

  // Feeds tokens [past, past + n) of the one sequence; returns the logits of the last.
  std::vector<float> feed(const std::vector<int64_t>& tokens, int64_t past) {
    const int64_t n = static_cast<int64_t>(tokens.size());
    std::vector<int64_t> positions(tokens.size());
    for (int64_t i = 0; i < n; ++i) positions[static_cast<size_t>(i)] = past + i;
    const int32_t page_size = plan_.groups.at(0).page_size;
    std::vector<int32_t> pages(static_cast<size_t>((64 + page_size - 1) / page_size));
    for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i + 1);
    const std::vector<int32_t> start = {0, static_cast<int32_t>(n)}, rows = {static_cast<int32_t>(n - 1)};
    const std::vector<int32_t> kv_len = {static_cast<int32_t>(past + n)}, slot = {1};
    const std::vector<uint8_t> has_state = {static_cast<uint8_t>(past > 0)};
    const StepBatch::PageTable table{page_size, static_cast<int32_t>(pages.size()), pages};
    StepBatch batch;
    batch.num_tokens = n;
    batch.num_seqs = 1;
    batch.num_decodes = n == 1 ? 1 : 0;
    batch.num_rows = 1;
    batch.token_ids = tokens;
    batch.positions = positions;
    batch.query_start = start;
    batch.kv_len = kv_len;
    batch.page_tables = {&table, 1};
    batch.slot = slot;
    batch.has_state = has_state;
    batch.rows = rows;
    const TensorView logits = executor_.run(batch);
    return {logits.as<float>(), logits.as<float>() + logits.shape[1]};
  }

 private:
  ThreadPool pool_;
  Executor executor_;
  LoadedWeights weights_;
  CachePlan plan_;
  std::unique_ptr<HostStatePools> states_;
};

void expect_close(const std::vector<float>& found, const std::vector<float>& want) {
  ASSERT_EQ(found.size(), want.size());
  float largest = 0;
  for (float x : want) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(found[i], want[i], 1e-5f * largest) << "token " << i;
}

TEST(GoldenArtifact, LogitsAreThoseOfTheInterpreter) {
  const nlohmann::json facts = nlohmann::json::parse(testing::read_file(golden_dir() + "/expected.json"));
  const std::vector<int64_t> prompt = facts["prompt"];
  const std::vector<float> want = facts["logits"];
  std::vector<std::vector<float>> whole;
  for (int threads : {1, 2}) {
    Golden golden(threads);
    whole.push_back(golden.feed(prompt, 0));
    expect_close(whole.back(), want);
  }
  EXPECT_EQ(whole[0], whole[1]) << "one thread and two give the same bits";

  Golden pieces(2);
  pieces.feed({prompt.begin(), prompt.begin() + 4}, 0);
  pieces.feed({prompt[4]}, 4);
  expect_close(pieces.feed({prompt.begin() + 5, prompt.end()}, 5), want);
}

}  // namespace
}  // namespace autodeploy
