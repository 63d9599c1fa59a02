// Fills the StepBatch of a step from requests.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache_manager/cache_manager.h"
#include "scheduler/model_runner.h"
#include "scheduler/request.h"

namespace autodeploy {

// A request's share of a step: its tokens [begin, begin + len).
struct ScheduledSequence {
  Request* request = nullptr;
  int64_t begin = 0, len = 0;
  bool is_decode = false;
  // The step before is open and samples the last of these tokens in this row; -1: all tokens are known.
  int32_t pending_row = -1;
  // The chunk reaches the last token, so its logits choose the next one, in this row of the step; -1: it does
  // not.
  int32_t row = -1;
  int64_t end() const { return begin + len; }
};

// Owns the arrays of one step, of the largest size from the start: building allocates nothing.
class BatchBuilder {
 public:
  explicit BatchBuilder(const CachePlan& plan);

  // `sequences` has decodes first, with the pages of their tokens mapped. The result stays valid until the
  // next build.
  const Step& build(std::span<const ScheduledSequence> sequences, int64_t num_decodes,
                    const CacheManager& cache);
  // Bytes of the arrays.
  int64_t bytes() const;

 private:
  void fill_page_tables(std::span<const ScheduledSequence> sequences, const CacheManager& cache);

  const CachePlan* plan_;
  std::vector<int64_t> token_ids_, positions_;
  std::vector<int32_t> token_rows_, query_start_, kv_len_, prompt_len_, slot_, rows_;
  std::vector<uint8_t> has_state_, cut_;
  std::vector<std::vector<int32_t>> pages_;  // [group][B * max_pages]
  std::vector<StepBatch::PageTable> page_tables_;
  std::vector<SampleRow> sample_rows_;
  Step step_;
};

}  // namespace autodeploy
