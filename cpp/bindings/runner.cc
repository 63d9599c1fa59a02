#include "bindings/runner.h"

#include <algorithm>
#include <set>
#include <utility>

#include "core/error.h"
#include "runtime/device_library.h"
#include "runtime/plugins.h"
#include "runtime/program_reader.h"
#include "runtime/weight_program.h"

namespace autodeploy {
namespace {

// Plans as if no state had a window, so that every slot has all of its pages at once.
CachePlan plan_without_windows(std::vector<StateSpec>& states, const CacheLimits& limits) {
  std::vector<StateSpec> plain = states;
  for (StateSpec& s : plain) s.window = s.chunk = 0;
  CachePlan plan = plan_caches(plain, limits);
  for (size_t i = 0; i < states.size(); ++i) {
    states[i].group = plain[i].group;
    states[i].page_size = plain[i].page_size;
  }
  return plan;
}

}  // namespace

Runner::Runner(const std::string& artifact_dir, const RunnerOptions& options)
    : options_(options), pool_(options.num_threads) {
  AD_CHECK(!options.uniform_routing || options.dummy, ErrorKind::kInvalidArgument,
           "[runner] uniform_routing: expected made-up weights (dummy) beside it, found none");
  if (options.device == "cpu")
    open_on_host(artifact_dir);
  else
    open_on_device(artifact_dir);
  vocab_size_ = executor_->program().vocab_size;
  pages_.resize(page_sizes_.size());
  tables_.resize(page_sizes_.size());
}

CachePlan Runner::plan(std::vector<StateSpec>& states) {
  CacheLimits limits;
  limits.max_seq_len = options_.max_seq_len;
  limits.max_num_seqs = options_.max_seqs;
  limits.max_batch_tokens = options_.max_tokens;
  limits.page_size = options_.page_size;
  CachePlan plan = plan_without_windows(states, limits);
  for (const PageGroupPlan& g : plan.groups) {
    const int64_t per_seq = (options_.max_seq_len + g.page_size - 1) / g.page_size;
    AD_ICHECK(g.num_pages > per_seq * options_.max_seqs, "the pool holds all pages of all slots");
    page_sizes_.push_back(g.page_size);
    pages_per_seq_.push_back(static_cast<int32_t>(per_seq));
  }
  has_slots_ = plan.slots.num_slots > 0;
  return plan;
}

void Runner::open_on_host(const std::string& artifact_dir) {
  AD_CHECK(parse_act(options_.act, DType::kF32) == DType::kF32, ErrorKind::kUnsupported,
           "[runner] expected act float32 on the CPU, found ", options_.act);
  auto executor =
      std::make_unique<Executor>(load_program(artifact_dir, DType::kF32, PluginSet::load(options_.plugins)));
  const ProgramSpec& program = executor->program();
  weights_ = load_weights(load_weight_program(artifact_dir), artifact_dir, program.params, pool_);
  std::vector<ParamBinding> params;
  for (size_t i = 0; i < program.params.size(); ++i) {
    const std::string& name = program.params[i].name;
    const ParamPlan& plan = weights_.plan().params.at(i);
    params.push_back(
        {weights_.plain(name).data, weights_.packed(name), plan.packed_bytes + plan.plain_bytes});
  }
  std::vector<StateSpec> states = program.states;
  pools_ = std::make_unique<HostStatePools>(plan(states));
  ExecutorOptions o;
  o.max_tokens = o.max_rows = options_.max_tokens;
  o.max_seqs = options_.max_seqs;
  o.max_seq_len = options_.max_seq_len;
  o.exact = options_.exact;
  o.poison = options_.poison;
  o.pool = &pool_;
  executor->bind(params, std::move(states), pools_->memory(), o);
  executor_ = std::move(executor);
}

void Runner::open_on_device(const std::string& artifact_dir) {
  const auto [device, index] = parse_device(options_.device);
  AD_CHECK(index == 0, ErrorKind::kUnsupported, "[runner] expected the first device, found ",
           options_.device);
  DeviceExecutorOptions o;
  o.max_tokens = o.max_rows = options_.max_tokens;
  o.max_seqs = options_.max_seqs;
  o.max_seq_len = options_.max_seq_len;
  o.act = parse_act(options_.act, DType::kF32);
  o.poison = options_.poison;
  o.dummy = options_.dummy;
  o.replay = options_.replay;
  o.uniform_routing = options_.uniform_routing;
  o.num_threads = options_.num_threads;
  executor_ = device_library(device).open_executor(
      artifact_dir, o, [this](std::vector<StateSpec>& states) { return plan(states); });
}

void Runner::check(const RunnerStep& s) const {
  const auto that = [](bool ok, const char* expected) {
    AD_CHECK(ok, ErrorKind::kInvalidArgument, "[runner] expected ", expected, ", found otherwise");
  };
  const size_t T = s.token_ids.size(), B = s.kv_len.size();
  that(T >= 1 && static_cast<int64_t>(T) <= options_.max_tokens, "1 to max_tokens token ids");
  that(B >= 1 && static_cast<int64_t>(B) <= options_.max_seqs, "1 to max_seqs sequences");
  that(s.positions.size() == T, "a position for each token");
  that(s.query_start.size() == B + 1 && s.slot.size() == B && s.has_state.size() == B,
       "a kv_len, slot and has_state for each sequence, and one query_start more");
  that(s.query_start.front() == 0 && s.query_start.back() == static_cast<int32_t>(T),
       "query_start from 0 to the number of tokens");
  that(s.prompt_len.empty() || s.prompt_len.size() == B, "a prompt_len for each sequence, or none");
  std::set<int32_t> slots;
  for (size_t i = 0; i < B; ++i) {
    const int32_t len = s.query_start[i + 1] - s.query_start[i];
    that(len >= 1, "at least one token in each sequence");
    that(s.kv_len[i] >= len && s.kv_len[i] <= options_.max_seq_len,
         "kv_len from the tokens of the step to max_seq_len");
    that(s.slot[i] >= 0 && s.slot[i] < options_.max_seqs && slots.insert(s.slot[i]).second,
         "different slots below max_seqs");
  }
  for (size_t i = 0; i < s.rows.size(); ++i) {
    that(s.rows[i] >= (i ? s.rows[i - 1] + 1 : 0) && s.rows[i] < static_cast<int32_t>(T),
         "ascending rows below the number of tokens");
  }
  const std::vector<int64_t>& prefix = executor_->program().prefix_tokens;
  for (int64_t id : s.token_ids) {
    const bool own = std::find(prefix.begin(), prefix.end(), id) != prefix.end();
    that(id >= 0 && (vocab_size_ == 0 || id < vocab_size_ || own), "token ids below vocab_size");
  }
}

const StepBatch& Runner::prepare(RunnerStep step) {
  check(step);
  step_ = std::move(step);
  const size_t B = step_.kv_len.size();
  slots_.assign(B, 0);
  for (size_t i = 0; has_slots_ && i < B; ++i) slots_[i] = 1 + step_.slot[i];
  for (size_t g = 0; g < pages_.size(); ++g) {
    const int32_t per_seq = pages_per_seq_[g];
    pages_[g].assign(B * static_cast<size_t>(per_seq), 0);
    for (size_t i = 0; i < B; ++i) {
      const int32_t used = (step_.kv_len[i] + page_sizes_[g] - 1) / page_sizes_[g];
      for (int32_t p = 0; p < used; ++p) {
        pages_[g][i * static_cast<size_t>(per_seq) + static_cast<size_t>(p)] =
            1 + p * static_cast<int32_t>(options_.max_seqs) + step_.slot[i];
      }
    }
    tables_[g] = {page_sizes_[g], per_seq, pages_[g]};
  }
  batch_ = {};
  batch_.num_tokens = static_cast<int64_t>(step_.token_ids.size());
  batch_.num_seqs = static_cast<int64_t>(B);
  while (batch_.num_decodes < batch_.num_seqs) {
    const size_t i = static_cast<size_t>(batch_.num_decodes);
    if (step_.query_start[i + 1] - step_.query_start[i] != 1) break;
    ++batch_.num_decodes;
  }
  batch_.num_rows = static_cast<int64_t>(step_.rows.size());
  batch_.token_ids = step_.token_ids;
  batch_.positions = step_.positions;
  batch_.query_start = step_.query_start;
  batch_.kv_len = step_.kv_len;
  batch_.prompt_len = step_.prompt_len;
  batch_.page_tables = tables_;
  batch_.slot = slots_;
  batch_.has_state = step_.has_state;
  batch_.rows = step_.rows;
  return batch_;
}

}  // namespace autodeploy
