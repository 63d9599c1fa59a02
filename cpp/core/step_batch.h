// Who scheduled what in one step: the whole contract between scheduler, cache manager and every backend.
#pragma once

#include <cstdint>
#include <span>

namespace autodeploy {

// Decode sequences come first, then prefill chunks. Page 0 and slot 0 of every pool are null: padding points
// there. All spans stay valid until the step has finished.
struct StepBatch {
  int64_t num_tokens = 0;                // T
  int64_t num_seqs = 0;                  // B
  int64_t num_decodes = 0;               // sequences of one token that come first
  int64_t num_rows = 0;                  // R
  std::span<const int64_t> token_ids;    // [T]
  std::span<const int64_t> positions;    // [T]
  std::span<const int32_t> query_start;  // [B+1] tokens of sequence i are [query_start[i], query_start[i+1])
  std::span<const int32_t> kv_len;       // [B] tokens in the caches after this step
  std::span<const int32_t> prompt_len;   // [B] tokens known before any was generated; empty: kv_len
  struct PageTable {
    int32_t page_size = 0;           // tokens per page
    int32_t max_pages = 0;           // row length of `pages`
    std::span<const int32_t> pages;  // [B, max_pages]; logical page p holds tokens [p*page_size,
                                     // (p+1)*page_size); pages that fell out of the group's window are 0
  };
  std::span<const PageTable> page_tables;  // one per paged group
  std::span<const int32_t> slot;           // [B] recurrent slot
  std::span<const uint8_t> has_state;      // [B] whether the slot holds an earlier step's state
  std::span<const int32_t> rows;           // [R] tokens whose logits are wanted, ascending
  std::span<const uint8_t>
      cut;  // [B] take a state snapshot after this step (seam for prefix reuse); may be empty
};

}  // namespace autodeploy
