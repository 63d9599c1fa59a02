// expert_linear without tensor cores: rows sorted by expert, then each expert's rows multiplied together
// (Shazeer et al. 2017, arXiv:1701.06538). A row's result does not depend on the others of its expert.
#include "kernels/cuda/expert_rows.h"
#include "kernels/cuda/linear_tile.h"

namespace autodeploy::cuda {
namespace {

// ---- products ----

struct ExpertArgs {
  DeviceRows x, y;
  LinearMatrix x_matrix, weight;
  const void* bias = nullptr;
  DType bias_dtype = DType::kF32, y_dtype = DType::kF32;
  const int32_t *order = nullptr, *counts = nullptr;
  int64_t experts = 0, cols = 0, depth = 0, repeat = 1;
  int64_t w_expert = 0, w_stride = 0, bias_expert = 0, bias_stride = 0;
};

template <class Work>
__global__ void __launch_bounds__(Work::kThreads) expert_kernel(ExpertArgs a) {
  __shared__ typename Work::Shared shared;
  __shared__ ExpertTile tile;
  __shared__ int32_t rows[Work::kRowsOfTile];
  wait_for_previous();
  let_next_start();
  find_expert_tile<Work::kRowsOfTile>(a.counts, a.experts, blockIdx.x, &tile);
  if (tile.expert < 0) return;
  const int n = tile.last - tile.first;
  for (int r = static_cast<int>(threadIdx.x); r < Work::kRowsOfTile; r += Work::kThreads) {
    rows[r] = r < n ? a.order[tile.first + r] : -1;
    shared.x_row[r] = r < n ? a.x.offset(rows[r] / a.repeat) : -1;
  }
  const int64_t col = int64_t{blockIdx.y} * Work::kColsOfTile;
  constexpr int kTm = Work::kResultRows, kTn = Work::kResultCols;
  float acc[kTm][kTn] = {};
  const bool known = tile.expert < a.experts;
  if (known)
    Work::multiply(shared, a.x_matrix, a.weight, tile.expert * a.w_expert + col * a.w_stride, a.w_stride,
                   a.cols - col, a.depth, acc);
  __syncthreads();  // rows
#pragma unroll
  for (int i = 0; i < kTm; ++i) {
    const int r = Work::first_row() + i;
    if (r >= n) return;
    const int64_t y = a.y.offset(rows[r]);
#pragma unroll
    for (int j = 0; j < kTn; ++j) {
      const int64_t c = col + Work::first_col() + j;
      if (c >= a.cols) break;
      const float bias =
          a.bias && known ? load_float(a.bias, a.bias_dtype, tile.expert * a.bias_expert + c * a.bias_stride)
                          : 0.0f;
      store_float(a.y.data, a.y_dtype, y + c, acc[i][j] + bias);
    }
  }
}

struct ExpertState {
  DType x = DType::kF32, weight = DType::kF32;
  int64_t repeat = 1, max_count = 0;
};

template <class Work>
void launch_experts(const KernelCall& call, const ExpertArgs& a, int64_t count) {
  const int64_t tiles = max_expert_tiles(count, a.experts, Work::kRowsOfTile);
  const dim3 grid(static_cast<unsigned>(tiles), blocks_for(a.cols, Work::kColsOfTile));
  launch({grid, dim3(Work::kThreads), stream_of(call), 0, true}, expert_kernel<Work>, a);
}

void run_expert_linear(const ExpertState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &weight = call.in[1], &ids = call.in[2], &bias = call.in[3],
                   &y = call.out[0];
  ExpertArgs a;
  a.experts = weight.shape[0], a.cols = weight.shape[1], a.depth = weight.shape[2];
  const int64_t count = ids.shape[0];
  if (count == 0) return;
  const ExpertOrder rows(call.workspace, s.max_count);
  launch_expert_sort(rows, ids, a.experts, stream_of(call));
  a.order = rows.order, a.counts = rows.counts;
  a.x = DeviceRows(x, 1), a.y = DeviceRows(y, 1);
  a.repeat = s.repeat;
  const int64_t x_size = dtype_size(s.x), w_size = dtype_size(s.weight);
  a.x_matrix = {x.data, s.x, moves_in_packs(a.x, a.depth, x_size, 4 * x_size)};
  a.weight = {weight.data, s.weight, moves_in_packs(DeviceRows(weight, 1), a.depth, w_size, 4 * w_size)};
  a.w_expert = weight.stride[0], a.w_stride = weight.stride[1];
  if (bias) {
    a.bias = bias.data, a.bias_dtype = bias.dtype;
    a.bias_expert = bias.stride[0], a.bias_stride = bias.stride[1];
  }
  a.y_dtype = y.dtype;
  dispatch_linear(s.x, s.weight, [&](auto xt, auto wt) {
    using X = typename decltype(xt)::type;
    using W = typename decltype(wt)::type;
    if (count <= kFewRows * a.experts)
      launch_experts<SmallLinearTile<X, W>>(call, a, count);
    else
      launch_experts<LargeLinearTile<X, W>>(call, a, count);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_expert_linear(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(4, 1);
  const OperandSpec& x = check.input(0, "x [S/d, K]", 2, 1);
  const OperandSpec& weight = check.input(1, "weight [E, N, K]", 3, 1);
  const OperandSpec& ids = check.input(2, "ids [S]", 1, 0);
  const OperandSpec* bias = check.optional_input(3, "bias [E, N]", 2, 1);
  const OperandSpec& y = check.output(0, "the result [S, N]", 2, 1);
  ExpertState state{x.dtype, weight.dtype};
  state.repeat = check.integer("x_repeat", 1, 1 << 20);
  check.that(ids.dtype == DType::kI64, "ids of dtype i64", std::string(dtype_name(ids.dtype)));
  for (size_t d = 0; d < 3; ++d) check.static_dim(weight, "weight", d);
  Dim sources = x.shape[0];
  sources.constant *= state.repeat, sources.t *= state.repeat, sources.r *= state.repeat;
  check.shape(ids, "ids", {sources});
  check.shape(x, "x", {x.shape[0], weight.shape[2]});
  check.shape(y, "the result", {ids.shape[0], weight.shape[1]});
  if (bias) check.shape(*bias, "bias", {weight.shape[0], weight.shape[1]});
  if (!is_float(x.dtype) || !is_float(weight.dtype) || !is_float(y.dtype) ||
      (bias && !is_float(bias->dtype))) {
    *why = "it takes floats";
    return nullptr;
  }
  const int64_t rows = check.max_rows(ids, 0), experts = weight.shape[0].constant;
  check.that(rows <= INT32_MAX && experts < INT32_MAX, "rows and experts that 32 bits can count",
             std::to_string(rows) + " and " + std::to_string(experts));
  state.max_count = rows;
  return make_function_kernel("expert_linear.plain", state, run_expert_linear,
                              ExpertOrder::bytes(rows, experts));
}

}  // namespace autodeploy::cuda
