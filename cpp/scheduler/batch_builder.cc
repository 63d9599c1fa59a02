#include "scheduler/batch_builder.h"

#include <algorithm>

#include "core/error.h"

namespace autodeploy {

BatchBuilder::BatchBuilder(const CachePlan& plan) : plan_(&plan) {
  const auto tokens = static_cast<size_t>(plan.limits.max_batch_tokens);
  const auto seqs = static_cast<size_t>(plan.limits.max_num_seqs);
  token_ids_.reserve(tokens);
  token_rows_.reserve(tokens);
  positions_.reserve(tokens);
  query_start_.reserve(seqs + 1);
  kv_len_.reserve(seqs);
  prompt_len_.reserve(seqs);
  slot_.reserve(seqs);
  rows_.reserve(seqs);
  has_state_.reserve(seqs);
  cut_.reserve(seqs);
  sample_rows_.reserve(seqs);
  for (const PageGroupPlan& group : plan.groups) {
    const int64_t max_pages = (plan.limits.max_seq_len + group.page_size - 1) / group.page_size;
    // Sequences that run together hold no more than the pool has, and window groups no more than reaches
    // back.
    pages_.emplace_back().reserve(seqs * static_cast<size_t>(max_pages));
  }
  page_tables_.resize(plan.groups.size());
}

int64_t BatchBuilder::bytes() const {
  const auto size = [](const auto& v) { return static_cast<int64_t>(v.capacity() * sizeof(v[0])); };
  int64_t total = size(token_ids_) + size(token_rows_) + size(positions_) + size(query_start_) +
                  size(kv_len_) + size(prompt_len_) + size(slot_) + size(rows_) + size(has_state_) +
                  size(cut_) + size(sample_rows_);
  for (const auto& pages : pages_) total += size(pages);
  return total;
}

const Step& BatchBuilder::build(std::span<const ScheduledSequence> sequences, int64_t num_decodes,
                                const CacheManager& cache) {
  token_ids_.clear();
  token_rows_.clear();
  positions_.clear();
  query_start_.assign(1, 0);
  kv_len_.clear();
  prompt_len_.clear();
  slot_.clear();
  rows_.clear();
  has_state_.clear();
  sample_rows_.clear();
  bool all_known = true;
  for (const ScheduledSequence& seq : sequences) {
    const Request& request = *seq.request;
    const bool pending = seq.pending_row >= 0;
    for (int64_t t = seq.begin; t < seq.end() - pending; ++t) {
      token_ids_.push_back(request.tokens[static_cast<size_t>(t)]);
      token_rows_.push_back(-1);
      positions_.push_back(t);
    }
    if (pending) {
      token_ids_.push_back(0);
      token_rows_.push_back(seq.pending_row);
      positions_.push_back(seq.end() - 1);
      all_known = false;
    }
    const auto num_tokens = static_cast<int32_t>(token_ids_.size());
    query_start_.push_back(num_tokens);
    kv_len_.push_back(static_cast<int32_t>(seq.end()));
    prompt_len_.push_back(static_cast<int32_t>(request.prompt_len));
    slot_.push_back(cache.slot(request.sequence));
    has_state_.push_back(seq.begin > 0);
    if (seq.row >= 0) {
      AD_ICHECK(static_cast<size_t>(seq.row) == rows_.size(), "rows are in the order of their sequences");
      rows_.push_back(num_tokens - 1);
      sample_rows_.push_back({&request.params, request.prompt(), request.generated(), seq.pending_row});
    }
  }
  cut_.assign(sequences.size(), 0);
  fill_page_tables(sequences, cache);

  StepBatch& batch = step_.batch;
  batch.num_tokens = static_cast<int64_t>(token_ids_.size());
  batch.num_seqs = static_cast<int64_t>(sequences.size());
  batch.num_decodes = num_decodes;
  batch.num_rows = static_cast<int64_t>(rows_.size());
  batch.token_ids = token_ids_;
  batch.positions = positions_;
  batch.query_start = query_start_;
  batch.kv_len = kv_len_;
  batch.prompt_len = prompt_len_;
  batch.page_tables = page_tables_;
  batch.slot = slot_;
  batch.has_state = has_state_;
  batch.rows = rows_;
  batch.cut = cut_;
  step_.token_rows = token_rows_;
  if (all_known) step_.token_rows = {};
  step_.rows = sample_rows_;
  return step_;
}

void BatchBuilder::fill_page_tables(std::span<const ScheduledSequence> sequences, const CacheManager& cache) {
  for (size_t g = 0; g < pages_.size(); ++g) {
    const auto group = static_cast<int32_t>(g);
    size_t row = 0;
    for (const ScheduledSequence& seq : sequences) {
      row = std::max(row, cache.pages(seq.request->sequence, group).size());
    }
    pages_[g].assign(row * sequences.size(), 0);
    for (size_t i = 0; i < sequences.size(); ++i) {
      const auto pages = cache.pages(sequences[i].request->sequence, group);
      // While the step before is open, pages are there that only it may read: they are given back when it has
      // passed.
      const auto live = plan_->groups[g].live_begin(sequences[i].begin) / plan_->groups[g].page_size;
      std::copy(pages.begin() + live, pages.end(),
                pages_[g].begin() + static_cast<std::ptrdiff_t>(i * row) + live);
    }
    page_tables_[g] = {plan_->groups[g].page_size, static_cast<int32_t>(row), pages_[g]};
  }
}

}  // namespace autodeploy
