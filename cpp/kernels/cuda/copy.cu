// copy: a view made contiguous. cat: views joined along a dim.
#include "kernels/cuda/copy.h"

#include <utility>

#include "kernels/cuda/elements.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256, kPer = 4;  // elements of a thread
constexpr int kTile = 32, kTileRows = 8;

// Both sides as elements of one size with dims joined, sizes of 1 dropped, and the destination's smallest
// stride last.
struct CopyPlan {
  const void* src = nullptr;
  void* dst = nullptr;
  int64_t count = 0;
  int ndim = 0;
  int64_t shape[kMaxDims] = {}, to[kMaxDims] = {}, from[kMaxDims] = {};
};

AD_DEVICE void locate(const CopyPlan& p, int dims, int64_t index, int64_t* to, int64_t* from) {
  if (p.count <= INT32_MAX) {
    uint32_t rest = static_cast<uint32_t>(index);
    for (int d = dims; d-- > 1;) {
      const uint32_t n = static_cast<uint32_t>(p.shape[d]), above = rest / n, i = rest - above * n;
      *to += i * p.to[d];
      *from += i * p.from[d];
      rest = above;
    }
    index = rest;
  } else {
    for (int d = dims; d-- > 1;) {
      const int64_t i = index % p.shape[d];
      *to += i * p.to[d];
      *from += i * p.from[d];
      index /= p.shape[d];
    }
  }
  if (dims > 0) {
    *to += index * p.to[0];
    *from += index * p.from[0];
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) copy_kernel(CopyPlan p) {
  wait_for_previous();
  let_next_start();
  const int64_t first = int64_t{blockIdx.x} * (kThreads * kPer) + threadIdx.x;
  const T* src = static_cast<const T*>(p.src);
  T* dst = static_cast<T*>(p.dst);
#pragma unroll
  for (int v = 0; v < kPer; ++v) {
    const int64_t i = first + v * kThreads;
    if (i >= p.count) return;
    int64_t to = 0, from = 0;
    locate(p, p.ndim, i, &to, &from);
    dst[to] = src[from];
  }
}

// Where the source runs along the dim before the last: tiles through shared memory, so that both sides use
// whole lines of the cache.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows) transpose_kernel(CopyPlan p, int64_t row_tiles) {
  __shared__ T tile[kTile][kTile + 1];
  wait_for_previous();
  let_next_start();
  const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
  const int rows = p.ndim - 2, columns = p.ndim - 1;
  int64_t to = 0, from = 0;
  locate(p, rows, blockIdx.x / row_tiles, &to, &from);
  const int64_t row = blockIdx.x % row_tiles * kTile, column = int64_t{blockIdx.y} * kTile;
  const T* src = static_cast<const T*>(p.src) + from;
  T* dst = static_cast<T*>(p.dst) + to;
  for (int i = y; i < kTile; i += kTileRows) {
    if (row + x < p.shape[rows] && column + i < p.shape[columns])
      tile[i][x] = src[(row + x) * p.from[rows] + (column + i) * p.from[columns]];
  }
  __syncthreads();
  for (int i = y; i < kTile; i += kTileRows) {
    if (row + i < p.shape[rows] && column + x < p.shape[columns])
      dst[(row + i) * p.to[rows] + (column + x) * p.to[columns]] = tile[x][i];
  }
}

CopyPlan plan_copy(const TensorView& dst, const TensorView& src) {
  int order[kMaxDims], count = 0;
  for (int d = 0; d < dst.ndim; ++d) {
    if (dst.shape[static_cast<size_t>(d)] == 1) continue;
    // By descending stride of the destination; insertion keeps equal ones in order.
    int at = count++;
    for (; at > 0 && dst.stride[static_cast<size_t>(order[at - 1])] < dst.stride[static_cast<size_t>(d)];
         --at)
      order[at] = order[at - 1];
    order[at] = d;
  }
  CopyPlan p;
  p.src = src.data, p.dst = dst.data;
  p.count = dst.numel();
  for (int i = 0; i < count; ++i) {
    const size_t d = static_cast<size_t>(order[i]);
    const int64_t size = dst.shape[d], to = dst.stride[d], from = src.stride[d];
    const int last = p.ndim - 1;
    if (p.ndim > 0 && p.to[last] == to * size && p.from[last] == from * size) {
      p.shape[last] *= size, p.to[last] = to, p.from[last] = from;
    } else {
      p.shape[p.ndim] = size, p.to[p.ndim] = to, p.from[p.ndim++] = from;
    }
  }
  if (p.ndim == 0) p.ndim = 1, p.shape[0] = 1;
  return p;
}

// Makes the elements as wide as alignment allows, at most 16 bytes; returns their size.
int64_t widen(CopyPlan* p, int64_t size) {
  const int last = p->ndim - 1;
  if (p->to[last] != 1 || p->from[last] != 1) return size;
  const auto fits = [&](int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(p->src) | reinterpret_cast<uintptr_t>(p->dst);
    bool whole = address % static_cast<uintptr_t>(bytes) == 0 && p->shape[last] * size % bytes == 0;
    for (int d = 0; d < last; ++d)
      whole = whole && p->to[d] * size % bytes == 0 && p->from[d] * size % bytes == 0;
    return whole;
  };
  int64_t bytes = 16;
  while (bytes > size && !fits(bytes)) bytes /= 2;
  const int64_t joined = bytes / size;
  p->shape[last] /= joined;
  p->count /= joined;
  for (int d = 0; d < last; ++d) p->to[d] /= joined, p->from[d] /= joined;
  return bytes;
}

template <class T>
void launch_copy(CopyPlan p, Stream stream) {
  const int last = p.ndim - 1;
  int along = -1;  // the dim that the source runs along
  for (int d = 0; d < last; ++d) {
    if (p.from[d] == 1) along = d;
  }
  if (p.from[last] > 1 && along >= 0 && p.shape[along] >= kTile / 2 && p.shape[last] >= kTile / 2) {
    std::swap(p.shape[along], p.shape[last - 1]);
    std::swap(p.to[along], p.to[last - 1]);
    std::swap(p.from[along], p.from[last - 1]);
    const int64_t row_tiles = blocks_for(p.shape[last - 1], kTile),
                  column_tiles = blocks_for(p.shape[last], kTile);
    const int64_t outer = p.count / (p.shape[last - 1] * p.shape[last]);
    if (column_tiles <= 65535) {
      const dim3 grid(static_cast<unsigned>(outer * row_tiles), static_cast<unsigned>(column_tiles));
      launch({grid, dim3(kTile * kTileRows), stream, 0, true}, transpose_kernel<T>, p, row_tiles);
      return;
    }
  }
  launch({dim3(blocks_for(p.count, kThreads * kPer)), dim3(kThreads), stream, 0, true}, copy_kernel<T>, p);
}

struct CatState {
  int64_t dim = 0;
};
struct NoState {};

void run_copy(const NoState&, const KernelCall& call) {
  copy_strided(call.out[0], call.in[0], stream_of(call));
}

void run_cat(const CatState& s, const KernelCall& call) {
  const size_t dim = static_cast<size_t>(s.dim);
  TensorView part = call.out[0];
  int64_t at = 0;
  for (const TensorView& in : call.in) {
    part.data = call.out[0].as<uint8_t>() + at * part.stride[dim] * dtype_size(part.dtype);
    part.shape[dim] = in.shape[dim];
    copy_strided(part, in, stream_of(call));
    at += in.shape[dim];
  }
}

}  // namespace

void copy_strided(const TensorView& dst, const TensorView& src, Stream stream) {
  CopyPlan p = plan_copy(dst, src);
  if (p.count == 0) return;
  switch (widen(&p, dtype_size(dst.dtype))) {
    case 16:
      return launch_copy<Pack<uint32_t, 4>>(p, stream);
    case 8:
      return launch_copy<uint64_t>(p, stream);
    case 4:
      return launch_copy<uint32_t>(p, stream);
    case 2:
      return launch_copy<uint16_t>(p, stream);
    default:
      return launch_copy<uint8_t>(p, stream);
  }
}

std::unique_ptr<Kernel> make_copy(const KernelSpec& spec, std::string*) {
  check_copy(spec);
  return make_function_kernel("copy.plain", NoState{}, run_copy);
}

std::unique_ptr<Kernel> make_cat(const KernelSpec& spec, std::string*) {
  return make_function_kernel("cat.plain", CatState{check_cat(spec)}, run_cat);
}

}  // namespace autodeploy::cuda
