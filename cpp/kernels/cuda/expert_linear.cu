// expert_linear without tensor cores: rows sorted by expert, then each expert's rows multiplied together
// (Shazeer et al. 2017, arXiv:1701.06538). A row's result does not depend on the others of its expert.
#include <algorithm>

#include "kernels/cuda/linear_tile.h"

namespace autodeploy::cuda {
namespace {

// ---- rows by expert ----

struct SortArgs {
  const int64_t* ids = nullptr;
  int64_t stride = 0, count = 0, experts = 0;
  int32_t *order = nullptr, *counts = nullptr;
};

constexpr int kSortThreads = 256, kSortWarps = kSortThreads / kWarpSize;

// Block e lists the rows of expert e, in order, behind those of the experts before it; block `experts` those
// of no expert.
__global__ void __launch_bounds__(kSortThreads) sort_by_expert(SortArgs a) {
  __shared__ int32_t found[kSortWarps];
  wait_for_previous();
  let_next_start();
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarpSize, warp = tid / kWarpSize;
  const int64_t mine = blockIdx.x;
  const auto expert_of = [&](int64_t i) {
    const int64_t id = a.ids[i * a.stride];
    return id >= 0 && id < a.experts ? id : a.experts;
  };
  int32_t before = 0;  // rows of experts before this one
  for (int64_t i = tid; i < a.count; i += kSortThreads) before += expert_of(i) < mine;
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) before += __shfl_xor_sync(0xffffffffu, before, d);
  if (lane == 0) found[warp] = before;
  __syncthreads();
  int32_t at = 0;
  for (int w = 0; w < kSortWarps; ++w) at += found[w];
  const int32_t first = at;
  for (int64_t i = 0; i < a.count; i += kSortThreads) {
    const bool is_mine = i + tid < a.count && expert_of(i + tid) == mine;
    const uint32_t votes = __ballot_sync(0xffffffffu, is_mine);
    __syncthreads();
    if (lane == 0) found[warp] = __popc(votes);
    __syncthreads();
    int32_t place = at;
    for (int w = 0; w < kSortWarps; ++w) {
      if (w < warp) place += found[w];
      at += found[w];
    }
    if (is_mine) a.order[place + __popc(votes & ((1u << lane) - 1))] = static_cast<int32_t>(i + tid);
  }
  if (tid == 0) a.counts[mine] = at - first;
}

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

// The place of a block in the list of all experts' tiles: its expert and the first and last + 1 of its rows
// in the order; expert -1 beyond the last tile.
struct Tile {
  int expert, first, last;
};
template <int kRows>
AD_DEVICE void find_tile(const ExpertArgs& a, int64_t tile, Tile* found) {
  if (threadIdx.x == 0) *found = {-1, 0, 0};
  __syncthreads();
  if (threadIdx.x < kWarpSize) {
    const int lane = static_cast<int>(threadIdx.x);
    int64_t tiles = 0;
    int rows = 0;
    for (int64_t e = 0; e <= a.experts; e += kWarpSize) {
      const int count = e + lane <= a.experts ? a.counts[e + lane] : 0;
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

template <class Work>
__global__ void __launch_bounds__(Work::kThreads) expert_kernel(ExpertArgs a) {
  __shared__ typename Work::Shared shared;
  __shared__ Tile tile;
  __shared__ int32_t rows[Work::kRowsOfTile];
  wait_for_previous();
  let_next_start();
  find_tile<Work::kRowsOfTile>(a, blockIdx.x, &tile);
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
  int64_t repeat = 1, order_bytes = 0;
};

template <class Work>
void launch_experts(const KernelCall& call, const ExpertArgs& a, int64_t count) {
  // Each expert that has rows has at most one tile that is not full.
  const int64_t tiles = count / Work::kRowsOfTile + std::min(count, a.experts + 1);
  const dim3 grid(static_cast<unsigned>(tiles), blocks_for(a.cols, Work::kColsOfTile));
  launch({grid, dim3(Work::kThreads), stream_of(call), 0, true}, expert_kernel<Work>, a);
}

void run_expert_linear(const ExpertState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &weight = call.in[1], &ids = call.in[2], &bias = call.in[3],
                   &y = call.out[0];
  ExpertArgs a;
  a.experts = weight.shape[0], a.cols = weight.shape[1], a.depth = weight.shape[2];
  int32_t* order = reinterpret_cast<int32_t*>(call.workspace);
  int32_t* counts = reinterpret_cast<int32_t*>(call.workspace + s.order_bytes);
  const int64_t count = ids.shape[0];
  if (count == 0) return;
  launch({dim3(static_cast<unsigned>(a.experts + 1)), dim3(kSortThreads), stream_of(call), 0, true},
         sort_by_expert, SortArgs{ids.as<const int64_t>(), ids.stride[0], count, a.experts, order, counts});
  a.order = order, a.counts = counts;
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
  state.order_bytes = (rows * 4 + 63) / 64 * 64;
  return make_function_kernel("expert_linear.plain", state, run_expert_linear,
                              state.order_bytes + (experts + 1) * 4);
}

}  // namespace autodeploy::cuda
