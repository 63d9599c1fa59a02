// linear of one row: dot products in float32, as linear_small_kernel.h says.
#pragma once

#include "kernels/cuda/linear_small_kernel.h"

namespace autodeploy::cuda {

constexpr int kGemvChunk = 256;  // elements of a row of weights that a warp reads at once

// Shared memory: x, the queues, and sums of warps that share a unit.
template <int kRowsOfUnit, int kStages>
size_t gemv_shared(int cols, int warps) {
  const size_t chunks = (static_cast<size_t>(cols) + kGemvChunk - 1) / kGemvChunk;
  return chunks * kGemvChunk * 2 + static_cast<size_t>(warps) * kStages * kRowsOfUnit * kWarpSize * 16 +
         2 * static_cast<size_t>(warps) * kRowsOfUnit * sizeof(float);
}

// A unit is kOutputs outputs of the one row; warps_k warps share it, chunk by chunk, at most as many as there
// are chunks.
template <class T, int kOutputs, int kStages, class Epilogue>
__global__ void __launch_bounds__(kMaxLinearWarps* kWarpSize, 1)
    gemv_kernel(SmallLinearArgs a, Epilogue epilogue) {
  constexpr int kSlices = Epilogue::kSlices, kRows = kOutputs * kSlices;
  AD_DYNAMIC_SHARED(uint8_t, shared);
  __shared__ float norm_partial[kMaxLinearWarps * kMaxNormRows];
  let_next_start();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int chunks = (a.cols + kGemvChunk - 1) / kGemvChunk;
  T* x = reinterpret_cast<T*>(shared);
  uint4* queues = reinterpret_cast<uint4*>(shared + static_cast<size_t>(chunks) * kGemvChunk * sizeof(T));
  uint4* queue = queues + warp * kStages * kRows * kWarpSize + lane;
  float* sums = reinterpret_cast<float*>(queues + warps * kStages * kRows * kWarpSize);

  const int groups = warps / a.warps_k, group = warp / a.warps_k, part = warp % a.warps_k;
  const int first = share_begin(a.units, blockIdx.x, gridDim.x),
            last = share_begin(a.units, blockIdx.x + 1, gridDim.x);

  // The step that is fetched next.
  int next_unit = first + group, next_chunk = part;
  const T* next_row[kRows];
  const ReadOnce once = read_once();
  const auto find_rows = [&] {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int j = min(next_unit * kOutputs + r / kSlices, a.outputs - 1);
      next_row[r] = static_cast<const T*>(a.weight) +
                    static_cast<int64_t>(a.slice_offset[r % kSlices] + j * a.slice_stride) * a.cols;
    }
  };
  const auto fetch = [&](int slot) {
    if (next_unit < last) {
      const int col = next_chunk * kGemvChunk + lane * 8;
      const bool valid = col < a.cols;
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        copy_async_16(queue + (slot * kRows + r) * kWarpSize, next_row[r] + (valid ? col : 0), valid, once);
      next_chunk += a.warps_k;
      if (next_chunk >= chunks) {
        next_chunk = part;
        next_unit += groups;
        find_rows();
      }
    }
    commit_copies();
  };
  const HeldNorm held = hold_norm_weight<T>(a);
  find_rows();
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) fetch(s);
  prefetch_weights<T, kSlices>(
      a, min(first * kOutputs, a.outputs), min(last * kOutputs, a.outputs),
      static_cast<int64_t>(warps) * kStages * kOutputs * kGemvChunk * static_cast<int64_t>(sizeof(T)));

  wait_for_previous();
  if (a.norm.on)
    norm_rows(x, norm_partial, a, chunks * kGemvChunk, 0, held);
  else
    stage_rows(x, a, chunks * kGemvChunk, 0);
  __syncthreads();

  int slot = 0, parity = 0;
  for (int round = first; round < last; round += groups, parity ^= 1) {
    const int unit = round + group;
    float acc[kRows] = {};
    if (unit < last) {
      for (int c = part; c < chunks; c += a.warps_k) {
        wait_copies<kStages - 1>();
        uint4 w[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) w[r] = queue[(slot * kRows + r) * kWarpSize];
        float xs[8];
        unpack_8<T>(*reinterpret_cast<const uint4*>(x + c * kGemvChunk + lane * 8), xs);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float ws[8];
          unpack_8<T>(w[r], ws);
#pragma unroll
          for (int i = 0; i < 8; ++i) acc[r] = fmaf(ws[i], xs[i], acc[r]);
        }
        fetch(slot);
        slot = slot + 1 == kStages ? 0 : slot + 1;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) acc[r] = warp_sum(acc[r]);
    }
    if (a.warps_k > 1) {
      float* all = sums + parity * warps * kRows;
      if (lane == 0) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) all[warp * kRows + r] = acc[r];
      }
      __syncthreads();  // one is enough: the next round writes the other half of `sums`
      if (part == 0 && unit < last) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float sum = 0;
          for (int w = 0; w < a.warps_k; ++w) sum += all[(warp + w) * kRows + r];
          acc[r] = sum;
        }
      }
    }
    if (part == 0 && unit < last) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const int j = unit * kOutputs + o;
        if (lane == o && j < a.outputs) {
          float values[kSlices];
#pragma unroll
          for (int s = 0; s < kSlices; ++s) values[s] = acc[o * kSlices + s];
          add_bias<T>(a, j, values);
          epilogue.template store<T>(a, 0, j, values);
        }
      }
    }
  }
}

template <class T, int kOutputs, int kStages, class Epilogue>
void launch_gemv(SmallLinearArgs a, const Epilogue& epilogue, const SmallLinearLaunch& l, Stream stream) {
  const int chunks = (a.cols + kGemvChunk - 1) / kGemvChunk;
  a.units = (a.outputs + kOutputs - 1) / kOutputs;
  a.warps_k = l.warps_k;
  while (a.warps_k > chunks) a.warps_k /= 2;
  a.l2_bytes = l.l2_bytes;
  const LaunchConfig config{dim3(static_cast<unsigned>(l.blocks < a.units ? l.blocks : a.units)),
                            dim3(static_cast<unsigned>(l.warps * kWarpSize)), stream,
                            gemv_shared<kOutputs * Epilogue::kSlices, kStages>(a.cols, l.warps), l.overlap};
  launch(config, gemv_kernel<T, kOutputs, kStages, Epilogue>, a, epilogue);
}

}  // namespace autodeploy::cuda
