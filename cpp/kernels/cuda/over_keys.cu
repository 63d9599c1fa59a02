#include "kernels/cuda/over_keys.h"

#include "kernels/cuda/kv_page.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128, kPer = 4;  // units that a thread brings

template <int kBytes>
using Unit = Pack<uint8_t, kBytes>;

PagedComponent component_of(const KeyPages& pages, int64_t unit_bytes) {
  PagedComponent c;
  c.data = pages.data, c.page_bytes = pages.page_bytes;
  c.page_size = pages.table.page_size;
  c.width = pages.token_bytes / unit_bytes;
  c.element_bytes = static_cast<int32_t>(unit_bytes);
  return c;
}

// f(integral_constant): the largest unit, of at most `most` bytes, that rows of the pages and memory that
// begins at `data` are made of.
template <class F>
void dispatch_unit(const KeyPages& pages, const void* data, int64_t most, F&& f) {
  const auto odd = static_cast<int64_t>(reinterpret_cast<uintptr_t>(pages.data) |
                                        static_cast<uintptr_t>(pages.page_bytes | pages.token_bytes) |
                                        reinterpret_cast<uintptr_t>(data));
  if (most >= 16 && odd % 16 == 0)
    f(std::integral_constant<int, 16>{});
  else if (most >= 8 && odd % 8 == 0)
    f(std::integral_constant<int, 8>{});
  else if (most >= 4 && odd % 4 == 0)
    f(std::integral_constant<int, 4>{});
  else if (most >= 2 && odd % 2 == 0)
    f(std::integral_constant<int, 2>{});
  else
    f(std::integral_constant<int, 1>{});
}

struct AppendArgs {
  const int32_t *token_seq = nullptr, *query_start = nullptr, *kv_len = nullptr;
  DeviceRows elements;  // all of the view, as units
  bool dense = false;
  PagedComponent to;
  DevicePageTable table;
};

// A block for each token.
template <int kBytes>
__global__ void __launch_bounds__(kThreads) append_kernel(AppendArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x;
  const int32_t seq = a.token_seq[token];
  const int32_t place = a.kv_len[seq] - (a.query_start[seq + 1] - static_cast<int32_t>(token));
  auto* row = reinterpret_cast<Unit<kBytes>*>(a.to.row(pages_of(a.table, seq), 0, place));
  const auto* from = static_cast<const Unit<kBytes>*>(a.elements.data);
  for (int64_t i = threadIdx.x; i < a.to.width; i += kThreads) {
    const int64_t at = token * a.to.width + i;
    row[i] = from[a.dense ? at : a.elements.offset(at)];
  }
}

template <int kBytes>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(PagedComponent from, DevicePageTable table, KeySpan span, uint8_t* keys) {
  wait_for_previous();
  let_next_start();
  const int32_t* pages = pages_of(table, span.seq);
  const int64_t to = span.kv_len ? min(int64_t{span.kv_len[span.seq]}, span.end) : span.to;
  const int64_t first = span.from * from.width, end = span.end * from.width;
  auto* rows = reinterpret_cast<Unit<kBytes>*>(keys);
#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    const int64_t i = first + (int64_t{blockIdx.x} * kPer + v) * kThreads + threadIdx.x;
    if (i >= end) return;
    const int64_t token = i / from.width;
    Unit<kBytes> unit = {};
    if (token < to)
      unit = reinterpret_cast<const Unit<kBytes>*>(
          from.row(pages, 0, static_cast<int32_t>(token)))[i - token * from.width];
    rows[i] = unit;
  }
}

}  // namespace

void append_keys(Stream stream, const DeviceStep& step, const TensorView& rows, bool dense,
                 const KeyPages& pages) {
  AppendArgs a;
  a.token_seq = step.token_seq, a.query_start = step.query_start, a.kv_len = step.kv_len;
  a.elements = DeviceRows(rows, 0);
  a.dense = dense;
  a.table = pages.table;
  const int64_t size = dtype_size(rows.dtype);
  const LaunchConfig config{dim3(static_cast<unsigned>(step.num_tokens)), dim3(kThreads), stream, 0, true};
  const auto start = [&](auto unit) {
    constexpr int kBytes = decltype(unit)::value;
    a.to = component_of(pages, kBytes);
    launch(config, append_kernel<kBytes>, a);
  };
  if (dense) return dispatch_unit(pages, rows.data, 16, start);
  // An element is moved at once: its memory is aligned to its size.
  dispatch_unit({nullptr, 0, size, {}}, nullptr, size, start);
}

void gather_keys(Stream stream, const KeyPages& pages, const KeySpan& span, uint8_t* keys) {
  dispatch_unit(pages, keys, 16, [&](auto unit) {
    constexpr int kBytes = decltype(unit)::value;
    const PagedComponent from = component_of(pages, kBytes);
    const int64_t units = (span.end - span.from) * from.width;
    const LaunchConfig config{dim3(blocks_for(units, kThreads * kPer)), dim3(kThreads), stream, 0, true};
    launch(config, gather_kernel<kBytes>, from, pages.table, span, keys);
  });
}

}  // namespace autodeploy::cuda
