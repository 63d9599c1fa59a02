// Products of many rows by tensor cores: a block computes a tile of rows x outputs over all of the inner
// dimension, or over its share of it; weights and rows pass through a ring of stages in shared memory. Serves
// linear, and expert_linear, whose rows are gathered by expert. Templates; linear_tensor.cu and
// expert_linear_tensor.cu instantiate them.
#pragma once

#include "kernels/cuda/expert_rows.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

struct TensorLinearArgs {
  DeviceRows x, y;                // rows of x begin at 16-byte boundaries
  const void* weight = nullptr;   // [experts, outputs, cols], 16-byte aligned
  const void* bias = nullptr;     // [experts, outputs]
  float* partial = nullptr;       // [splits, rows, outputs], where splits > 1
  int32_t rows = 0;               // of y
  int32_t cols = 0, outputs = 0;  // cols is a multiple of 8
  int32_t splits = 1;             // of the inner dimension; not of experts' rows
  bool bias_f32 = false;
  bool pairs = false;  // outputs are even, and rows of y begin at 4-byte boundaries
  bool weight_is_param = true;
  // Rows of experts: row i of the order goes to row order[i] of y, from row order[i] / repeat of x. Null: one
  // expert, rows as they are.
  const int32_t *order = nullptr, *counts = nullptr;
  int64_t experts = 1, repeat = 1;
};

constexpr int kTensorDepth = 64;     // elements of the inner dimension in a stage: 128 bytes of each row
constexpr int kTensorTileGroup = 8;  // neighbouring blocks share rows of x among so many tiles of outputs

template <int kRows, int kOutputs, int kStages>
constexpr size_t tensor_shared() {
  return static_cast<size_t>(kStages) * (kRows + kOutputs) * kTensorDepth * 2;
}

// Outputs `at` and the next of a row.
template <class Y>
AD_DEVICE void store_pair(Y* row, int at, const TensorLinearArgs& a, float low, float high) {
  if (at >= a.outputs) return;
  if (a.pairs) {
    *reinterpret_cast<Pack<Y, 2>*>(row + at) = {from_float<Y>(low), from_float<Y>(high)};
    return;
  }
  row[at] = from_float<Y>(low);
  if (at + 1 < a.outputs) row[at + 1] = from_float<Y>(high);
}

template <class T>
AD_DEVICE float tensor_bias(const TensorLinearArgs& a, int64_t i) {
  return a.bias_f32 ? static_cast<const float*>(a.bias)[i] : to_float(static_cast<const T*>(a.bias)[i]);
}

// kRows x kOutputs results by kWarpsDown x kWarpsAcross warps. Grid: x the tiles (of experts: of rows), y the
// splits (of experts: tiles of outputs).
template <class T, int kRows, int kOutputs, int kWarpsDown, int kWarpsAcross, int kStages>
__global__ void __launch_bounds__(kWarpsDown* kWarpsAcross* kWarpSize, 2)
    tensor_linear_kernel(TensorLinearArgs a) {
  constexpr int kThreads = kWarpsDown * kWarpsAcross * kWarpSize;
  constexpr int kWarpRows = kRows / kWarpsDown, kWarpOutputs = kOutputs / kWarpsAcross;
  constexpr int kTilesDown = kWarpRows / 16, kTilesAcross = kWarpOutputs / 8;
  constexpr int kPieces = kTensorDepth / 8;  // of 16 bytes, of a row in a stage
  constexpr int kLoadRows = kThreads / kPieces;
  constexpr int kXLoads = kRows / kLoadRows, kWLoads = kOutputs / kLoadRows;
  static_assert(kTilesAcross % 2 == 0 && kRows % kLoadRows == 0 && kOutputs % kLoadRows == 0);
  AD_DYNAMIC_SHARED(uint8_t, shared);
  __shared__ ExpertTile expert_tile;
  T* x_stages = reinterpret_cast<T*>(shared);
  T* w_stages = x_stages + kStages * kRows * kTensorDepth;
  const int tid = static_cast<int>(threadIdx.x), lane = tid % kWarpSize, warp = tid / kWarpSize;
  const int load_row = tid / kPieces, load_piece = tid % kPieces;
  let_next_start();

  // The tile.
  const int across = (a.outputs + kOutputs - 1) / kOutputs;
  int first_row = 0, last_row = a.rows;
  int first_output = 0, expert = 0, step = 0, last_step = (a.cols + kTensorDepth - 1) / kTensorDepth;
  bool waited = false;
  if (a.order) {
    wait_for_previous();
    waited = true;
    find_expert_tile<kRows>(a.counts, a.experts, blockIdx.x, &expert_tile);
    expert = expert_tile.expert;
    if (expert < 0) return;
    first_row = expert_tile.first, last_row = expert_tile.last;
    first_output = static_cast<int>(blockIdx.y) * kOutputs;
  } else {
    // Groups of kTensorTileGroup tiles across, all tiles down, one group after another.
    const int down = (a.rows + kRows - 1) / kRows;
    const int group = static_cast<int>(blockIdx.x) / (down * kTensorTileGroup),
              within = static_cast<int>(blockIdx.x) % (down * kTensorTileGroup);
    const int width = min(kTensorTileGroup, across - group * kTensorTileGroup);
    first_row = within / width * kRows;
    first_output = (group * kTensorTileGroup + within % width) * kOutputs;
    const int steps = last_step;
    step = static_cast<int>(int64_t{steps} * blockIdx.y / a.splits);
    last_step = static_cast<int>(int64_t{steps} * (blockIdx.y + 1) / a.splits);
  }
  const bool known = expert < static_cast<int>(a.experts);  // else rows of no expert: zeros
  const T* weight = static_cast<const T*>(a.weight) + int64_t{known ? expert : 0} * a.outputs * a.cols;

  // Where a row's piece lies in a stage: shifted by the row, so that rows' pieces of one column lie in
  // different banks.
  const auto place = [](int row, int piece) { return row * kTensorDepth + (piece ^ (row % kPieces)) * 8; };
  int w_from = step, x_from = step;  // the steps that are fetched next
  const T* w_row = weight + static_cast<int64_t>(first_output + load_row) * a.cols;
  const auto fetch_w = [&](int slot) {
    if (w_from >= last_step) return;
    const int col = w_from * kTensorDepth + load_piece * 8;
    const bool inside = col < a.cols && known;
#pragma unroll
    for (int i = 0; i < kWLoads; ++i) {
      const bool valid = inside && first_output + load_row + i * kLoadRows < a.outputs;
      copy_async_16(w_stages + slot * kOutputs * kTensorDepth + place(load_row + i * kLoadRows, load_piece),
                    valid ? w_row + static_cast<int64_t>(i * kLoadRows) * a.cols + col : weight, valid);
    }
    ++w_from;
  };
  const T* x_row[kXLoads];
  const auto fetch_x = [&](int slot) {
    if (x_from >= last_step) return;
    const int col = x_from * kTensorDepth + load_piece * 8;
    const bool inside = col < a.cols && known;
#pragma unroll
    for (int i = 0; i < kXLoads; ++i) {
      const bool valid = inside && x_row[i] != nullptr;
      copy_async_16(x_stages + slot * kRows * kTensorDepth + place(load_row + i * kLoadRows, load_piece),
                    valid ? x_row[i] + col : weight, valid);
    }
    ++x_from;
  };

  // The first weights, which do not depend on earlier kernels.
  if (a.weight_is_param) {
#pragma unroll
    for (int s = 0; s < kStages - 1; ++s) fetch_w(s);
  }
  if (!waited) wait_for_previous();
#pragma unroll
  for (int i = 0; i < kXLoads; ++i) {
    const int row = first_row + load_row + i * kLoadRows;
    x_row[i] = row >= last_row ? nullptr
               : a.order       ? a.x.row<const T>(a.order[row] / a.repeat)
                               : a.x.row<const T>(row);
  }
#pragma unroll
  for (int s = 0; s < kStages - 1; ++s) {
    if (!a.weight_is_param) fetch_w(s);
    fetch_x(s);
    commit_copies();
  }

  const int warp_row = warp / kWarpsAcross * kWarpRows, warp_output = warp % kWarpsAcross * kWarpOutputs;
  const int matrix = lane / 8, matrix_row = lane % 8;
  float acc[kTilesDown][kTilesAcross][4] = {};
  int slot = 0;
  for (; step < last_step; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();  // the stage is there for all, and that of the last step is free
    const int next = slot == 0 ? kStages - 1 : slot - 1;
    fetch_w(next);
    fetch_x(next);
    commit_copies();
    const T* x_stage = x_stages + slot * kRows * kTensorDepth;
    const T* w_stage = w_stages + slot * kOutputs * kTensorDepth;
#pragma unroll
    for (int k = 0; k < kTensorDepth / 16; ++k) {
      uint32_t x[kTilesDown][4], w[kTilesAcross / 2][4];
#pragma unroll
      for (int i = 0; i < kTilesDown; ++i)
        load_matrix_x4(x[i],
                       x_stage + place(warp_row + i * 16 + matrix % 2 * 8 + matrix_row, 2 * k + matrix / 2));
#pragma unroll
      for (int j = 0; j < kTilesAcross / 2; ++j)
        load_matrix_x4(
            w[j], w_stage + place(warp_output + j * 16 + matrix / 2 * 8 + matrix_row, 2 * k + matrix % 2));
#pragma unroll
      for (int i = 0; i < kTilesDown; ++i) {
#pragma unroll
        for (int j = 0; j < kTilesAcross; ++j)
          mma_16x8x16<T>(acc[i][j], x[i], {w[j / 2][j % 2 * 2], w[j / 2][j % 2 * 2 + 1]});
      }
    }
    slot = slot + 1 == kStages ? 0 : slot + 1;
  }

  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int i = 0; i < kTilesDown; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + warp_row + i * 16 + half * 8 + g;
      if (row >= last_row) continue;
      T* y = a.y.row<T>(a.order ? a.order[row] : row);
#pragma unroll
      for (int j = 0; j < kTilesAcross; ++j) {
        const int output = first_output + warp_output + j * 8 + 2 * t;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (a.splits == 1 && a.bias && known && output + n < a.outputs)
            acc[i][j][half * 2 + n] += tensor_bias<T>(a, int64_t{expert} * a.outputs + output + n);
        }
        const float low = acc[i][j][half * 2], high = acc[i][j][half * 2 + 1];
        if (a.splits > 1)
          store_pair(a.partial + (int64_t{blockIdx.y} * a.rows + row) * a.outputs, output, a, low, high);
        else
          store_pair(y, output, a, low, high);
      }
    }
  }
}

constexpr int kSumThreads = 256;

// The results of splits, in order.
template <class T>
__global__ void __launch_bounds__(kSumThreads) tensor_sum_kernel(TensorLinearArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t count = int64_t{a.rows} * a.outputs, i = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  if (i >= count) return;
  float v = 0;
  for (int s = 0; s < a.splits; ++s) v += a.partial[s * count + i];
  const int64_t row = i / a.outputs, output = i % a.outputs;
  if (a.bias) v += tensor_bias<T>(a, output);
  a.y.row<T>(row)[output] = from_float<T>(v);
}

template <class T, int kRows, int kOutputs, int kWarpsDown, int kWarpsAcross, int kStages>
void launch_tensor_linear(const TensorLinearArgs& a, Stream stream, bool overlap = true) {
  const int64_t across = (a.outputs + kOutputs - 1) / kOutputs;
  const dim3 block(kWarpsDown * kWarpsAcross * kWarpSize);
  const int64_t tiles =
      a.order ? max_expert_tiles(a.rows, a.experts, kRows) : (a.rows + kRows - 1) / kRows * across;
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(a.order ? across : a.splits));
  launch({grid, block, stream, tensor_shared<kRows, kOutputs, kStages>(), overlap},
         tensor_linear_kernel<T, kRows, kOutputs, kWarpsDown, kWarpsAcross, kStages>, a);
  if (a.splits > 1)
    launch(
        {dim3(blocks_for(int64_t{a.rows} * a.outputs, kSumThreads)), dim3(kSumThreads), stream, 0, overlap},
        tensor_sum_kernel<T>, a);
}

}  // namespace autodeploy::cuda
