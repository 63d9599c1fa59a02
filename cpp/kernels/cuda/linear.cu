// linear without tensor cores: y [M, N] = x [M, K] * W [N, K]^T + bias [N], for any float dtypes.
#include "kernels/cuda/linear_tile.h"

namespace autodeploy::cuda {
namespace {

struct LinearArgs {
  DeviceRows x, y;
  LinearMatrix x_matrix, weight;
  const void* bias = nullptr;
  DType bias_dtype = DType::kF32, y_dtype = DType::kF32;
  int64_t rows = 0, cols = 0, depth = 0, w_stride = 0, bias_stride = 0;
};

template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) linear_kernel(LinearArgs a) {
  __shared__ typename Tile::Shared shared;
  wait_for_previous();
  let_next_start();
  const int64_t row = int64_t{blockIdx.x} * Tile::kRowsOfTile, col = int64_t{blockIdx.y} * Tile::kColsOfTile;
  for (int r = static_cast<int>(threadIdx.x); r < Tile::kRowsOfTile; r += Tile::kThreads)
    shared.x_row[r] = row + r < a.rows ? a.x.offset(row + r) : -1;
  constexpr int kTm = Tile::kResultRows, kTn = Tile::kResultCols;
  float acc[kTm][kTn];
  Tile::multiply(shared, a.x_matrix, a.weight, col * a.w_stride, a.w_stride, a.cols - col, a.depth, acc);
#pragma unroll
  for (int i = 0; i < kTm; ++i) {
    const int64_t r = row + Tile::first_row() + i;
    if (r >= a.rows) return;
    const int64_t y = a.y.offset(r);
#pragma unroll
    for (int j = 0; j < kTn; ++j) {
      const int64_t c = col + Tile::first_col() + j;
      if (c >= a.cols) break;
      const float bias = a.bias ? load_float(a.bias, a.bias_dtype, c * a.bias_stride) : 0.0f;
      store_float(a.y.data, a.y_dtype, y + c, acc[i][j] + bias);
    }
  }
}

struct LinearState {
  DType x = DType::kF32, weight = DType::kF32;
};

template <class Tile>
void launch_linear(const KernelCall& call, const LinearArgs& a) {
  const dim3 grid(blocks_for(a.rows, Tile::kRowsOfTile), blocks_for(a.cols, Tile::kColsOfTile));
  launch({grid, dim3(Tile::kThreads), stream_of(call), 0, true}, linear_kernel<Tile>, a);
}

void run_linear(const LinearState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &weight = call.in[1], &bias = call.in[2], &y = call.out[0];
  LinearArgs a;
  a.x = DeviceRows(x, 1), a.y = DeviceRows(y, 1);
  a.rows = a.x.rows, a.cols = weight.shape[0], a.depth = weight.shape[1];
  a.w_stride = weight.stride[0];
  const int64_t x_size = dtype_size(s.x), w_size = dtype_size(s.weight);
  a.x_matrix = {x.data, s.x, moves_in_packs(a.x, a.depth, x_size, 4 * x_size)};
  a.weight = {weight.data, s.weight, moves_in_packs(DeviceRows(weight, 1), a.depth, w_size, 4 * w_size)};
  if (bias) a.bias = bias.data, a.bias_dtype = bias.dtype, a.bias_stride = bias.stride[0];
  a.y_dtype = y.dtype;
  dispatch_linear(s.x, s.weight, [&](auto xt, auto wt) {
    using X = typename decltype(xt)::type;
    using W = typename decltype(wt)::type;
    if (a.rows <= kFewRows)
      launch_linear<SmallLinearTile<X, W>>(call, a);
    else
      launch_linear<LargeLinearTile<X, W>>(call, a);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_linear(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(3, 1);
  const OperandSpec& x = check.input(0, "x [M, K]", 1, 1, true);
  const OperandSpec& weight = check.input(1, "weight [N, K]", 2, 1);
  const OperandSpec* bias = check.optional_input(2, "bias [N]", 1, 1);
  check.static_dim(weight, "weight", 0), check.static_dim(weight, "weight", 1);
  std::vector<Dim> shape = x.shape;
  shape.back() = weight.shape[1];
  check.shape(x, "x", shape);
  shape.back() = weight.shape[0];
  check.shape(check.output(0, "y [M, N]", 1, 1, true), "y", shape);
  if (bias) check.shape(*bias, "bias", {weight.shape[0]});
  if (!is_float(x.dtype) || !is_float(weight.dtype) || !is_float(spec.out[0].dtype) ||
      (bias && !is_float(bias->dtype))) {
    *why = "it takes floats";
    return nullptr;
  }
  return make_function_kernel("linear.plain", LinearState{x.dtype, weight.dtype}, run_linear);
}

}  // namespace autodeploy::cuda
