#include "kernels/cuda/linear_tensor.h"

#include <algorithm>

namespace autodeploy::cuda {
namespace {

// f(launcher) for the tile of a choice.
template <class T, class F>
void with_tile(int rows_of_tile, F&& f) {
  if (rows_of_tile == 32)
    f([](const TensorLinearArgs& a, Stream s) { launch_tensor_linear<T, 32, 128, 1, 8, 5>(a, s); });
  else if (rows_of_tile == 64)
    f([](const TensorLinearArgs& a, Stream s) { launch_tensor_linear<T, 64, 128, 2, 4, 4>(a, s); });
  else
    f([](const TensorLinearArgs& a, Stream s) { launch_tensor_linear<T, 128, 128, 2, 2, 3>(a, s); });
}

template <class T>
bool prepare() {
  return allow_shared(tensor_linear_kernel<T, 32, 128, 1, 8, 5>, tensor_shared<32, 128, 5>()) &&
         allow_shared(tensor_linear_kernel<T, 64, 128, 2, 4, 4>, tensor_shared<64, 128, 4>()) &&
         allow_shared(tensor_linear_kernel<T, 128, 128, 2, 2, 3>, tensor_shared<128, 128, 3>());
}

}  // namespace

bool prepare_tensor_linear() { return prepare<bf16>() && prepare<f16>(); }

void run_tensor_linear(DType dtype, TensorLinearArgs a, int processors, uint8_t* workspace, Stream stream) {
  if (a.rows == 0) return;
  const TensorLinearChoice c =
      choose_tensor_linear(a.rows, a.cols, a.outputs, a.order ? a.experts : 0, processors);
  a.splits = c.splits;
  a.partial = reinterpret_cast<float*>(workspace);
  const auto run = [&](auto launch) { launch(a, stream); };
  if (dtype == DType::kBF16)
    with_tile<bf16>(c.rows_of_tile, run);
  else
    with_tile<f16>(c.rows_of_tile, run);
}

int64_t tensor_linear_workspace(int64_t max_rows, int64_t cols, int64_t outputs, int processors) {
  int64_t most = 0;
  for (int64_t rows = 1; rows <= std::min(max_rows, kMaxSplitRows); ++rows) {
    const int64_t splits = choose_tensor_linear(rows, cols, outputs, 0, processors).splits;
    if (splits > 1) most = std::max(most, splits * rows * outputs * 4);
  }
  return most;
}

}  // namespace autodeploy::cuda
