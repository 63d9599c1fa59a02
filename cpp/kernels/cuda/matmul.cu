// matmul: [..., M, K] x [..., K, N] with any strides and float dtypes. Each result is one chain of
// multiply-adds over K in float32, whatever the tiles.
#include "kernels/cuda/elements.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kTile = 32, kDepth = 32;  // results each way, and what a step of the sum takes
constexpr int kThreads = 256,
              kPer = kTile * kTile / kThreads;  // results of a thread: rows kThreads/kTile apart
constexpr int kStep = kThreads / kTile;

struct Matrix {
  DeviceRows batch;  // where matrices begin
  DType dtype = DType::kF32;
  int64_t row = 0, column = 0;  // strides
};
struct MatmulArgs {
  Matrix a, b, y;
  int64_t rows = 0, columns = 0, depth = 0, row_tiles = 1;
};

// A kTile x kTile piece of a matrix, zeros outside of it, to to[i][j] with element (first_row + i,
// first_column
// + j); neighbouring threads read along the denser dim.
AD_DEVICE void load_tile(const Matrix& m, int64_t base, int64_t first_row, int64_t first_column, int64_t rows,
                         int64_t columns, float (&to)[kTile][kTile + 1]) {
  const bool by_column = m.column <= m.row;
  const int fast = static_cast<int>(threadIdx.x) % kTile, slow = static_cast<int>(threadIdx.x) / kTile;
#pragma unroll
  for (int s = slow; s < kTile; s += kStep) {
    const int i = by_column ? s : fast, j = by_column ? fast : s;
    const int64_t r = first_row + i, c = first_column + j;
    to[i][j] =
        r < rows && c < columns ? load_float(m.batch.data, m.dtype, base + r * m.row + c * m.column) : 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads) matmul_kernel(MatmulArgs a) {
  static_assert(kTile == kDepth);
  __shared__ float left[kTile][kTile + 1], right[kTile][kTile + 1];
  wait_for_previous();
  let_next_start();
  const int64_t matrix = blockIdx.x / a.row_tiles;
  const int64_t row = blockIdx.x % a.row_tiles * kTile, column = int64_t{blockIdx.y} * kTile;
  const int64_t a_base = a.a.batch.offset(matrix), b_base = a.b.batch.offset(matrix);
  const int c = static_cast<int>(threadIdx.x) % kTile, r = static_cast<int>(threadIdx.x) / kTile;
  float acc[kPer] = {};
  for (int64_t k = 0; k < a.depth; k += kDepth) {
    load_tile(a.a, a_base, row, k, a.rows, a.depth, left);
    load_tile(a.b, b_base, k, column, a.depth, a.columns, right);
    __syncthreads();
#pragma unroll 8
    for (int d = 0; d < kDepth; ++d) {
      const float w = right[d][c];
#pragma unroll
      for (int i = 0; i < kPer; ++i) acc[i] = multiply_add(left[r + i * kStep][d], w, acc[i]);
    }
    __syncthreads();
  }
  const int64_t y = a.y.batch.offset(matrix);
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int64_t at = row + r + i * kStep;
    if (at < a.rows && column + c < a.columns)
      store_float(a.y.batch.data, a.y.dtype, y + at * a.y.row + (column + c) * a.y.column, acc[i]);
  }
}

struct NoState {};

Matrix matrix_of(const TensorView& v) {
  const size_t last = static_cast<size_t>(v.ndim - 1);
  return {DeviceRows(v, 2), v.dtype, v.stride[last - 1], v.stride[last]};
}

void run_matmul(const NoState&, const KernelCall& call) {
  const TensorView &x = call.in[0], &w = call.in[1];
  const size_t last = static_cast<size_t>(x.ndim - 1);
  MatmulArgs a{matrix_of(x), matrix_of(w), matrix_of(call.out[0])};
  a.rows = x.shape[last - 1], a.depth = x.shape[last], a.columns = w.shape[last];
  a.row_tiles = blocks_for(a.rows, kTile);
  const dim3 grid(static_cast<unsigned>(a.y.batch.rows * a.row_tiles), blocks_for(a.columns, kTile));
  launch({grid, dim3(kThreads), stream_of(call), 0, true}, matmul_kernel, a);
}

}  // namespace

std::unique_ptr<Kernel> make_matmul(const KernelSpec& spec, std::string* why) {
  check_matmul(spec);
  if (!is_float(spec.in[0].dtype) || !is_float(spec.in[1].dtype) || !is_float(spec.out[0].dtype)) {
    *why = "it takes floats";
    return nullptr;
  }
  return make_function_kernel("matmul.plain", NoState{}, run_matmul);
}

}  // namespace autodeploy::cuda
