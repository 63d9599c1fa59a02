// A model of hashes that lives on the caches alone: every token it computes is written to the pages and slots
// that the batch names, and the next token is a hash of what can be read back. A wrong page, slot, length or
// window changes the tokens.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/cache_manager.h"
#include "scheduler/model_runner.h"
#include "scheduler/scheduler.h"

namespace autodeploy::testing_fakes {

struct FakeModel {
  std::string title;
  std::vector<std::pair<int64_t, int64_t>> paged = {{0, 0}};  // window, chunk of each paged state
  bool slots = false;
  int64_t vocab_size = 97;

  std::vector<StateSpec> states() const {
    std::vector<StateSpec> specs;
    for (auto [window, chunk] : paged) {
      StateSpec& spec = specs.emplace_back();
      spec.name = "kv";
      spec.window = window;
      spec.chunk = chunk;
      spec.components = {{"k", {1}, DType::kI64}};
    }
    if (slots) {
      for (StateSpec::Kind kind : {StateSpec::Kind::kSlot, StateSpec::Kind::kConv}) {
        StateSpec& spec = specs.emplace_back();
        spec.kind = kind;
        spec.components = {{"h", {1}, DType::kI64}};
      }
    }
    return specs;
  }

  static int64_t mix(int64_t h, int64_t x) { return (h * 6364136223 + x + 1442695) % 1000000007; }

  // Hash of the tokens that the query at `position` sees through a paged state; token(j) reads it.
  static int64_t see(const StateSpec& spec, int64_t position, const std::function<int64_t(int64_t)>& token) {
    int64_t first = 0;
    if (spec.window > 0) first = std::max(first, position - spec.window + 1);
    if (spec.chunk > 0) first = std::max(first, position / spec.chunk * spec.chunk);
    int64_t h = 17;
    for (int64_t j = first; j <= position; ++j) h = mix(h, token(j));
    return h;
  }

  // The tokens of a prompt alone, without any cache.
  std::vector<int64_t> generate(std::vector<int64_t> tokens, const SamplingParams& params) const {
    const size_t prompt_len = tokens.size();
    const auto contains = [](const auto& list, int64_t t) {
      return std::find(list.begin(), list.end(), t) != list.end();
    };
    for (int64_t n = 1; n <= params.max_tokens; ++n) {
      const auto position = static_cast<int64_t>(tokens.size()) - 1;
      int64_t h = 0;
      for (const StateSpec& spec : states()) {
        if (spec.kind == StateSpec::Kind::kPaged) {
          h = mix(h, see(spec, position, [&](int64_t j) { return tokens[static_cast<size_t>(j)]; }));
        } else {
          int64_t state = 3;
          for (int64_t t : tokens) state = mix(state, t);
          h = mix(h, state);
        }
      }
      tokens.push_back(h % vocab_size);
      const bool stops = contains(params.stop_token_ids, tokens.back()) ||
                         (!params.ignore_eos && contains(params.eos_token_ids, tokens.back()));
      if (stops && n >= params.min_tokens) break;
    }
    return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt_len), tokens.end()};
  }
};

class FakeRunner final : public ModelRunner {
 public:
  FakeRunner(const FakeModel& model, std::vector<StateSpec> states, HostStatePools* pools, CacheLimits limits)
      : model_(model), states_(std::move(states)), pools_(pools), limits_(limits) {}

  // Called at each launch; may throw, or change what wait() reports.
  std::function<void(const Step&, FakeRunner&)> on_launch;
  std::string failure;
  bool fatal = false;
  int64_t num_steps = 0, most_tokens = 0, most_seqs = 0;

  void launch(const Step& step) override {
    ++num_steps;
    check_contract(step);
    most_tokens = std::max(most_tokens, step.batch.num_tokens);
    most_seqs = std::max(most_seqs, step.batch.num_seqs);
    compute(step);
    if (on_launch) on_launch(step, *this);
  }

  BatchResult wait() override {
    BatchResult result;
    result.rows = rows_;
    result.failure = std::exchange(failure, {});
    result.fatal = fatal;
    return result;
  }

  std::vector<SampledRow>& rows() { return rows_; }

 private:
  void check_contract(const Step& step) const {
    const StepBatch& b = step.batch;
    ASSERT_GT(b.num_tokens, 0);
    ASSERT_LE(b.num_tokens, limits_.max_batch_tokens);
    ASSERT_LE(b.num_seqs, limits_.max_num_seqs);
    ASSERT_EQ(b.token_ids.size(), static_cast<size_t>(b.num_tokens));
    ASSERT_EQ(b.positions.size(), static_cast<size_t>(b.num_tokens));
    const auto seqs = static_cast<size_t>(b.num_seqs);
    ASSERT_EQ(b.query_start.size(), seqs + 1);
    ASSERT_EQ(b.kv_len.size(), seqs);
    ASSERT_EQ(b.slot.size(), seqs);
    ASSERT_EQ(b.has_state.size(), seqs);
    ASSERT_EQ(b.rows.size(), static_cast<size_t>(b.num_rows));
    ASSERT_EQ(step.rows.size(), b.rows.size());
    ASSERT_TRUE(std::is_sorted(b.rows.begin(), b.rows.end()));
    ASSERT_EQ(b.query_start[0], 0);
    ASSERT_EQ(b.query_start[seqs], b.num_tokens);
    for (size_t i = 0; i < seqs; ++i) {
      const int32_t len = b.query_start[i + 1] - b.query_start[i];
      ASSERT_GT(len, 0);
      ASSERT_TRUE(len == 1 || i >= static_cast<size_t>(b.num_decodes)) << "decodes come first";
      const int64_t begin = b.kv_len[i] - len;
      ASSERT_EQ(b.has_state[i], begin > 0);
      for (int32_t t = 0; t < len; ++t)
        ASSERT_EQ(b.positions[static_cast<size_t>(b.query_start[i] + t)], begin + t);
    }
  }

  int64_t* cell(size_t state, int32_t unit, int64_t offset) const {
    const StateMemory& memory = pools_->memory()[state];
    return reinterpret_cast<int64_t*>(memory.data[0] + unit * memory.bytes[0]) + offset;
  }

  void compute(const Step& step) {
    const StepBatch& b = step.batch;
    rows_.assign(b.rows.size(), SampledRow{});
    size_t row = 0;
    for (size_t i = 0; i < static_cast<size_t>(b.num_seqs); ++i) {
      const int32_t begin = b.query_start[i], end = b.query_start[i + 1];
      int64_t h = 0;
      for (size_t s = 0; s < states_.size(); ++s) {
        const StateSpec& spec = states_[s];
        if (spec.kind != StateSpec::Kind::kPaged) {
          int64_t* state = cell(s, b.slot[i], 0);
          ASSERT_GT(b.slot[i], 0);
          if (!b.has_state[i]) *state = 3;
          for (int32_t t = begin; t < end; ++t)
            *state = FakeModel::mix(*state, b.token_ids[static_cast<size_t>(t)]);
          h = FakeModel::mix(h, *state);
          continue;
        }
        const StepBatch::PageTable& table = b.page_tables[static_cast<size_t>(spec.group)];
        const auto at = [&](int64_t position) {
          const int64_t page = position / table.page_size;
          EXPECT_LT(page, table.max_pages);
          const int32_t id =
              table.pages[i * static_cast<size_t>(table.max_pages) + static_cast<size_t>(page)];
          EXPECT_GT(id, 0) << "position " << position << " has no page";
          return cell(s, id, position % table.page_size);
        };
        for (int32_t t = begin; t < end; ++t)
          *at(b.positions[static_cast<size_t>(t)]) = b.token_ids[static_cast<size_t>(t)];
        h = FakeModel::mix(h, FakeModel::see(spec, b.kv_len[i] - 1, [&](int64_t j) { return *at(j); }));
      }
      if (row < b.rows.size() && b.rows[row] == end - 1) rows_[row++].token = h % model_.vocab_size;
    }
    ASSERT_EQ(row, b.rows.size());
  }

  FakeModel model_;
  std::vector<StateSpec> states_;
  HostStatePools* pools_;
  CacheLimits limits_;
  std::vector<SampledRow> rows_;
};

// Caches, scheduler and runner of a FakeModel.
struct FakeStack {
  FakeStack(const FakeModel& model, CacheLimits limits, std::span<const int64_t> prefix = {})
      : states(model.states()) {
    const CachePlan plan = plan_caches(states, limits);
    pools = std::make_unique<HostStatePools>(plan);
    cache = std::make_unique<CacheManager>(plan, pools.get());
    scheduler = std::make_unique<Scheduler>(cache.get(), model.vocab_size, prefix);
    runner = std::make_unique<FakeRunner>(model, states, pools.get(), plan.limits);
  }
  std::vector<StateSpec> states;
  std::unique_ptr<HostStatePools> pools;
  std::unique_ptr<CacheManager> cache;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<FakeRunner> runner;
};

}  // namespace autodeploy::testing_fakes
