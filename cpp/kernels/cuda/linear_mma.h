// linear of up to 16 rows on tensor cores, as linear_small_kernel.h says.
#pragma once

#include "kernels/cuda/linear_small_kernel.h"

namespace autodeploy::cuda {

constexpr int kMmaChunk = 64;  // elements of a row of weights that a warp reads in a step: 128 bytes
// Elements between rows of x in shared memory: an odd multiple of 64 bytes, so that the 8 lanes that read
// together touch all banks.
inline int mma_pitch(int cols) { return (cols + kMmaChunk - 1) / kMmaChunk * kMmaChunk + 32; }

template <int kOctets, int kRowGroups, int kStages, bool kStaged>
size_t mma_shared(int cols, int rows, int warps) {
  constexpr int kTiles = (kRowGroups + 1) / 2;
  return (kStaged ? static_cast<size_t>(rows) * static_cast<size_t>(mma_pitch(cols)) * 2 : 0) +
         static_cast<size_t>(warps) * kStages * kOctets * 2 * kWarpSize * 16 +
         2 * static_cast<size_t>(warps) * kOctets * kTiles * kWarpSize * 16;
}

// A unit is kOctets octets of rows of the weights: 8 outputs from each kSlices of them. All warps share it,
// chunk by chunk of the inner dimension. The weights are b of mma_16x8x16(), x is a; its inner dimension may
// be in any order that both share: a lane's 16 bytes are k 8t .. 8t+7 of a row of weights, and of a row of x,
// which two products take in halves. x lies in shared memory (kStaged), or is read where it is, through the
// first-level cache.
template <class T, int kOctets, int kRowGroups, int kStages, bool kStaged, class Epilogue>
__global__ void __launch_bounds__(kMaxLinearWarps* kWarpSize, 1)
    mma_kernel(SmallLinearArgs a, Epilogue epilogue) {
  constexpr int kSlices = Epilogue::kSlices, kOutputs = kOctets / kSlices * 8, kTiles = (kRowGroups + 1) / 2;
  static_assert(kOctets % kSlices == 0);
  AD_DYNAMIC_SHARED(uint8_t, shared);
  __shared__ float norm_partial[kMaxLinearWarps * kMaxNormRows];
  let_next_start();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int g = lane / 4, t = lane % 4;
  const int chunks = (a.cols + kMmaChunk - 1) / kMmaChunk, pitch = chunks * kMmaChunk + 32;
  T* x = reinterpret_cast<T*>(shared);
  uint4* queues =
      reinterpret_cast<uint4*>(shared + (kStaged ? static_cast<size_t>(a.rows) * pitch * sizeof(T) : 0));
  uint4* queue = queues + warp * kStages * kOctets * 2 * kWarpSize + lane;
  float* sums = reinterpret_cast<float*>(queues + warps * kStages * kOctets * 2 * kWarpSize);

  const int first = share_begin(a.units, blockIdx.x, gridDim.x),
            last = share_begin(a.units, blockIdx.x + 1, gridDim.x);

  int next_unit = first, next_chunk = warp;
  const T* next_row[kOctets];
  const auto find_rows = [&] {
#pragma unroll
    for (int q = 0; q < kOctets; ++q) {
      const int j = min(next_unit * kOutputs + q / kSlices * 8 + g, a.outputs - 1);
      next_row[q] = static_cast<const T*>(a.weight) +
                    static_cast<int64_t>(a.slice_offset[q % kSlices] + j * a.slice_stride) * a.cols;
    }
  };
  const auto fetch = [&](int slot) {
    if (next_unit < last && next_chunk < chunks) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int col = next_chunk * kMmaChunk + h * 32 + t * 8;
        const bool valid = col < a.cols;
#pragma unroll
        for (int q = 0; q < kOctets; ++q)
          copy_async_16(queue + ((slot * kOctets + q) * 2 + h) * kWarpSize, next_row[q] + (valid ? col : 0),
                        valid);
      }
      next_chunk += warps;
      if (next_chunk >= chunks) {
        next_chunk = warp;
        ++next_unit;
        find_rows();
      }
    }
    commit_copies();
  };
  const HeldNorm held = hold_norm_weight<T>(a);
  find_rows();
#pragma unroll 1
  for (int s = 0; s < kStages; ++s) fetch(s);
  prefetch_weights<T, kSlices>(a, min(first * kOutputs, a.outputs), min(last * kOutputs, a.outputs),
                               int64_t{kOutputs} * a.cols * static_cast<int64_t>(sizeof(T)));

  wait_for_previous();
  if constexpr (kStaged) {
    if (a.norm.on)
      norm_rows(x, norm_partial, a, chunks * kMmaChunk, pitch, held);
    else
      stage_rows(x, a, chunks * kMmaChunk, pitch);
    __syncthreads();
  }
  // Rows of x beyond the last repeat it; nothing is made of their results.
  const T* x_row[kRowGroups];
#pragma unroll
  for (int b = 0; b < kRowGroups; ++b) {
    const int m = min(b * 8 + g, a.rows - 1);
    x_row[b] = kStaged ? x + m * pitch : a.x.row<const T>(a.first_row + m);
  }

  int slot = 0, parity = 0;
  for (int unit = first; unit < last; ++unit, parity ^= 1) {
    float acc[kOctets][kTiles][4] = {};
    for (int c = warp; c < chunks; c += warps) {
      wait_copies<kStages - 1>();
      uint4 w[2][kOctets];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int q = 0; q < kOctets; ++q) w[h][q] = queue[((slot * kOctets + q) * 2 + h) * kWarpSize];
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int col = c * kMmaChunk + h * 32 + t * 8;
        uint4 xs[kTiles * 2];
#pragma unroll
        for (int b = 0; b < kTiles * 2; ++b) {
          if (b >= kRowGroups)
            xs[b] = {0, 0, 0, 0};
          else if (kStaged)
            xs[b] = *reinterpret_cast<const uint4*>(x_row[b] + col);
          else
            xs[b] = load_8(x_row[b], col, a.cols, a.x_aligned);
        }
#pragma unroll
        for (int q = 0; q < kOctets; ++q) {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) {
            const uint4 &low = xs[2 * tile], &high = xs[2 * tile + 1];
            mma_16x8x16<T>(acc[q][tile], {low.x, high.x, low.y, high.y}, {w[h][q].x, w[h][q].y});
            mma_16x8x16<T>(acc[q][tile], {low.z, high.z, low.w, high.w}, {w[h][q].z, w[h][q].w});
          }
        }
      }
      fetch(slot);
      slot = slot + 1 == kStages ? 0 : slot + 1;
    }
    constexpr int kSums = kOctets * kTiles * kWarpSize * 4;  // of a warp
    float* all = sums + parity * warps * kSums;
#pragma unroll
    for (int q = 0; q < kOctets; ++q) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        *reinterpret_cast<float4*>(all + warp * kSums + ((q * kTiles + tile) * kWarpSize + lane) * 4) =
            float4{acc[q][tile][0], acc[q][tile][1], acc[q][tile][2], acc[q][tile][3]};
    }
    __syncthreads();  // one is enough: the next unit writes the other half of `sums`
    for (int e = static_cast<int>(threadIdx.x); e < kSums / kSlices; e += static_cast<int>(blockDim.x)) {
      const int i = e % 4, of = e / 4 % kWarpSize, tile = e / (4 * kWarpSize) % kTiles,
                octet = e / (4 * kWarpSize * kTiles);
      const int m = tile * 16 + of / 4 + i / 2 * 8, j = unit * kOutputs + octet * 8 + of % 4 * 2 + i % 2;
      if (m >= a.rows || j >= a.outputs) continue;
      float values[kSlices];
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
        const float* from = all + (((octet * kSlices + s) * kTiles + tile) * kWarpSize + of) * 4 + i;
        float sum = 0;
        for (int w = 0; w < warps; ++w) sum += from[w * kSums];
        values[s] = sum;
      }
      add_bias<T>(a, j, values);
      epilogue.template store<T>(a, m, j, values);
    }
  }
}

template <class T, int kOctets, int kRowGroups, int kStages, bool kStaged, class Epilogue>
void launch_mma(SmallLinearArgs a, const Epilogue& epilogue, const SmallLinearLaunch& l, Stream stream) {
  constexpr int kOutputs = kOctets / Epilogue::kSlices * 8;
  a.units = (a.outputs + kOutputs - 1) / kOutputs;
  a.l2_bytes = l.l2_bytes;
  const LaunchConfig config{dim3(static_cast<unsigned>(l.blocks < a.units ? l.blocks : a.units)),
                            dim3(static_cast<unsigned>(l.warps * kWarpSize)), stream,
                            mma_shared<kOctets, kRowGroups, kStages, kStaged>(a.cols, a.rows, l.warps),
                            l.overlap};
  launch(config, mma_kernel<T, kOctets, kRowGroups, kStages, kStaged, Epilogue>, a, epilogue);
}

}  // namespace autodeploy::cuda
