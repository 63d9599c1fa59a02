// Kernels of `linear` for few rows: bound by the memory that holds the weights, so all they do is to keep
// many bytes of it under way. Templates; linear_small.cu instantiates those that are used.
//
// Both kernels have one block, or a few, for each multiprocessor; a block owns a contiguous range of units (a
// unit is some outputs of every row), its warps share the inner dimension or the units. Each lane streams its
// own 16-byte pieces of the weights through a queue of kStages steps in shared memory that only it reads, so
// that streaming needs no barrier, no registers and no pause between units. The queue is filled before
// wait_for_previous(), and more of the block's weights are brought to the second-level cache: parameters may
// be read while earlier kernels still run, which hides the start of this kernel behind their ends.
//
// Every sum is taken in an order that depends on the launch's shape alone.
#pragma once

#include "kernels/cuda/mma.h"
#include "kernels/cuda/prefetch.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

constexpr int kMaxSlices = 4;
constexpr int kMaxLinearWarps = 16;

constexpr int kMaxNormRows = 4;

// x is normed (rms_norm) before it is multiplied, and a residual added to it before that: by every block for
// itself, into its shared memory, while its first weights are on their way. That repeats the norm as often as
// there are blocks, but for a few rows it costs less than a kernel of its own and the gap between kernels;
// each block stores its share of the sum and of the normed rows where they are asked for. They must not lie
// in x's or the residual's memory, which other blocks may still read.
struct NormPrologue {
  bool on = false, weight_f32 = false;
  DeviceRows residual, sum, normed;  // data is nullptr where there is none
  const void* weight = nullptr;      // or nullptr; 16-byte aligned
  float eps = 0, offset = 0;         // y = xhat * (offset + weight)
};

// Output j of a row is made of the products with kSlices rows of the weights, slice_offset[s] + j *
// slice_stride; a plain linear has one slice with offset 0 and stride 1.
struct SmallLinearArgs {
  DeviceRows x, y;
  const void *weight = nullptr, *bias = nullptr;  // weight [., cols], 16-byte aligned
  int32_t first_row = 0, rows = 0;                // which rows of x and y
  int32_t cols = 0;                               // inner dimension: a multiple of 8
  int32_t outputs = 0;                            // of each row of y
  int32_t units = 0;
  int32_t warps_k = 1;   // warps that share the inner dimension of a unit (gemv_kernel)
  int32_t l2_bytes = 0;  // of each slice of a block's weights that are brought to the second-level cache
  int32_t slice_offset[kMaxSlices] = {}, slice_stride = 1;
  bool bias_f32 = false, x_aligned = false;  // rows of x (and of what `norm` has) begin at 16-byte boundaries
  NormPrologue norm;                         // at most kMaxNormRows rows; mma_kernel: staged
};

// What becomes of the products: `values` are those of output j of row m, bias added, not rounded.
struct StoreLinear {
  static constexpr int kSlices = 1;
  template <class T>
  AD_DEVICE void store(const SmallLinearArgs& a, int m, int j, const float (&values)[1]) const {
    a.y.row<T>(a.first_row + m)[j] = from_float<T>(values[0]);
  }
};

// ---- parts ----

// Where the share of block `i` of `blocks` begins; shares differ by one at most.
AD_DEVICE int share_begin(int items, unsigned i, unsigned blocks) {
  return static_cast<int>(static_cast<int64_t>(items) * i / blocks);
}

template <class T>
AD_DEVICE void unpack_8(const uint4& bits, float (&x)[8]) {
  const uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (std::is_same_v<T, bf16>) {
      x[2 * i] = __uint_as_float(pairs[i] << 16);
      x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    } else {
      __half2 pair;
      memcpy(static_cast<void*>(&pair), &pairs[i], sizeof(pair));
      const float2 both = __half22float2(pair);
      x[2 * i] = both.x;
      x[2 * i + 1] = both.y;
    }
  }
}

// 8 elements of a row of x from column `col` on, zeros beyond its end.
template <class T>
AD_DEVICE uint4 load_8(const T* row, int col, int cols, bool aligned) {
  uint4 bits = {0, 0, 0, 0};
  if (col >= cols) return bits;
  if (aligned) return *reinterpret_cast<const uint4*>(row + col);
  T some[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) some[i] = row[col + i];
  memcpy(static_cast<void*>(&bits), some, sizeof(bits));
  return bits;
}

// Copies x's rows to shared memory, `pitch` elements apart, with zeros from `cols` up to `padded`.
template <class T>
AD_DEVICE void stage_rows(T* shared, const SmallLinearArgs& a, int padded, int pitch) {
  const int per_row = padded / 8;
  for (int i = static_cast<int>(threadIdx.x); i < a.rows * per_row; i += static_cast<int>(blockDim.x)) {
    const int m = i / per_row, col = i % per_row * 8;
    *reinterpret_cast<uint4*>(shared + m * pitch + col) =
        load_8(a.x.row<const T>(a.first_row + m), col, a.cols, a.x_aligned);
  }
}

template <class T>
AD_DEVICE uint4 pack_8(const float (&x)[8]) {
  T some[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) some[i] = from_float<T>(x[i]);
  uint4 bits;
  memcpy(static_cast<void*>(&bits), some, sizeof(bits));
  return bits;
}

// 8 factors of a norm's weight: offset + weight, from what load_norm_weight() gave.
struct NormWeight {
  uint4 low, high;  // f32 takes both
};
template <class T>
AD_DEVICE NormWeight load_norm_weight(const SmallLinearArgs& a, int col) {
  NormWeight w = {};
  if (!a.norm.weight || col >= a.cols) return w;
  if (a.norm.weight_f32) {
    const uint4* at = reinterpret_cast<const uint4*>(static_cast<const float*>(a.norm.weight) + col);
    w.low = at[0], w.high = at[1];
  } else {
    w.low = *reinterpret_cast<const uint4*>(static_cast<const T*>(a.norm.weight) + col);
  }
  return w;
}
template <class T>
AD_DEVICE void norm_factors(const SmallLinearArgs& a, const NormWeight& w, float (&factor)[8]) {
  if (!a.norm.weight) {
#pragma unroll
    for (int i = 0; i < 8; ++i) factor[i] = 1.0f;
    return;
  }
  if (a.norm.weight_f32) {
    const uint32_t bits[8] = {w.low.x, w.low.y, w.low.z, w.low.w, w.high.x, w.high.y, w.high.z, w.high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) factor[i] = __uint_as_float(bits[i]);
  } else {
    unpack_8<T>(w.low, factor);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) factor[i] += a.norm.offset;
}

// A thread's first two pieces of the norm's weight: to be loaded before all else, since they would come
// behind whatever was asked for before.
struct HeldNorm {
  NormWeight first[2];
};
template <class T>
AD_DEVICE HeldNorm hold_norm_weight(const SmallLinearArgs& a) {
  HeldNorm held = {};
  if (a.norm.on) {
#pragma unroll
    for (int u = 0; u < 2; ++u)
      held.first[u] = load_norm_weight<T>(a, static_cast<int>(threadIdx.x + u * blockDim.x) * 8);
  }
  return held;
}

// stage_rows() with the norm. `partial` has kMaxNormRows floats for each warp. A thread takes two pieces of 8
// elements at a time, so that their loads overlap.
template <class T>
AD_DEVICE void norm_rows(T* shared, float* partial, const SmallLinearArgs& a, int padded, int pitch,
                         const HeldNorm& held) {
  const NormPrologue& n = a.norm;
  const int pieces = padded / 8, threads = static_cast<int>(blockDim.x),
            first = static_cast<int>(threadIdx.x);
  const int lane = first % kWarpSize, warp = first / kWarpSize;
  const auto mine_to_store = [&](int piece) {
    return static_cast<unsigned>(piece) % gridDim.x == blockIdx.x && piece * 8 < a.cols;
  };
  float squares[kMaxNormRows] = {};
#pragma unroll
  for (int m = 0; m < kMaxNormRows; ++m) {
    if (m >= a.rows) break;
    const T* x_row = a.x.row<const T>(a.first_row + m);
    const T* r_row = n.residual.data ? n.residual.row<const T>(a.first_row + m) : nullptr;
    T* sum_row = n.sum.data ? n.sum.row<T>(a.first_row + m) : nullptr;
    for (int piece = first; piece < pieces; piece += 2 * threads) {
      uint4 bits[2], residual[2] = {};
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int col = (piece + u * threads) * 8;
        bits[u] = load_8(x_row, col, a.cols, a.x_aligned);
        if (r_row) residual[u] = load_8(r_row, col, a.cols, a.x_aligned);
      }
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const int mine = piece + u * threads;
        if (mine >= pieces) break;
        float x[8];
        unpack_8<T>(bits[u], x);
        if (r_row) {
          float r[8];
          unpack_8<T>(residual[u], r);
#pragma unroll
          for (int i = 0; i < 8; ++i) x[i] += r[i];
          bits[u] = pack_8<T>(x);
          unpack_8<T>(bits[u], x);  // the rounded sum is what is normed
          if (sum_row && mine_to_store(mine)) *reinterpret_cast<uint4*>(sum_row + mine * 8) = bits[u];
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) squares[m] = fmaf(x[i], x[i], squares[m]);
        *reinterpret_cast<uint4*>(shared + m * pitch + mine * 8) = bits[u];
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kMaxNormRows; ++m) {
    if (m >= a.rows) break;
    squares[m] = warp_sum(squares[m]);
    if (lane == 0) partial[warp * kMaxNormRows + m] = squares[m];
  }
  __syncthreads();
  float scale[kMaxNormRows];
#pragma unroll
  for (int m = 0; m < kMaxNormRows; ++m) {
    if (m >= a.rows) break;
    float sum = 0;
#pragma unroll 8
    for (int w = 0; w < threads / kWarpSize; ++w) sum += partial[w * kMaxNormRows + m];
    scale[m] = 1.0f / sqrtf(sum / static_cast<float>(a.cols) + n.eps);
  }
  // Each thread goes over what it wrote.
  const auto scale_piece = [&](int piece, const NormWeight& w) {
    float factor[8];
    norm_factors<T>(a, w, factor);
#pragma unroll
    for (int m = 0; m < kMaxNormRows; ++m) {
      if (m >= a.rows) break;
      uint4* at = reinterpret_cast<uint4*>(shared + m * pitch + piece * 8);
      float x[8];
      unpack_8<T>(*at, x);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = x[i] * scale[m] * factor[i];
      *at = pack_8<T>(x);
      if (n.normed.data && mine_to_store(piece))
        *reinterpret_cast<uint4*>(n.normed.row<T>(a.first_row + m) + piece * 8) = *at;
    }
  };
#pragma unroll
  for (int u = 0; u < 2; ++u) {
    if (first + u * threads < pieces) scale_piece(first + u * threads, held.first[u]);
  }
  for (int piece = first + 2 * threads; piece < pieces; piece += threads)
    scale_piece(piece, load_norm_weight<T>(a, piece * 8));
}

AD_DEVICE float bias_of(const SmallLinearArgs& a, int row, TypeTag<bf16>) {
  return a.bias_f32 ? static_cast<const float*>(a.bias)[row]
                    : to_float(static_cast<const bf16*>(a.bias)[row]);
}
AD_DEVICE float bias_of(const SmallLinearArgs& a, int row, TypeTag<f16>) {
  return a.bias_f32 ? static_cast<const float*>(a.bias)[row] : to_float(static_cast<const f16*>(a.bias)[row]);
}
template <class T, int kSlices>
AD_DEVICE void add_bias(const SmallLinearArgs& a, int j, float (&values)[kSlices]) {
  if (!a.bias) return;
#pragma unroll
  for (int s = 0; s < kSlices; ++s)
    values[s] += bias_of(a, a.slice_offset[s] + j * a.slice_stride, TypeTag<T>{});
}

// Asks for l2_bytes of the weights of the outputs [begin, end), from `skip` bytes on, of each slice; a warp
// takes its part of it.
template <class T, int kSlices>
AD_DEVICE void prefetch_weights(const SmallLinearArgs& a, int begin, int end, int64_t skip) {
  if (a.l2_bytes <= 0 || threadIdx.x % kWarpSize != 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize,
            warps = static_cast<int>(blockDim.x) / kWarpSize;
  const int64_t row_bytes = static_cast<int64_t>(a.cols) * static_cast<int64_t>(sizeof(T));
  const int64_t bytes = (end - begin) * row_bytes * a.slice_stride;
  const int64_t part = (a.l2_bytes / warps + 15) / 16 * 16;
  const int64_t from = skip + warp * part;
  if (from >= bytes) return;
#pragma unroll
  for (int s = 0; s < kSlices; ++s) {
    const auto* weights = static_cast<const uint8_t*>(a.weight) +
                          (a.slice_offset[s] + static_cast<int64_t>(begin) * a.slice_stride) * row_bytes;
    // The last row of a slice that has a stride ends before the range does.
    const int64_t limit = bytes - (a.slice_stride - 1) * row_bytes;
    const int64_t size = from + part < limit ? part : limit - from;
    if (size > 0) prefetch_l2(weights + from, static_cast<uint32_t>(size));
  }
}

// ---- one row: dot products in float32 ----

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

// ---- up to 8 * kRowGroups rows: tensor cores ----

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

// ---- launching ----

// How a launch is cut up; what suits a shape and a device is for the caller to say.
struct SmallLinearLaunch {
  int warps = 8;    // of a block
  int warps_k = 1;  // gemv_kernel
  int blocks = 0;   // of the grid, at most one for each unit
  int l2_bytes = 0;
  bool overlap = true;
};

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
