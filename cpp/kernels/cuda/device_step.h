// A step as kernels on a device see it: the StepBatch's arrays in the device's memory, and what a launch may
// know of their content.
#pragma once

#include <cstdint>

#include "core/step_batch.h"

namespace autodeploy::cuda {

constexpr int kMaxPageGroups = 8;

// The pages of a group: logical page p of sequence b is pages[start[b] + p]; all groups share `pages`.
struct DevicePageTable {
  int32_t page_size = 0;           // tokens per page
  const int32_t* start = nullptr;  // [B]
  const int32_t* pages = nullptr;
};

// Pointers are into the device's memory and stay the same for all replays of a graph; the numbers are the
// host's, and the largest that the launches must serve: in a graph num_tokens, num_seqs and num_rows are the
// graph's, and sequences beyond the step's are null ones (one token, position 0, kv_len 1, page 0 and slot
// 0). Launches depend on these numbers alone.
struct DeviceStep {
  void* stream = nullptr;  // kernels/cuda/device.h's Stream
  int64_t num_tokens = 0, num_seqs = 0, num_decodes = 0, num_rows = 0;
  int64_t max_query_len = 0;             // of any sequence of the step; 1 in decode-only steps
  int64_t max_kv_len = 0;                // bound of any kv_len; in a graph that of all its replays
  bool captured = false;                 // the launches are recorded as a graph: they serve later steps, too
  const int64_t* token_ids = nullptr;    // [T]
  const int64_t* positions = nullptr;    // [T]
  const int32_t* token_seq = nullptr;    // [T] the sequence of a token
  const int32_t* query_start = nullptr;  // [B+1]
  const int32_t* kv_len = nullptr;       // [B]
  const int32_t* prompt_len = nullptr;   // [B]
  const int32_t* slot = nullptr;         // [B]
  const uint8_t* has_state = nullptr;    // [B]
  const int32_t* rows = nullptr;         // [R]
  DevicePageTable page_tables[kMaxPageGroups];
};

}  // namespace autodeploy::cuda
