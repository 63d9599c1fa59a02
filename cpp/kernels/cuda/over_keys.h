// Keys of over_keys in pages: putting a step's rows in, and bringing a sequence's out. A token's row of an
// input, row-major, is one head of a component's page (kv_page.h).
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_step.h"

namespace autodeploy::cuda {

struct KeyPages {
  uint8_t* data = nullptr;  // page 0
  int64_t page_bytes = 0;   // from page to page
  int64_t token_bytes = 0;
  DevicePageTable table;
};

// Puts the rows of all tokens of the step, a view [T, ...], into the pages of their sequences. `dense`: the
// view is row-major without gaps.
void append_keys(Stream stream, const DeviceStep& step, const TensorView& rows, bool dense,
                 const KeyPages& pages);

// Which keys to bring: those of sequence `seq` from `from` to `to`, and zeros behind them up to `end`. With
// `kv_len`, [B] on the device, `to` is what stands there when the launch runs, and at most `end`.
struct KeySpan {
  int64_t seq = 0, from = 0, to = 0, end = 0;
  const int32_t* kv_len = nullptr;
};
// `keys`: where key 0 goes.
void gather_keys(Stream stream, const KeyPages& pages, const KeySpan& span, uint8_t* keys);

}  // namespace autodeploy::cuda
