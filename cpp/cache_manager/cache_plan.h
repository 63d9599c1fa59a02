// How much memory the states of a Program take, computed before any of it is allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/state.h"

namespace autodeploy {

inline constexpr int32_t kDefaultPageSize = 32;  // tokens
inline constexpr int32_t kMaxPageSize = 4096;    // tokens
inline constexpr int64_t kMaxSeqLen = int64_t{1} << 30;
inline constexpr int64_t kMaxNumSeqs = 65536;
inline constexpr int64_t kMaxBatchTokens = int64_t{1} << 24;
inline constexpr int64_t kMaxOpenSteps = 2;
inline constexpr int64_t kStateAlignment = 64;  // bytes; every page and slot of a component starts on it

struct CacheLimits {
  int64_t max_seq_len = 0;       // tokens of the longest sequence
  int64_t max_num_seqs = 0;      // sequences that run together
  int64_t max_batch_tokens = 0;  // tokens of the largest step: bounds, with max_open_steps, what a window
                                 // group holds at a time
  int32_t page_size = 0;         // tokens per page; 0 asks for kDefaultPageSize
  int32_t num_snapshots = 0;     // slots kept for snapshots of recurrent states
  int64_t max_bytes = 0;         // 0: as much as max_num_seqs sequences of max_seq_len can use
  int32_t max_open_steps = 1;    // steps that are scheduled and not completed at a time: 1 or 2
};

// Paged states of one geometry share page numbers, so a sequence needs one page table for all of them.
struct PageGroupPlan {
  int64_t window = 0, chunk = 0;  // tokens; 0 none
  int32_t page_size = 0;          // tokens per page
  std::vector<int32_t> states;    // indices of the states of the group
  int64_t page_bytes = 0;         // one page of all states of the group
  int32_t num_pages = 0;          // with the null page 0
  int64_t max_batch_tokens = 0;
  int32_t max_open_steps = 1;

  int64_t bytes() const { return page_bytes * num_pages; }
  // First token that a query at `len` or later may still see.
  int64_t live_begin(int64_t len) const;
  // Pages that a sequence of up to `len` tokens holds at any one time.
  int64_t pages_for(int64_t len) const;
};

// Slot and convolution states: every sequence has one slot number, good for all of them.
struct SlotPlan {
  std::vector<int32_t> states;
  int64_t slot_bytes = 0;  // one slot of all states
  int32_t num_slots = 0;   // with the null slot 0; 0 when the Program has no such states

  int64_t bytes() const { return slot_bytes * num_slots; }
};

struct CachePlan {
  CacheLimits limits;  // with defaults filled in
  std::vector<PageGroupPlan> groups;
  SlotPlan slots;
  // component_bytes[state][component]: bytes of one page or slot, a multiple of kStateAlignment.
  std::vector<std::vector<int64_t>> component_bytes;

  int64_t bytes() const;
  // Whether a sequence of `len` tokens fits into empty caches.
  bool fits(int64_t len) const;
};

// Groups the states, writes their `group` and `page_size`, and sizes the pools. The pools hold at least one
// sequence of max_seq_len; throws Error(kOutOfMemory) naming the bytes needed and the longest sequence that
// would fit when max_bytes is too little for that, Error(kInvalidArgument) for limits out of range and
// Error(kInvalidArtifact) for impossible declarations.
CachePlan plan_caches(std::vector<StateSpec>& states, const CacheLimits& limits);

// Longest max_seq_len (at most limits.max_seq_len) whose plan fits max_bytes; 0 when none does.
int64_t longest_seq_len(std::vector<StateSpec>& states, const CacheLimits& limits);

}  // namespace autodeploy
