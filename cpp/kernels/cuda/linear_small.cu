#include "kernels/cuda/linear_small_run.inc"

namespace autodeploy::cuda {

bool small_linear_norms(int64_t rows, int64_t cols) {
  return rows >= 1 && rows <= kMaxNormRows && can_stage_rows(rows, cols);
}

AD_SMALL_LINEAR(StoreLinear)

}  // namespace autodeploy::cuda
