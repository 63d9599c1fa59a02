// Runs steps of a FakeModel: what a backend may do, and what it may rely on.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "cache_manager/cache_manager.h"
#include "fake_model.h"
#include "scheduler/model_runner.h"
#include "scheduler/scheduler.h"
#include "scheduler/step_loop.h"

namespace autodeploy::testing_fakes {

// A device in miniature: steps run in the order of their launches, at any time between their launch and their
// wait (`runs_now` decides), read their arrays and the caches then, and take tokens that the host does not
// know from the rows of the step before. Whatever nobody may rely on is overwritten with nonsense: pages and
// slots that are free, rows of failed steps, results whose time is over. And it watches that nothing which a
// step refers to changes hands before the step has been waited for.
class FakeRunner final : public ModelRunner {
 public:
  FakeRunner(const FakeModel& model, std::vector<StateSpec> states, HostStatePools* pools,
             const CacheManager* cache, int64_t prefix_len)
      : model_(model),
        states_(std::move(states)),
        pools_(pools),
        cache_(cache),
        limits_(cache->plan().limits),
        prefix_len_(prefix_len),
        results_(static_cast<size_t>(limits_.max_open_steps)) {}

  // Called at each launch; may throw, or set the failure of that step.
  std::function<void(const Step&, FakeRunner&)> on_launch;
  // Called when a step has run; may change rows() or set the failure.
  std::function<void(const Step&, FakeRunner&)> on_run;
  // Called when a step is waited for; may throw.
  std::function<void(const Step&, FakeRunner&)> on_wait;
  // Whether the oldest step that has not run does so now.
  std::function<bool()> runs_now = [] { return true; };
  std::string failure;
  bool fatal = false;
  int64_t num_steps = 0, num_run = 0, num_waited = 0, most_tokens = 0, most_seqs = 0, most_in_flight = 0;

  int32_t max_in_flight() const override { return limits_.max_open_steps; }
  int64_t num_in_flight() const { return static_cast<int64_t>(in_flight_.size()); }
  // Of the step that is on_run's.
  std::vector<SampledRow>& rows() { return *rows_; }

  void launch(const Step& step) override {
    ++num_steps;
    EXPECT_LT(num_in_flight(), max_in_flight()) << "too many steps in flight";
    check_contract(step);
    check_in_flight();
    poison_free();
    most_tokens = std::max(most_tokens, step.batch.num_tokens);
    most_seqs = std::max(most_seqs, step.batch.num_seqs);
    InFlight& entry = in_flight_.emplace_back();
    entry.step = &step;
    entry.number = next_number_++;
    entry.contents = contents(step);
    // The row that was there belongs to a result that is no longer valid.
    results(entry).assign(step.rows.size(), SampledRow{nonsense(entry.number), {}});
    claim(entry);
    try {
      run_some();
      if (on_launch) on_launch(step, *this);
      take_failure(entry);
      run_some();
    } catch (...) {
      if (entry.has_run) pool_number_ = -1;
      in_flight_.pop_back();
      --next_number_;
      throw;
    }
    most_in_flight = std::max(most_in_flight, num_in_flight());
  }

  BatchResult wait() override {
    EXPECT_GT(num_in_flight(), 0) << "nothing was launched";
    ++num_waited;
    check_in_flight();
    poison_free();
    run_some();
    if (!in_flight_.front().has_run) run(in_flight_.front());
    run_some();
    const InFlight entry = std::move(in_flight_.front());
    in_flight_.pop_front();
    EXPECT_EQ(contents(*entry.step), entry.contents) << "a step changed before it was waited for";
    if (on_wait) on_wait(*entry.step, *this);
    BatchResult result;
    result.rows = results(entry);
    result.failure = entry.failure;
    result.fatal = entry.fatal;
    if (entry.fatal) in_flight_.clear();
    return result;
  }

  // What a step in flight refers to is still owned.
  void check_in_flight() const {
    for (const InFlight& entry : in_flight_) {
      for (const Unit& unit : entry.units) {
        EXPECT_GT(unit.group < 0 ? cache_->slot_owners(unit.id) : cache_->page_owners(unit.group, unit.id), 0)
            << (unit.group < 0 ? "slot " : "page ") << unit.id << " was freed under step " << entry.number;
      }
    }
  }

 private:
  // A page, or a slot (group -1), that sequence `seq` of a step refers to.
  struct Unit {
    int32_t group = -1, id = 0;
    size_t index = 0, seq = 0;  // index: the logical page
  };
  struct InFlight {
    const Step* step = nullptr;
    int64_t number = 0;
    std::vector<int64_t> contents;
    std::vector<Unit> units;
    bool has_run = false;
    std::string failure;
    bool fatal = false;
  };

  std::vector<SampledRow>& results(const InFlight& entry) {
    return results_[static_cast<size_t>(entry.number % max_in_flight())];
  }
  // Looks like a token.
  int64_t nonsense(int64_t salt) const { return FakeModel::mix(salt, 29) % model_.vocab_size; }

  void take_failure(InFlight& entry) {
    if (entry.failure.empty()) entry.failure = std::exchange(failure, {});
    entry.fatal = entry.fatal || (!entry.failure.empty() && std::exchange(fatal, false));
  }

  void run_some() {
    for (InFlight& entry : in_flight_) {
      if (entry.has_run) continue;
      if (!runs_now()) return;
      run(entry);
    }
  }

  void run(InFlight& entry) {
    ++num_run;
    entry.has_run = true;
    rows_ = &results(entry);
    compute(entry);
    if (on_run) on_run(*entry.step, *this);
    take_failure(entry);
    if (!entry.failure.empty()) {
      for (size_t r = 0; r < rows_->size(); ++r) (*rows_)[r].token = r % 2 ? -1 : nonsense(num_run);
    }
    pool_.clear();
    for (const SampledRow& row : *rows_) pool_.push_back(row.token);
    pool_number_ = entry.number;
  }

  // Everything that a step says.
  static std::vector<int64_t> contents(const Step& step) {
    const StepBatch& b = step.batch;
    std::vector<int64_t> all{b.num_tokens, b.num_seqs, b.num_decodes, b.num_rows};
    const auto add = [&](const auto& span) {
      all.push_back(static_cast<int64_t>(span.size()));
      all.insert(all.end(), span.begin(), span.end());
    };
    add(b.token_ids);
    add(b.positions);
    add(b.query_start);
    add(b.kv_len);
    add(b.prompt_len);
    add(b.slot);
    add(b.has_state);
    add(b.rows);
    add(b.cut);
    add(step.token_rows);
    for (const StepBatch::PageTable& table : b.page_tables) add(table.pages);
    for (const SampleRow& row : step.rows) {
      add(row.prompt);
      add(row.generated);
      all.push_back(row.pending_row);
      all.push_back(row.params->max_tokens);
    }
    return all;
  }

  // Notes what a step refers to, and that nothing of it belongs to another sequence in flight.
  void claim(InFlight& entry) const {
    const StepBatch& b = entry.step->batch;
    for (size_t i = 0; i < static_cast<size_t>(b.num_seqs); ++i) {
      for (size_t g = 0; g < b.page_tables.size(); ++g) {
        const StepBatch::PageTable& table = b.page_tables[g];
        const auto width = static_cast<size_t>(table.max_pages);
        for (size_t p = 0; p < width; ++p) {
          const int32_t page = table.pages[i * width + p];
          if (page != 0) entry.units.push_back({static_cast<int32_t>(g), page, p, i});
        }
      }
      if (b.slot[i] != 0) entry.units.push_back({-1, b.slot[i], 0, i});
    }
    std::map<std::pair<int32_t, int32_t>, Unit> own;
    for (const Unit& unit : entry.units) {
      EXPECT_TRUE(own.try_emplace({unit.group, unit.id}, unit).second) << "one owner";
    }
    for (const InFlight& before : in_flight_) {
      if (&before == &entry) continue;
      for (const Unit& old : before.units) {
        const auto found = own.find({old.group, old.id});
        if (found == own.end()) continue;
        // Only the same sequence, going on.
        EXPECT_EQ(old.index, found->second.index);
        EXPECT_EQ(before.step->batch.kv_len[old.seq], first_position(b, found->second.seq))
            << "handed out under step " << before.number;
      }
    }
  }

  static int64_t first_position(const StepBatch& b, size_t seq) {
    return b.positions[static_cast<size_t>(b.query_start[seq])];
  }

  void poison_free() const {
    const CachePlan& plan = cache_->plan();
    const auto poison = [&](int32_t state, int32_t unit) {
      const StateMemory& memory = pools_->memory()[static_cast<size_t>(state)];
      std::fill_n(cell(static_cast<size_t>(state), unit, 0), memory.bytes[0] / int64_t{sizeof(int64_t)},
                  kPoison);
    };
    for (size_t g = 0; g < plan.groups.size(); ++g) {
      for (int32_t page = 1; page < plan.groups[g].num_pages; ++page) {
        if (cache_->page_owners(static_cast<int32_t>(g), page) > 0) continue;
        for (int32_t state : plan.groups[g].states) poison(state, page);
      }
    }
    for (int32_t slot = 1; slot < plan.slots.num_slots; ++slot) {
      if (cache_->slot_owners(slot) > 0) continue;
      for (int32_t state : plan.slots.states) poison(state, slot);
    }
  }

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
    size_t row = 0;
    for (size_t i = 0; i < seqs; ++i) {
      const int32_t len = b.query_start[i + 1] - b.query_start[i];
      ASSERT_GT(len, 0);
      ASSERT_TRUE(len == 1 || i >= static_cast<size_t>(b.num_decodes)) << "decodes come first";
      const int64_t begin = b.kv_len[i] - len;
      ASSERT_EQ(b.has_state[i], begin > 0);
      for (int32_t t = 0; t < len; ++t)
        ASSERT_EQ(b.positions[static_cast<size_t>(b.query_start[i] + t)], begin + t);
      if (row == b.rows.size() || b.rows[row] >= b.query_start[i + 1]) continue;
      ASSERT_EQ(step.rows[row++].position() + prefix_len_, b.kv_len[i]);
    }
    check_token_rows(step);
  }

  void check_token_rows(const Step& step) const {
    const StepBatch& b = step.batch;
    if (step.token_rows.empty()) {
      for (const SampleRow& row : step.rows) ASSERT_EQ(row.pending_row, -1);
      return;
    }
    ASSERT_EQ(step.token_rows.size(), static_cast<size_t>(b.num_tokens));
    ASSERT_FALSE(in_flight_.empty()) << "only the step launched just before has rows to name";
    for (size_t t = 0; t < step.token_rows.size(); ++t) {
      const int32_t row = step.token_rows[t];
      ASSERT_GE(row, -1);
      ASSERT_LT(row, in_flight_.back().step->batch.num_rows);
      if (row < 0) continue;
      ASSERT_EQ(b.token_ids[t], 0);
      ASSERT_LT(t, static_cast<size_t>(b.num_decodes)) << "only decodes wait for a token";
    }
    for (size_t r = 0; r < step.rows.size(); ++r) {
      ASSERT_EQ(step.rows[r].pending_row, step.token_rows[static_cast<size_t>(b.rows[r])]);
    }
  }

  // As the device does: from the batch, or from what the step before left.
  int64_t token(const InFlight& entry, int32_t t) const {
    const Step& step = *entry.step;
    const auto i = static_cast<size_t>(t);
    const int32_t row = step.token_rows.empty() ? -1 : step.token_rows[i];
    if (row < 0) return step.batch.token_ids[i];
    EXPECT_EQ(pool_number_, entry.number - 1) << "the step launched just before has run";
    return std::max<int64_t>(pool_.at(static_cast<size_t>(row)), 0);
  }

  int64_t* cell(size_t state, int32_t unit, int64_t offset) const {
    const StateMemory& memory = pools_->memory()[state];
    return reinterpret_cast<int64_t*>(memory.data[0] + unit * memory.bytes[0]) + offset;
  }

  // A step that is to fail leaves nonsense.
  void compute(const InFlight& entry) {
    const StepBatch& b = entry.step->batch;
    const auto input = [&](int32_t t) { return entry.failure.empty() ? token(entry, t) : kPoison; };
    rows_->assign(b.rows.size(), SampledRow{});
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
          for (int32_t t = begin; t < end; ++t) *state = FakeModel::mix(*state, input(t));
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
        for (int32_t t = begin; t < end; ++t) *at(b.positions[static_cast<size_t>(t)]) = input(t);
        h = FakeModel::mix(h, FakeModel::see(spec, b.kv_len[i] - 1, [&](int64_t j) { return *at(j); }));
      }
      if (row == b.rows.size() || b.rows[row] != end - 1) continue;
      SampledRow& sampled = (*rows_)[row];
      sampled.token = h % model_.vocab_size;
      if (entry.step->rows[row].params->logprobs >= 0) {
        sampled.logprob = {{sampled.token, -0.25F}, 1, {{sampled.token, -0.25F}}};
      }
      ++row;
    }
    ASSERT_EQ(row, b.rows.size());
  }

  static constexpr int64_t kPoison = 123456789;

  FakeModel model_;
  std::vector<StateSpec> states_;
  HostStatePools* pools_;
  const CacheManager* cache_;
  CacheLimits limits_;
  int64_t prefix_len_;
  std::deque<InFlight> in_flight_;  // oldest first
  int64_t next_number_ = 0;
  std::vector<std::vector<SampledRow>> results_;  // [max_in_flight]
  std::vector<SampledRow>* rows_ = nullptr;
  std::vector<int64_t> pool_;  // tokens of the step that has run last
  int64_t pool_number_ = -1;   // and its number
};

// Caches, scheduler and runner of a FakeModel.
struct FakeStack {
  FakeStack(const FakeModel& model, CacheLimits limits, std::span<const int64_t> prefix = {})
      : states(model.states()) {
    const CachePlan plan = plan_caches(states, limits);
    pools = std::make_unique<HostStatePools>(plan);
    cache = std::make_unique<CacheManager>(plan, pools.get());
    scheduler = std::make_unique<Scheduler>(cache.get(), model.vocab_size, prefix);
    runner = std::make_unique<FakeRunner>(model, states, pools.get(), cache.get(),
                                          static_cast<int64_t>(prefix.size()));
  }
  // The overlapped one where the limits allow two open steps.
  std::unique_ptr<StepLoop> make_loop() {
    return scheduler->max_open_steps() > 1 ? make_overlapped_loop(scheduler.get(), runner.get())
                                           : make_plain_loop(scheduler.get(), runner.get());
  }
  std::vector<StateSpec> states;
  std::unique_ptr<HostStatePools> pools;
  std::unique_ptr<CacheManager> cache;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<FakeRunner> runner;
};

}  // namespace autodeploy::testing_fakes
