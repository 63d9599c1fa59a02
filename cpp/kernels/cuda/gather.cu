// gather, scatter and index_select along a dim. An index outside the dim reads 0 and writes nothing: data
// never leaves its tensor.
#include "kernels/cuda/elements.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256;

// Every view has y's shape; along the dim x has stride 0, and `x_stride` between the places that indices
// name.
struct GatherArgs {
  DeviceRows x, index, y;
  int64_t len = 0, x_stride = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads) gather_kernel(GatherArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= a.y.rows) return;
  const int64_t j = *a.index.row<const int64_t>(i);
  *a.y.row<T>(i) = j >= 0 && j < a.len ? a.x.row<const T>(i)[j * a.x_stride] : T{0};
}

// A block has kThreads places along the dim of one line; it passes over the line's indices and takes those
// that name its places, in order: so what several indices name is the same in every run.
struct ScatterArgs {
  DeviceLines x, index, src, y;
  int64_t blocks_per_line = 1;
};

template <class T, bool kAdd>
AD_DEVICE T scattered(T have, T v) {
  if constexpr (!kAdd)
    return v;
  else if constexpr (std::is_same_v<T, float>)
    return have + v;
  else if constexpr (std::is_same_v<T, uint8_t>)
    return have | v;
  else
    return static_cast<T>(static_cast<uint64_t>(have) + static_cast<uint64_t>(v));  // integers wrap
}

// T: float for all float dtypes, which are added in float32 and rounded once.
template <class T, bool kAdd>
__global__ void __launch_bounds__(kThreads) scatter_kernel(ScatterArgs a) {
  __shared__ int64_t wanted[kThreads];
  wait_for_previous();
  let_next_start();
  const int tid = static_cast<int>(threadIdx.x);
  const int64_t line = blockIdx.x / a.blocks_per_line;
  const int64_t place = blockIdx.x % a.blocks_per_line * kThreads + tid;
  const bool mine = place < a.y.len;
  T value{};
  if (mine) value = load_as<T>(a.x.rows.data, a.x.dtype, a.x.rows.offset(line) + place * a.x.stride);
  const int64_t index = a.index.rows.offset(line), src = a.src.rows.offset(line);
  for (int64_t first = 0; first < a.index.len; first += kThreads) {
    const int64_t n = a.index.len - first < kThreads ? a.index.len - first : kThreads;
    if (tid < n)
      wanted[tid] = static_cast<const int64_t*>(a.index.rows.data)[index + (first + tid) * a.index.stride];
    __syncthreads();
    for (int i = 0; i < n; ++i) {
      if (wanted[i] == place && mine)
        value = scattered<T, kAdd>(
            value, load_as<T>(a.src.rows.data, a.src.dtype, src + (first + i) * a.src.stride));
    }
    __syncthreads();
  }
  if (mine) store_as<T>(a.y.rows.data, a.y.dtype, a.y.rows.offset(line) + place * a.y.stride, value);
}

struct IndexState {
  int64_t dim = 0;
};

void launch_gather(const KernelCall& call, GatherArgs a) {
  a.y = DeviceRows(call.out[0], 0);
  const LaunchConfig config{dim3(blocks_for(a.y.rows, kThreads)), dim3(kThreads), stream_of(call), 0, true};
  dispatch_width(call.out[0].dtype,
                 [&](auto t) { launch(config, gather_kernel<typename decltype(t)::type>, a); });
}

// What gather reads for an element of y, but for the place along the dim.
TensorView without_dim(TensorView x, const TensorView& y, size_t dim) {
  x.shape = y.shape;
  x.stride[dim] = 0;
  return x;
}

void run_gather(const IndexState& s, const KernelCall& call) {
  const TensorView& x = call.in[0];
  const size_t dim = static_cast<size_t>(s.dim);
  GatherArgs a;
  a.x = DeviceRows(without_dim(x, call.out[0], dim), 0);
  a.index = DeviceRows(call.in[1], 0);
  a.len = x.shape[dim], a.x_stride = x.stride[dim];
  launch_gather(call, a);
}

void run_index_select(const IndexState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  const size_t dim = static_cast<size_t>(s.dim);
  TensorView index = y;
  index.data = call.in[1].data;
  index.stride = {};
  index.stride[dim] = call.in[1].stride[0];
  GatherArgs a;
  a.x = DeviceRows(without_dim(x, y, dim), 0);
  a.index = DeviceRows(index, 0);
  a.len = x.shape[dim], a.x_stride = x.stride[dim];
  launch_gather(call, a);
}

void run_scatter(const ScatterForm& s, const KernelCall& call) {
  ScatterArgs a{DeviceLines(call.in[0], s.dim), DeviceLines(call.in[1], s.dim),
                DeviceLines(call.in[2], s.dim), DeviceLines(call.out[0], s.dim)};
  a.blocks_per_line = blocks_for(a.y.len, kThreads);
  const dim3 grid(static_cast<unsigned>(a.y.rows.rows * a.blocks_per_line));
  const LaunchConfig config{grid, dim3(kThreads), stream_of(call), 0, true};
  dispatch_class(a.y.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if (s.add)
      launch(config, scatter_kernel<T, true>, a);
    else
      launch(config, scatter_kernel<T, false>, a);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_gather(const KernelSpec& spec, std::string*) {
  return make_function_kernel("gather.plain", IndexState{check_gather(spec)}, run_gather);
}
std::unique_ptr<Kernel> make_scatter(const KernelSpec& spec, std::string*) {
  return make_function_kernel("scatter.plain", check_scatter(spec), run_scatter);
}
std::unique_ptr<Kernel> make_index_select(const KernelSpec& spec, std::string*) {
  return make_function_kernel("index_select.plain", IndexState{check_index_select(spec)}, run_index_select);
}

}  // namespace autodeploy::cuda
