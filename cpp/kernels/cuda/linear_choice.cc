#include "kernels/cuda/linear_choice.h"

namespace autodeploy::cuda {

bool can_stage_rows(int64_t rows, int64_t cols) { return rows * (cols + 96) * 2 <= (72 << 10); }

SmallLinearChoice choose_small_linear(int64_t rows, int64_t cols, int64_t outputs, int slices, bool norm,
                                      int processors) {
  SmallLinearChoice c;
  c.l2_bytes = 96 << 10;
  if (rows == 1) {
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

}  // namespace autodeploy::cuda
