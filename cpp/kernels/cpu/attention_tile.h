// The arithmetic of attention on the CPU: some query rows of one key head against a range of keys in pages.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace autodeploy {

constexpr int kAttendRows = 48;  // query rows of a tile: tokens x query heads of one key head
constexpr int kKeyBlock = 64;    // keys that are scored before the running maximum is updated
constexpr int kKeyPanel = 16;    // keys that lie together
constexpr int kMaxPieces = 16;   // into which the keys of a single query are split

// Keys and values of one key head in a sequence's pages. A page holds, per head, K as [page_size/16][D][16]
// (as [page_size][D] when page_size is no multiple of 16) and V as [page_size][Dv].
struct KeyValuePages {
  const int32_t* pages = nullptr;  // of the sequence
  int64_t page_size = 0;
  uint8_t *k = nullptr, *v = nullptr;  // page 0 of this head
  int64_t k_bytes = 0, v_bytes = 0;    // from page to page
  int64_t key_len = 0, value_len = 0;  // D, Dv

  bool in_panels() const { return page_size % kKeyPanel == 0; }
  float* key_page(int64_t key) const {
    return reinterpret_cast<float*>(k + pages[key / page_size] * k_bytes);
  }
  float* value(int64_t key) const {
    return reinterpret_cast<float*>(v + pages[key / page_size] * v_bytes) + key % page_size * value_len;
  }
};

// Row r sees keys [low[r], high[r]). After attend(): o[r] = sum of exp(score - max[r]) * value, sum[r] = sum
// of exp(score - max[r]) over the keys of [key_begin, key_end) that it sees; max -inf and zeros where there
// is none.
struct AttendTile {
  int rows = 0;
  const float* q = nullptr;  // [rows, D], times the scale
  int64_t key_begin = 0, key_end = 0;
  int64_t low[kAttendRows], high[kAttendRows];
  float softcap = 0;  // 0: none
  // Added to the scores of row r where `biased`: slope[r] * (key - query[r]), and table[r][query[r] - key]
  // where that distance is in [0, reach).
  bool biased = false;
  int64_t reach = 0;
  int64_t query[kAttendRows];
  float slope[kAttendRows];
  const float* table[kAttendRows];
  float* scores = nullptr;  // [rows, kKeyBlock], scratch
  float* panels = nullptr;  // [kKeyBlock/16, D, 16], scratch where keys are not stored in panels
  float* o = nullptr;       // [rows, Dv]
  float max[kAttendRows + 16], sum[kAttendRows];  // read in whole registers
};

// One row of results from `pieces` partial ones that lie `stride` floats apart: out = sum of w o / sum of w
// s, w = exp(max - overall max). A sink adds exp(sink - overall max) to the divisor. With out == o of a
// single piece it works in place.
struct MergeRow {
  int64_t pieces = 0, value_len = 0;
  const float *max = nullptr, *sum = nullptr, *o = nullptr;
  int64_t max_stride = 0, o_stride = 0;
  const float* sink = nullptr;  // may be null
  float* out = nullptr;
};

struct AttentionKernels {
  void (*attend)(const KeyValuePages& kv, AttendTile& tile);
  void (*merge)(const MergeRow& row);
};
AttentionKernels attention_kernels(Isa isa);

}  // namespace autodeploy
