// Rows sorted by the expert that they go to, for kernels that multiply each expert's rows together.
#pragma once

#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

struct ExpertSortArgs {
  const int64_t* ids = nullptr;
  int64_t stride = 0, count = 0, experts = 0;
  int32_t *order = nullptr, *counts = nullptr;
};

constexpr int kExpertSortThreads = 256, kExpertSortWarps = kExpertSortThreads / kWarpSize;

// Block e lists the rows of expert e, in order, behind those of the experts before it; block `experts` those
// of no expert.
static __global__ void __launch_bounds__(kExpertSortThreads) sort_by_expert(ExpertSortArgs a) {
  __shared__ int32_t found[kExpertSortWarps];
  wait_for_previous();
  let_next_start();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarpSize, warp = tid / kWarpSize;
  const int64_t mine = blockIdx.x;
  const auto expert_of = [&](int64_t i) {
    const int64_t id = a.ids[i * a.stride];
    return id >= 0 && id < a.experts ? id : a.experts;
  };
  int32_t before = 0;  // rows of experts before this one
  for (int64_t i = tid; i < a.count; i += kExpertSortThreads) before += expert_of(i) < mine;
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) before += __shfl_xor_sync(0xffffffffu, before, d);
  if (lane == 0) found[warp] = before;
  __syncthreads();
  int32_t at = 0;
  for (int w = 0; w < kExpertSortWarps; ++w) at += found[w];
  const int32_t first = at;
  for (int64_t i = 0; i < a.count; i += kExpertSortThreads) {
    const bool is_mine = i + tid < a.count && expert_of(i + tid) == mine;
    const uint32_t votes = __ballot_sync(0xffffffffu, is_mine);
    __syncthreads();
    if (lane == 0) found[warp] = __popc(votes);
    __syncthreads();
    int32_t place = at;
    for (int w = 0; w < kExpertSortWarps; ++w) {
      if (w < warp) place += found[w];
      at += found[w];
    }
    if (is_mine) a.order[place + __popc(votes & ((1u << lane) - 1))] = static_cast<int32_t>(i + tid);
  }
  if (tid == 0) a.counts[mine] = at - first;
}

// The place of a block in the list of all experts' tiles: its expert and the first and last + 1 of its rows
// in the order; expert -1 beyond the last tile.
struct ExpertTile {
  int expert, first, last;
};
template <int kRows>
AD_DEVICE void find_expert_tile(const int32_t* counts, int64_t experts, int64_t tile, ExpertTile* found) {
  if (threadIdx.x == 0) *found = {-1, 0, 0};
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const int lane = static_cast<int>(threadIdx.x);
    int64_t tiles = 0;
    int rows = 0;
    for (int64_t e = 0; e <= experts; e += kWarpSize) {
      const int count = e + lane <= experts ? counts[e + lane] : 0;
      int tiles_to = (count + kRows - 1) / kRows, rows_to = count;
#pragma unroll
      for (int d = 1; d < kWarpSize; d *= 2) {
        const int t = __shfl_up_sync(0xffffffffu, tiles_to, static_cast<unsigned>(d));
        const int r = __shfl_up_sync(0xffffffffu, rows_to, static_cast<unsigned>(d));
        if (lane >= d) tiles_to += t, rows_to += r;
      }
      const int64_t from = tiles + tiles_to - (count + kRows - 1) / kRows;
      if (tile >= from && tile < tiles + tiles_to) {
        const int first = rows + rows_to - count;
        const int begin = first + static_cast<int>(tile - from) * kRows, end = first + count;
        *found = {static_cast<int>(e) + lane, begin, begin + kRows < end ? begin + kRows : end};
      }
      tiles += __shfl_sync(0xffffffffu, tiles_to, kWarpSize - 1);
      rows += __shfl_sync(0xffffffffu, rows_to, kWarpSize - 1);
      if (tile < tiles) break;
    }
  }
  __syncthreads();
}

// No more tiles than this hold `count` rows: each expert that has rows has at most one that is not full.
constexpr int64_t max_expert_tiles(int64_t count, int64_t experts, int64_t rows_of_tile) {
  return count / rows_of_tile + (count < experts + 1 ? count : experts + 1);
}

// The workspace of sorted rows: `order` of `count` rows, then a count for each expert and for no expert.
struct ExpertOrder {
  int32_t *order = nullptr, *counts = nullptr;
  static int64_t order_bytes(int64_t count) { return (count * 4 + 63) / 64 * 64; }
  static int64_t bytes(int64_t count, int64_t experts) {
    return order_bytes(count) + ((experts + 1) * 4 + 63) / 64 * 64;
  }
  ExpertOrder(uint8_t* workspace, int64_t max_count)
      : order(reinterpret_cast<int32_t*>(workspace)),
        counts(reinterpret_cast<int32_t*>(workspace + order_bytes(max_count))) {}
};

inline void launch_expert_sort(const ExpertOrder& to, const TensorView& ids, int64_t experts, Stream stream) {
  launch({dim3(static_cast<unsigned>(experts + 1)), dim3(kExpertSortThreads), stream, 0, true},
         sort_by_expert,
         ExpertSortArgs{ids.as<const int64_t>(), ids.stride[0], ids.shape[0], experts, to.order, to.counts});
}

}  // namespace autodeploy::cuda
