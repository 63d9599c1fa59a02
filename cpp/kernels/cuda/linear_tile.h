// A tile of a product x w^T in shared memory, for kernels that need no tensor cores: float32 sums, one chain
// of multiply-adds over the columns for each result, so results do not depend on the tile.
#pragma once

#include "kernels/cuda/elements.h"

namespace autodeploy::cuda {

// A matrix of rows in memory whose elements are contiguous. T is its dtype, or AnyFloat; `packs`: four
// neighbours may be loaded at once.
struct LinearMatrix {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  bool packs = false;
};

// Four elements of a row that begins at `row`, from column k on; zeros at and beyond `depth`.
template <class T>
AD_DEVICE void load_four(const LinearMatrix& m, int64_t row, int64_t k, int64_t depth, float (&out)[4]) {
  if constexpr (!std::is_same_v<T, AnyFloat>) {
    if (m.packs) {  // then depth is a multiple of four
      if (k < depth) {
        const auto p = *reinterpret_cast<const Pack<T, 4>*>(static_cast<const T*>(m.data) + row + k);
#pragma unroll
        for (int v = 0; v < 4; ++v) out[v] = to_float(p.x[v]);
      } else {
#pragma unroll
        for (int v = 0; v < 4; ++v) out[v] = 0.0f;
      }
      return;
    }
  }
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    out[v] = k + v < depth ? load_common<T>(m.data, m.dtype, row + k + v) : 0.0f;
  }
}

// kRows x kCols results by kRows / kTm * kCols / kTn threads, kTm x kTn each.
template <class X, class W, int kRows, int kCols, int kDepth, int kTm, int kTn>
class LinearTile {
 public:
  static constexpr int kRowsOfTile = kRows, kColsOfTile = kCols;
  static constexpr int kResultRows = kTm, kResultCols = kTn;  // of a thread
  static constexpr int kThreads = kRows / kTm * (kCols / kTn);
  struct Shared {
    float x[kDepth][kRows + 4];
    float w[kDepth][kCols + 4];
    int64_t x_row[kRows];  // where rows begin in x; -1 for none, which counts as zeros. Filled by the caller.
  };

  AD_DEVICE static int first_row() { return static_cast<int>(threadIdx.x) / (kCols / kTn) * kTm; }
  AD_DEVICE static int first_col() { return static_cast<int>(threadIdx.x) % (kCols / kTn) * kTn; }

  // The thread's results: rows first_row() and on, columns first_col() and on. w's row c begins at
  // w_begin + c * w_stride, and there are `cols` of them. All threads of the block call it.
  AD_DEVICE static void multiply(Shared& s, const LinearMatrix& x, const LinearMatrix& w, int64_t w_begin,
                                 int64_t w_stride, int64_t cols, int64_t depth, float (&acc)[kTm][kTn]) {
#pragma unroll
    for (int i = 0; i < kTm; ++i) {
#pragma unroll
      for (int j = 0; j < kTn; ++j) acc[i][j] = 0.0f;
    }
    __syncthreads();  // x_row
    float next_x[kXFours][4], next_w[kWFours][4];
    load(s, x, w, w_begin, w_stride, cols, 0, depth, next_x, next_w);
    for (int64_t k = 0; k < depth; k += kDepth) {
      store(next_x, &s.x[0][0], kRows, kRows + 4);
      store(next_w, &s.w[0][0], kCols, kCols + 4);
      __syncthreads();
      if (k + kDepth < depth) load(s, x, w, w_begin, w_stride, cols, k + kDepth, depth, next_x, next_w);
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        float a[kTm], b[kTn];
#pragma unroll
        for (int i = 0; i < kTm; ++i) a[i] = s.x[d][first_row() + i];
#pragma unroll
        for (int j = 0; j < kTn; ++j) b[j] = s.w[d][first_col() + j];
#pragma unroll
        for (int i = 0; i < kTm; ++i) {
#pragma unroll
          for (int j = 0; j < kTn; ++j) acc[i][j] = multiply_add(a[i], b[j], acc[i][j]);
        }
      }
      __syncthreads();
    }
  }

 private:
  static constexpr int kFours = kDepth / 4;  // of a row
  static constexpr int kXFours = (kRows * kFours + kThreads - 1) / kThreads,
                       kWFours = (kCols * kFours + kThreads - 1) / kThreads;

  AD_DEVICE static void load(const Shared& s, const LinearMatrix& x, const LinearMatrix& w, int64_t w_begin,
                             int64_t w_stride, int64_t cols, int64_t k, int64_t depth,
                             float (&out_x)[kXFours][4], float (&out_w)[kWFours][4]) {
#pragma unroll
    for (int n = 0; n < kXFours; ++n) {
      const int four = n * kThreads + static_cast<int>(threadIdx.x), r = four / kFours;
      const int64_t row = r < kRows ? s.x_row[r] : -1;
      load_four<X>(x, row, k + four % kFours * 4, row < 0 ? 0 : depth, out_x[n]);
    }
#pragma unroll
    for (int n = 0; n < kWFours; ++n) {
      const int four = n * kThreads + static_cast<int>(threadIdx.x), c = four / kFours;
      const bool inside = c < kCols && c < cols;
      load_four<W>(w, w_begin + c * w_stride, k + four % kFours * 4, inside ? depth : 0, out_w[n]);
    }
  }
  template <int kCount>
  AD_DEVICE static void store(const float (&from)[kCount][4], float* to, int lines, int pitch) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      const int four = n * kThreads + static_cast<int>(threadIdx.x), line = four / kFours;
      if (line >= lines) break;
#pragma unroll
      for (int v = 0; v < 4; ++v) to[(four % kFours * 4 + v) * pitch + line] = from[n][v];
    }
  }
};

// Tiles for many rows and for few.
template <class X, class W>
using LargeLinearTile = LinearTile<X, W, 64, 64, 16, 4, 4>;
template <class X, class W>
using SmallLinearTile = LinearTile<X, W, 16, 32, 32, 2, 2>;
constexpr int64_t kFewRows = 16;

// f(TypeTag<X>, TypeTag<W>): the dtype where both have the same, else AnyFloat.
template <class F>
void dispatch_linear(DType x, DType w, F&& f) {
  if (x == w)
    dispatch_act(x, [&](auto t) { f(t, t); });
  else
    f(TypeTag<AnyFloat>{}, TypeTag<AnyFloat>{});
}

}  // namespace autodeploy::cuda
