// How kernels of `linear` are launched, for a shape and a device.
#pragma once

#include <array>
#include <cstdint>
#include <functional>

namespace autodeploy::cuda {

constexpr int kMaxSmallRows = 16;

struct SmallLinearChoice {
  bool tensor_cores = false;  // mma_kernel, else gemv_kernel
  bool staged = false;        // mma_kernel: x lies in shared memory
  int octets = 2;             // mma_kernel: octets of rows of the weights in a unit, 2 or 4
  int warps = 8, warps_k = 1;
  int blocks_per_processor = 1;
  int l2_bytes = 0;
};

// Whether so many rows of x have room in the shared memory of a block, beside its queues and those of the
// next kernel.
bool can_stage_rows(int64_t rows, int64_t cols);

// For `rows` of x (1 to kMaxSmallRows), `cols` elements each, which the kernel has to norm if `norm`, and
// `outputs` with `slices` products each.
SmallLinearChoice choose_small_linear(int64_t rows, int64_t cols, int64_t outputs, int slices, bool norm,
                                      int processors);

// Rows that are multiplied by Hopper's matrix units (linear_wgmma.h) where there are any.
constexpr int64_t kMinWgmmaRows = 2, kMaxWgmmaRows = 64;
// Its kernels' numbers of rows; fewer are filled up with zeros.
constexpr std::array<int, 3> kWgmmaRows{16, 32, 64};
constexpr int kMaxWgmmaGroups = 4;

struct WgmmaChoice {
  int groups = 2;  // of 64 rows of the weights, in a tile
  int splits = 0;  // blocks that share the columns of a tile, a cluster; 0: all blocks share all tiles
};

// For weights of `weight_rows` by `cols`; `clusters(groups, splits)` says how many clusters run at once.
WgmmaChoice choose_wgmma_linear(int rows, int64_t cols, int64_t weight_rows, int processors,
                                const std::function<int(int groups, int splits)>& clusters);

// Of more rows none is split.
constexpr int64_t kMaxSplitRows = 128;

struct TensorLinearChoice {
  int rows_of_tile = 128;  // 32, 64 or 128; tiles have 128 outputs
  int splits = 1;          // of the inner dimension
};

// `experts`: those that the rows are spread over, 0 for a plain linear.
TensorLinearChoice choose_tensor_linear(int64_t rows, int64_t cols, int64_t outputs, int64_t experts,
                                        int processors);

// Up to so many rows of expert_linear are multiplied one by one, as their experts are mostly different.
constexpr int64_t kMaxSingleExpertRows = 32;

}  // namespace autodeploy::cuda
