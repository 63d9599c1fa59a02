// Kernels of `linear` for few rows: bound by the memory that holds the weights, so all they do is to keep
// many bytes of it under way. What they share; the kernels are in linear_gemv.h (one row) and linear_mma.h
// (more). Templates; linear_small*.cu instantiate those that are used.
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
  AD_DEVICE T value(const float (&values)[1]) const {
    return from_float<T>(values[0]);
  }
  template <class T>
  AD_DEVICE void store(const SmallLinearArgs& a, int m, int j, const float (&values)[1]) const {
    a.y.row<T>(a.first_row + m)[j] = value<T>(values);
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

// ---- launching ----

// How a launch is cut up; what suits a shape and a device is for the caller to say.
struct SmallLinearLaunch {
  int warps = 8;    // of a block
  int warps_k = 1;  // gemv_kernel
  int blocks = 0;   // of the grid, at most one for each unit
  int l2_bytes = 0;
  bool overlap = true;
};

}  // namespace autodeploy::cuda
