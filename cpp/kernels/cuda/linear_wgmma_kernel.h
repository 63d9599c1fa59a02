// linear of a few dozen rows on Hopper's matrix units (wgmma.h): like the kernels of linear_small_kernel.h it
// is bound by the memory that holds the weights, and keeps many bytes of it under way. Templates;
// linear_wgmma*.cu instantiate those that are used.
//
// The weights' rows are the left factor. A block has kGroups warpgroups, each of which takes 64 rows of the
// weights of a tile, and one warp that does nothing but to ask for boxes: of the tile's weights and of x, a
// stage of the ring for kBoxes * 64 columns of both. The weights of as many stages as there are are asked for
// before wait_for_previous().
//
// How tiles are shared among blocks. Few tiles: a block takes one, or a cluster of blocks does, each of them
// a part of the columns, and they add the parts up through their shared memory. Many: all tiles' columns,
// tile after tile, are shared evenly among the blocks (stream-K: Osama et al. 2023, "Stream-K: Work-centric
// Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU"). Where a tile falls to several
// blocks each leaves its sums in memory, and the last one to do so adds them up. Sums are taken in the order
// of the blocks either way: results do not depend on which one was last.
#pragma once

#include "kernels/cuda/linear_small_kernel.h"
#include "kernels/cuda/wgmma.h"

namespace autodeploy::cuda {

constexpr int kWgmmaRowsOfGroup = 64;  // of the weights
constexpr int kGroupThreads = 128;

// `weights`: dims are columns, rows, 1, 1 where there is one slice; else columns, rows of an octet, slices,
// octets: an octet of the rows of one slice beside the same octet of the other. `x`: columns, rows, 1, 1.
struct WgmmaLinearArgs {
  TensorMap weights, x;
  SmallLinearArgs linear;       // no norm; of x what the epilogue needs
  float* partial = nullptr;     // wgmma_partial_bytes()
  uint32_t* arrived = nullptr;  // [tiles, groups], zeros between launches
  int32_t tiles = 0;
  int32_t splits = 1;  // blocks of a cluster, which has one tile; 0: all blocks share all tiles
  bool packs = false;  // rows of y begin at 16-byte boundaries, outputs are a multiple of 8
};

// Barriers and flags, behind the ring.
template <int kGroups, int kStages>
struct WgmmaControl {
  SharedBarrier full[kStages], empty[kStages];
  int last_of_tile[kGroups];
};

template <int kRows, int kGroups, int kBoxes>
constexpr size_t kWgmmaStageBytes =
    static_cast<size_t>(kGroups * kWgmmaRowsOfGroup + kRows) * kBoxCols * 2 * kBoxes;
template <int kRows, int kGroups, int kBoxes, int kStages>
constexpr size_t wgmma_shared() {
  return kStages * kWgmmaStageBytes<kRows, kGroups, kBoxes> + kBoxAlignment +
         sizeof(WgmmaControl<kGroups, kStages>);
}
// A block leaves at most two tiles unfinished.
constexpr int64_t wgmma_partial_bytes(int rows, int groups, int64_t blocks) {
  return 2 * blocks * groups * kWgmmaRowsOfGroup * rows * 4;
}

// Where the sums of a tile lie in shared memory, row after row of x: floats between rows. Lanes of a warp
// write to different banks.
template <int kGroups>
constexpr int kWgmmaSumPitch = kGroups * kWgmmaRowsOfGroup + 4;

// Four results as multiply_boxes() gives them to a thread: rows m and m + 1 of x, rows `row` and row + 8 of
// the tile's weights.
template <class T, int kOutputs, class Epilogue>
AD_DEVICE void store_four(const SmallLinearArgs& a, const Epilogue& epilogue, int tile, int row, int m,
                          const float4& sums) {
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const float low = i ? sums.y : sums.x, high = i ? sums.w : sums.z;
    if (m + i >= a.rows) continue;
    if constexpr (Epilogue::kSlices == 1) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int j = tile * kOutputs + row + half * 8;
        float value[1] = {half ? high : low};
        if (j >= a.outputs) continue;
        add_bias<T>(a, j, value);
        epilogue.template store<T>(a, m + i, j, value);
      }
    } else {
      const int j = tile * kOutputs + row / 16 * 8 + row % 8;
      float values[2] = {low, high};
      if (j >= a.outputs) continue;
      add_bias<T>(a, j, values);
      epilogue.template store<T>(a, m + i, j, values);
    }
  }
}

// Eight outputs of row m from output j on; `sums` are those of their rows of the weights, eight of each
// slice.
template <class T, class Epilogue>
AD_DEVICE void store_eight(const SmallLinearArgs& a, const Epilogue& epilogue, int m, int j, bool packs,
                           const float (&sums)[Epilogue::kSlices * 8]) {
  T results[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    float values[Epilogue::kSlices];
#pragma unroll
    for (int s = 0; s < Epilogue::kSlices; ++s) values[s] = sums[s * 8 + i];
    if (j + i < a.outputs) add_bias<T>(a, j + i, values);
    results[i] = epilogue.template value<T>(values);
  }
  T* row = a.y.row<T>(a.first_row + m) + j;
  if (packs) {
    uint4 bits;
    memcpy(static_cast<void*>(&bits), static_cast<const void*>(results), sizeof(bits));
    *reinterpret_cast<uint4*>(row) = bits;
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (j + i < a.outputs) row[i] = results[i];
    }
  }
}

template <class T, int kRows, int kGroups, int kBoxes, int kStages, class Epilogue>
__global__ void __launch_bounds__(kGroups* kGroupThreads + kWarpSize, 1)
    wgmma_linear_kernel(const __grid_constant__ WgmmaLinearArgs args, Epilogue epilogue) {
#if AD_HAS_WGMMA
  constexpr int kSlices = Epilogue::kSlices, kOutputs = kGroups * kWgmmaRowsOfGroup / kSlices;
  constexpr size_t kGroupBytes = kWgmmaRowsOfGroup * kBoxCols * 2, kWeightBytes = kGroups * kGroupBytes,
                   kXBytes = kRows * kBoxCols * 2, kStageBytes = kWgmmaStageBytes<kRows, kGroups, kBoxes>;
  static_assert(kStageBytes == kBoxes * (kWeightBytes + kXBytes) && kXBytes % kBoxAlignment == 0);
  static_assert(kSlices == 1 || kSlices == 2);
  constexpr int kQuads = kRows / 8;  // float4s of a thread's sums
  constexpr int kPitch = kWgmmaSumPitch<kGroups>;
  static_assert(size_t{kRows} * kPitch * sizeof(float) <= 2 * kStageBytes);
  AD_DYNAMIC_SHARED(uint8_t, shared);
  const SmallLinearArgs& a = args.linear;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize;
  uint8_t* stages =
      shared + (kBoxAlignment - reinterpret_cast<uintptr_t>(shared) % kBoxAlignment) % kBoxAlignment;
  auto& control = *reinterpret_cast<WgmmaControl<kGroups, kStages>*>(stages + kStages * kStageBytes);
  if (thread == 0) {
    for (int s = 0; s < kStages; ++s) {
      init_barrier(&control.full[s], 1);
      init_barrier(&control.empty[s], kGroups * kGroupThreads / kWarpSize);
    }
    publish_barriers();
  }
  let_next_start();
  __syncthreads();

  constexpr int kChunk = kBoxes * kBoxCols;
  const int chunks = (a.cols + kChunk - 1) / kChunk, items = args.tiles * chunks;
  int begin, end;
  if (args.splits > 0) {
    const int tile = static_cast<int>(blockIdx.x) / args.splits;
    const auto part = blockIdx.x % static_cast<unsigned>(args.splits),
               parts = static_cast<unsigned>(args.splits);
    begin = tile * chunks + share_begin(chunks, part, parts);
    end = tile * chunks + share_begin(chunks, part + 1, parts);
  } else {
    begin = share_begin(items, blockIdx.x, gridDim.x), end = share_begin(items, blockIdx.x + 1, gridDim.x);
  }

  if (thread >= kGroups * kGroupThreads) {
    if (lane == 0) {
      prefetch_map(&args.weights);
      prefetch_map(&args.x);
      const ReadOnce once = read_once();
      const auto weights_at = [&](int item, int box) {
        const int row = item / chunks * kOutputs, col = item % chunks * kChunk + box * kBoxCols;
        return kSlices == 1 ? int4{col, row, 0, 0} : int4{col, 0, 0, row / 8};
      };
      const auto fetch_weights = [&](int item, int slot) {
        arrive_for_bytes(&control.full[slot], static_cast<uint32_t>(kStageBytes));
#pragma unroll
        for (int box = 0; box < kBoxes; ++box)
          copy_box(stages + slot * kStageBytes + box * kWeightBytes, &args.weights, weights_at(item, box),
                   &control.full[slot], once);
      };
      const auto fetch_x = [&](int item, int slot) {
#pragma unroll
        for (int box = 0; box < kBoxes; ++box)
          copy_box(stages + slot * kStageBytes + kBoxes * kWeightBytes + box * kXBytes, &args.x,
                   {item % chunks * kChunk + box * kBoxCols, a.first_row, 0, 0}, &control.full[slot]);
      };
      const int ahead = min(kStages, end - begin);
      for (int i = 0; i < ahead; ++i) fetch_weights(begin + i, i);
      wait_for_previous();
      for (int i = 0; i < ahead; ++i) fetch_x(begin + i, i);
      int slot = 0;
      uint32_t parity = 0;
      for (int item = begin + ahead; item < end; ++item) {
        wait_barrier(&control.empty[slot], parity);
        fetch_weights(item, slot);
        fetch_x(item, slot);
        if (++slot == kStages) slot = 0, parity ^= 1;
      }
    }
    if (args.splits > 1) {
      __syncwarp();
      sync_cluster();
      sync_cluster();
    }
    return;
  }

  wait_for_previous();
  constexpr int kSums = kQuads * 4;  // of a thread
  const int group = thread / kGroupThreads, in_group = thread % kGroupThreads;
  const int row = group * kWgmmaRowsOfGroup + in_group / kWarpSize * 16 + lane / 4;  // of the tile's weights
  const int column = lane % 4 * 2;                                                   // row of x, of an octet
  // Where a block leaves its sums of a tile: in its first place unless it has begun with another tile.
  const auto place = [&](int block, int tile) {
    const int of_block = share_begin(items, static_cast<unsigned>(block), gridDim.x) / chunks == tile ? 0 : 1;
    return reinterpret_cast<float4*>(args.partial) +
           (int64_t{block * 2 + of_block} * kGroups + group) * kQuads * kGroupThreads + in_group;
  };
  const auto block_of = [&](int item) {
    return static_cast<int>(((int64_t{item} + 1) * gridDim.x - 1) / items);
  };
  int slot = 0;
  uint32_t parity = 0;
  float sums[kSums];
  for (int item = begin; item < end;) {
    const int tile = item / chunks, first_chunk = item % chunks,
              parts = min(chunks - first_chunk, end - item);
#pragma unroll
    for (int i = 0; i < kSums; ++i) sums[i] = 0;
    for (int c = 0; c < parts; ++c) {
      wait_barrier(&control.full[slot], parity);
      const uint8_t *weights = stages + slot * kStageBytes, *x = weights + kBoxes * kWeightBytes;
      begin_products();
#pragma unroll
      for (int step = 0; step < kChunk / 16; ++step) {
        constexpr int kSteps = kBoxCols / 16;  // of a box
        const int box = step / kSteps;
        multiply_boxes<T, kRows>(sums, weights + box * kWeightBytes + group * kGroupBytes, x + box * kXBytes,
                                 step % kSteps);
      }
      finish_products();
      if (lane == 0) arrive_at(&control.empty[slot]);
      if (++slot == kStages) slot = 0, parity ^= 1;
    }
    item += parts;
    if (args.splits > 0) break;
    if (parts < chunks) {
      const int first_block = block_of(tile * chunks), last_block = block_of(tile * chunks + chunks - 1);
      float4* mine = place(static_cast<int>(blockIdx.x), tile);
#pragma unroll
      for (int q = 0; q < kQuads; ++q)
        __stcg(mine + q * kGroupThreads,
               float4{sums[4 * q], sums[4 * q + 1], sums[4 * q + 2], sums[4 * q + 3]});
      __threadfence();
      sync_some(1 + group, kGroupThreads);
      uint32_t* arrived = args.arrived + tile * kGroups + group;
      if (in_group == 0)
        control.last_of_tile[group] =
            atomicAdd(arrived, 1u) == static_cast<uint32_t>(last_block - first_block);
      sync_some(1 + group, kGroupThreads);
      if (!control.last_of_tile[group]) continue;
      __threadfence();
      if (in_group == 0) *arrived = 0;
#pragma unroll
      for (int i = 0; i < kSums; ++i) sums[i] = 0;
      for (int block = first_block; block <= last_block; ++block) {
        const float4* from = place(block, tile);
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          const float4 more = __ldcg(from + q * kGroupThreads);
          sums[4 * q] += more.x, sums[4 * q + 1] += more.y, sums[4 * q + 2] += more.z,
              sums[4 * q + 3] += more.w;
        }
      }
    }
    // One copy of the epilogue's code: it may be long.
#pragma unroll 1
    for (int q = 0; q < kQuads; ++q) {
      float4 quad = {0, 0, 0, 0};
#pragma unroll
      for (int i = 0; i < kQuads; ++i) {
        if (i == q) quad = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
      }
      store_four<T, kOutputs>(a, epilogue, tile, row, q * 8 + column, quad);
    }
  }
  if (args.splits == 0) return;

  // The sums go to the ring, which is free once all groups are done; each block of the cluster takes some
  // rows of x, of all blocks' sums.
  float* own = reinterpret_cast<float*>(stages);
  sync_some(1, kGroups * kGroupThreads);
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    float* to = own + (q * 8 + column) * kPitch + row;
    to[0] = sums[4 * q], to[kPitch] = sums[4 * q + 1], to[8] = sums[4 * q + 2],
    to[kPitch + 8] = sums[4 * q + 3];
  }
  const int splits = args.splits, rank = splits > 1 ? cluster_rank() : 0;
  if (splits > 1)
    sync_cluster();
  else
    sync_some(1, kGroups * kGroupThreads);
  constexpr int kRun = kSlices * 8, kRuns = kGroups * kWgmmaRowsOfGroup / kRun;  // of a row
  const int first = share_begin(a.rows, static_cast<unsigned>(rank), static_cast<unsigned>(splits)),
            last = share_begin(a.rows, static_cast<unsigned>(rank + 1), static_cast<unsigned>(splits));
  for (int i = first * kRuns + thread; i < last * kRuns; i += kGroups * kGroupThreads) {
    const int m = i / kRuns, run = i % kRuns, j = begin / chunks * kOutputs + run * 8;
    if (j >= a.outputs) continue;
    const float4* from = reinterpret_cast<const float4*>(own + m * kPitch + run * kRun);
    float of_run[kRun] = {};
    for (int block = 0; block < splits; ++block) {
#pragma unroll
      for (int part = 0; part < kRun / 4; ++part) {
        const float4 more = splits > 1 ? load_of_peer(from + part, block) : from[part];
        of_run[part * 4] += more.x, of_run[part * 4 + 1] += more.y;
        of_run[part * 4 + 2] += more.z, of_run[part * 4 + 3] += more.w;
      }
    }
    store_eight<T>(a, epilogue, m, j, args.packs, of_run);
  }
  if (splits > 1) sync_cluster();  // nobody ends while others read of it
#else
  (void)args, (void)epilogue;
#endif
}

struct WgmmaLinearLaunch {
  int splits = 1;  // blocks for each tile, 1 to 8; 0: `blocks` share all tiles
  int blocks = 0;  // at most
  bool overlap = true;
};

// args.linear says what is multiplied; the maps and tiles are filled in here. nullptr, or why nothing was
// launched.
template <class T, int kRows, int kGroups, int kBoxes, int kStages, class Epilogue>
const char* launch_wgmma_linear(WgmmaLinearArgs args, const Epilogue& epilogue, const WgmmaLinearLaunch& l,
                                Stream stream) {
  constexpr int kWeightRows = kGroups * kWgmmaRowsOfGroup, kOutputs = kWeightRows / Epilogue::kSlices;
  const SmallLinearArgs& a = args.linear;
  const DType dtype = std::is_same_v<T, bf16> ? DType::kBF16 : DType::kF16;
  const int64_t row_bytes = int64_t{a.cols} * 2;
  BoxedMatrix w;
  w.data = static_cast<const uint8_t*>(a.weight) + a.slice_offset[0] * row_bytes;
  if constexpr (Epilogue::kSlices == 1) {
    w.shape = {a.cols, a.outputs, 1, 1};
    w.stride_bytes = {2, row_bytes, row_bytes, row_bytes};
    w.box = {kBoxCols, kWeightRows, 1, 1};
  } else {
    w.shape = {a.cols, 8, 2, a.outputs / 8};
    w.stride_bytes = {2, row_bytes, (a.slice_offset[1] - a.slice_offset[0]) * row_bytes, 8 * row_bytes};
    w.box = {kBoxCols, 8, 2, kWeightRows / 16};
  }
  if (const char* why = make_tensor_map(dtype, w, &args.weights)) return why;
  BoxedMatrix x;
  x.data = a.x.data;
  const int64_t x_stride = a.x.rows > 1 ? a.x.stride[0] * 2 : row_bytes;
  x.shape = {a.cols, a.first_row + a.rows, 1, 1};
  x.stride_bytes = {2, x_stride, x_stride, x_stride};
  x.box = {kBoxCols, kRows, 1, 1};
  if (const char* why = make_tensor_map(dtype, x, &args.x)) return why;
  args.tiles = (a.outputs + kOutputs - 1) / kOutputs;
  constexpr int kChunk = kBoxes * kBoxCols;
  const int64_t items = int64_t{args.tiles} * ((a.cols + kChunk - 1) / kChunk);
  const int64_t chunks = items / args.tiles;
  args.splits = static_cast<int32_t>(chunks < l.splits ? chunks : l.splits);
  args.packs = a.outputs % 8 == 0 && rows_aligned_16(a.y);
  const auto blocks = static_cast<unsigned>(args.splits > 0    ? int64_t{args.tiles} * args.splits
                                            : items < l.blocks ? items
                                                               : l.blocks);
  const LaunchConfig config{dim3(blocks), dim3(kGroups * kGroupThreads + kWarpSize),
                            stream,       wgmma_shared<kRows, kGroups, kBoxes, kStages>(),
                            l.overlap,    static_cast<unsigned>(args.splits > 1 ? args.splits : 1)};
  launch(config, wgmma_linear_kernel<T, kRows, kGroups, kBoxes, kStages, Epilogue>, args, epilogue);
  return nullptr;
}

}  // namespace autodeploy::cuda
