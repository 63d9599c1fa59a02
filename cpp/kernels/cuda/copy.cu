// copy: a view made contiguous. cat: views joined along a dim.
#include "kernels/cuda/copy.h"

#include <algorithm>
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
AD_DEVICE void copy_block(const CopyPlan& p, int64_t block) {
  const int64_t first = block * (kThreads * kPer) + threadIdx.x;
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

template <class T>
__global__ void __launch_bounds__(kThreads) copy_kernel(CopyPlan p) {
  wait_for_previous();
  let_next_start();
  copy_block<T>(p, blockIdx.x);
}

// Several copies at once.
struct CopyParts {
  static constexpr int kMost = 8;
  int count = 0;
  unsigned blocks = 0, first_block[kMost] = {};
  CopyPlan plan[kMost];
};

template <class T>
__global__ void __launch_bounds__(kThreads) copy_parts_kernel(CopyParts parts) {
  wait_for_previous();
  let_next_start();
  int part = 0;
  while (part + 1 < parts.count && blockIdx.x >= parts.first_block[part + 1]) ++part;
  copy_block<T>(parts.plan[part], blockIdx.x - parts.first_block[part]);
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

// How wide elements of `size` bytes may become: as alignment allows, at most 16 bytes.
int64_t widest(const CopyPlan& p, int64_t size) {
  const int last = p.ndim - 1;
  if (p.to[last] != 1 || p.from[last] != 1) return size;
  const auto fits = [&](int64_t bytes) {
    const auto address = reinterpret_cast<uintptr_t>(p.src) | reinterpret_cast<uintptr_t>(p.dst);
    bool whole = address % static_cast<uintptr_t>(bytes) == 0 && p.shape[last] * size % bytes == 0;
    for (int d = 0; d < last; ++d)
      whole = whole && p.to[d] * size % bytes == 0 && p.from[d] * size % bytes == 0;
    return whole;
  };
  int64_t bytes = 16;
  while (bytes > size && !fits(bytes)) bytes /= 2;
  return bytes;
}
void widen(CopyPlan* p, int64_t joined) {
  const int last = p->ndim - 1;
  p->shape[last] /= joined;
  p->count /= joined;
  for (int d = 0; d < last; ++d) p->to[d] /= joined, p->from[d] /= joined;
}

// f(TypeTag) of something so wide.
template <class F>
void dispatch_bytes(int64_t bytes, F&& f) {
  switch (bytes) {
    case 16:
      return f(TypeTag<Pack<uint32_t, 4>>{});
    case 8:
      return f(TypeTag<uint64_t>{});
    case 4:
      return f(TypeTag<uint32_t>{});
    case 2:
      return f(TypeTag<uint16_t>{});
    default:
      return f(TypeTag<uint8_t>{});
  }
}

// The dim that the source runs along where tiles are worth it, or -1.
int transposed_dim(const CopyPlan& p) {
  const int last = p.ndim - 1;
  int along = -1;
  for (int d = 0; d < last; ++d) {
    if (p.from[d] == 1) along = d;
  }
  const bool worth = p.from[last] > 1 && along >= 0 && p.shape[along] >= kTile / 2 &&
                     p.shape[last] >= kTile / 2 && (p.shape[last] + kTile - 1) / kTile <= 65535;
  return worth ? along : -1;
}

template <class T>
void launch_transpose(CopyPlan p, int along, Stream stream) {
  const int last = p.ndim - 1;
  std::swap(p.shape[along], p.shape[last - 1]);
  std::swap(p.to[along], p.to[last - 1]);
  std::swap(p.from[along], p.from[last - 1]);
  const int64_t row_tiles = blocks_for(p.shape[last - 1], kTile);
  const int64_t outer = p.count / (p.shape[last - 1] * p.shape[last]);
  const dim3 grid(static_cast<unsigned>(outer * row_tiles), blocks_for(p.shape[last], kTile));
  launch({grid, dim3(kTile * kTileRows), stream, 0, true}, transpose_kernel<T>, p, row_tiles);
}

void launch_parts(CopyParts* parts, int64_t size, Stream stream) {
  int64_t bytes = 16;
  for (int i = 0; i < parts->count; ++i) bytes = std::min(bytes, widest(parts->plan[i], size));
  for (int i = 0; i < parts->count; ++i) {
    widen(&parts->plan[i], bytes / size);
    parts->first_block[i] = parts->blocks;
    parts->blocks += blocks_for(parts->plan[i].count, kThreads * kPer);
  }
  const LaunchConfig config{dim3(parts->blocks), dim3(kThreads), stream, 0, true};
  dispatch_bytes(bytes,
                 [&](auto t) { launch(config, copy_parts_kernel<typename decltype(t)::type>, *parts); });
  parts->count = 0;
  parts->blocks = 0;
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
  const int64_t size = dtype_size(call.out[0].dtype);
  TensorView to = call.out[0];
  CopyParts parts;
  int64_t at = 0;
  for (const TensorView& in : call.in) {
    to.data = call.out[0].as<uint8_t>() + at * to.stride[dim] * size;
    to.shape[dim] = in.shape[dim];
    at += in.shape[dim];
    const CopyPlan plan = plan_copy(to, in);
    if (plan.count == 0) continue;
    if (transposed_dim(plan) >= 0) {
      copy_strided(to, in, stream_of(call));
      continue;
    }
    if (parts.count == CopyParts::kMost) launch_parts(&parts, size, stream_of(call));
    parts.plan[parts.count++] = plan;
  }
  launch_parts(&parts, size, stream_of(call));
}

}  // namespace

void copy_strided(const TensorView& dst, const TensorView& src, Stream stream) {
  CopyPlan p = plan_copy(dst, src);
  if (p.count == 0) return;
  const int64_t size = dtype_size(dst.dtype), bytes = widest(p, size);
  const int along = transposed_dim(p);
  widen(&p, bytes / size);
  dispatch_bytes(bytes, [&](auto t) {
    using T = typename decltype(t)::type;
    if (along >= 0)
      launch_transpose<T>(p, along, stream);
    else
      launch({dim3(blocks_for(p.count, kThreads * kPer)), dim3(kThreads), stream, 0, true}, copy_kernel<T>,
             p);
  });
}

std::unique_ptr<Kernel> make_copy(const KernelSpec& spec, std::string*) {
  check_copy(spec);
  return make_function_kernel("copy.plain", NoState{}, run_copy);
}

std::unique_ptr<Kernel> make_cat(const KernelSpec& spec, std::string*) {
  return make_function_kernel("cat.plain", CatState{check_cat(spec)}, run_cat);
}

}  // namespace autodeploy::cuda
