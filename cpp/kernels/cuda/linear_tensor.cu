#include "kernels/cuda/linear_tensor.h"

#include <algorithm>

#include "kernels/cuda/linear_tensor_run.inc"

namespace autodeploy::cuda {

int64_t tensor_linear_workspace(int64_t max_rows, int64_t cols, int64_t outputs, int processors) {
  int64_t most = 0;
  for (int64_t rows = 1; rows <= std::min(max_rows, kMaxSplitRows); ++rows) {
    const int64_t splits = choose_tensor_linear(rows, cols, outputs, 0, processors).splits;
    if (splits > 1) most = std::max(most, splits * rows * outputs * 4);
  }
  return most;
}

AD_TENSOR_LINEAR(TensorStore)

}  // namespace autodeploy::cuda
