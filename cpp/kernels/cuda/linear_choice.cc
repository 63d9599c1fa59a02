#include "kernels/cuda/linear_choice.h"

#include <algorithm>

namespace autodeploy::cuda {

bool can_stage_rows(int64_t rows, int64_t cols) { return rows * (cols + 96) * 2 <= (72 << 10); }

SmallLinearChoice choose_small_linear(int64_t rows, int64_t cols, int64_t outputs, int slices, bool norm,
                                      int processors) {
  SmallLinearChoice c;
  c.l2_bytes = 96 << 10;
  constexpr int64_t kMostCols = 64 << 10;  // gemv_kernel keeps all of x in shared memory
  if (rows == 1 && cols <= kMostCols) {
    // On an H100 16 warps beat 8 by 7 to 11 % of a decode step; their queues take 128 KiB beside x.
    if (cols <= (32 << 10)) c.warps = 16;
    c.l2_bytes = 32 << 10;
    // A warp for each output, or several where there are not outputs enough for all warps.
    const int64_t warps = int64_t{processors} * c.warps;
    while (c.warps_k < c.warps && outputs * c.warps_k < warps && cols / (2 * c.warps_k) >= 512)
      c.warps_k *= 2;
    return c;
  }
  c.tensor_cores = true;
  // More rows of the weights in a unit spare reads of x, where there are units enough even so.
  c.octets = outputs * slices / 32 >= 4 * int64_t{processors} ? 4 : 2;
  c.staged = norm || can_stage_rows(rows, cols);
  return c;
}

WgmmaChoice choose_wgmma_linear(int rows, int64_t cols, int64_t weight_rows, int processors,
                                const std::function<int(int groups, int splits)>& clusters) {
  // A model of microseconds, fitted to an H100 (bench_cuda_linear): the weights' way from memory, which takes
  // longer where part of the processors is idle; a processor's own way, on which rows of x come along; what
  // it costs to add up the parts of a cluster, or of tiles that blocks share.
  constexpr double kMemory = 3.05e6, kProcessor = 75e3;  // bytes in a microsecond
  constexpr double kIdle = 0.25, kSplit = 0.7;
  const double bytes = 2.0 * static_cast<double>(weight_rows) * static_cast<double>(cols), p = processors;
  WgmmaChoice best{2, 0};
  double least = bytes / kMemory + 3 + 6.0 * rows / 64;
  for (int groups = 1; groups <= kMaxWgmmaGroups; ++groups) {
    const int64_t tiles = (weight_rows + groups * 64 - 1) / (groups * 64);
    for (int splits : {1, 2, 3, 4, 6, 8}) {
      if (tiles * splits > processors || splits * 256 > cols) break;
      const double blocks = static_cast<double>(tiles * splits);
      const double own = 2.0 * (groups * 64 + rows) * static_cast<double>(cols) / splits;
      const double cost = std::max(bytes / kMemory * (1 + kIdle * (1 - blocks / p)), own / kProcessor) +
                          kSplit * (splits - 1);
      if (cost >= least || (splits > 1 && tiles > clusters(groups, splits))) continue;
      least = cost;
      best = {groups, splits};
    }
  }
  return best;
}

TensorLinearChoice choose_tensor_linear(int64_t rows, int64_t cols, int64_t outputs, int64_t experts,
                                        int processors) {
  TensorLinearChoice c;
  const int64_t together = experts > 0 ? (rows + experts - 1) / experts : rows;
  c.rows_of_tile = together <= 32 ? 32 : together <= 64 ? 64 : 128;
  if (experts > 0 || rows > kMaxSplitRows) return c;
  // Two blocks for each multiprocessor keep enough weights under way; a split has 8 stages at least.
  const int64_t tiles = (rows + c.rows_of_tile - 1) / c.rows_of_tile * ((outputs + 127) / 128);
  const int64_t splits = std::min({2 * int64_t{processors} / tiles, cols / (64 * 8), int64_t{8}});
  c.splits = static_cast<int>(std::max<int64_t>(splits, 1));
  return c;
}

}  // namespace autodeploy::cuda
