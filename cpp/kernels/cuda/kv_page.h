// The layout of paged states: where a token's row lies in the pages of its sequence. All kernels that read or
// write pages go through this file.
//
// A component of shape [heads, width] holds, in a page of n tokens, [heads, n, width] elements of its dtype:
// head by head, so that the tokens that a head reads lie together.
#pragma once

#include <cstdint>

#include "core/state.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_step.h"

namespace autodeploy::cuda {

struct PagedComponent {
  uint8_t* data = nullptr;  // page 0
  int64_t page_bytes = 0;   // from page to page
  int64_t width = 0;
  int32_t page_size = 0;  // tokens
  int32_t element_bytes = 0;
  DType dtype = DType::kF32;

  PagedComponent() = default;
  PagedComponent(const StateMemory& memory, const StateSpec& spec, size_t component)
      : data(memory.data[component]),
        page_bytes(memory.bytes[component]),
        width(spec.components[component].shape.back()),
        page_size(spec.page_size),
        element_bytes(static_cast<int32_t>(dtype_size(spec.components[component].dtype))),
        dtype(spec.components[component].dtype) {}

  // In elements, from the start of a page.
  __host__ AD_DEVICE int64_t offset(int64_t head, int64_t token_in_page) const {
    return (head * page_size + token_in_page) * width;
  }
  // The row of a sequence's token; `pages` are the sequence's.
  AD_DEVICE uint8_t* row(const int32_t* pages, int64_t head, int32_t token) const {
    const int64_t page = pages[token / page_size];
    return data + page * page_bytes + offset(head, token % page_size) * element_bytes;
  }
};

AD_DEVICE const int32_t* pages_of(const DevicePageTable& table, int64_t seq) {
  return table.pages + table.start[seq];
}

}  // namespace autodeploy::cuda
