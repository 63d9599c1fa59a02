// cumsum along a dim: a warp for each line, or a block where lines are long. Floats are added in float32, in
// an order that the length alone decides; integers wrap. The result may be x.
#include "kernels/cuda/elements.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpSize;
constexpr int64_t kLongLine = 512;

struct CumsumArgs {
  DeviceLines x, y;
};

template <class Sum>
AD_DEVICE Sum warp_scan(Sum v) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
#pragma unroll
  for (int d = 1; d < kWarpSize; d *= 2) {
    const Sum below = __shfl_up_sync(0xffffffffu, v, static_cast<unsigned>(d));
    if (lane >= d) v += below;
  }
  return v;
}

// In: float for all float dtypes, int64_t or uint8_t.
template <class In, bool kBlock>
__global__ void __launch_bounds__(kThreads) cumsum_kernel(CumsumArgs a) {
  using Sum = std::conditional_t<std::is_same_v<In, float>, float, unsigned long long>;
  using Out = std::conditional_t<std::is_same_v<In, float>, float, int64_t>;
  __shared__ Sum totals[kWarps];
  wait_for_previous();
  let_next_start();
  constexpr int kLanes = kBlock ? kThreads : kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = lane / kWarpSize;
  const int64_t line = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (line >= a.x.rows.rows) return;  // whole warps; with kBlock there is none
  const int64_t x = a.x.rows.offset(line), y = a.y.rows.offset(line);
  Sum carry = 0;
  for (int64_t first = 0; first < a.x.len; first += kLanes) {
    const int64_t i = first + lane;
    Sum v = 0;
    if (i < a.x.len) v = static_cast<Sum>(load_as<In>(a.x.rows.data, a.x.dtype, x + i * a.x.stride));
    v = warp_scan(v);
    Sum total = __shfl_sync(0xffffffffu, v, kWarpSize - 1);
    if constexpr (kBlock) {
      if (lane % kWarpSize == 0) totals[warp] = total;
      __syncthreads();
      Sum before = 0;
      total = 0;
      for (int w = 0; w < kWarps; ++w) {
        if (w == warp) before = total;
        total += totals[w];
      }
      v += before;
      __syncthreads();
    }
    if (i < a.x.len) store_as<Out>(a.y.rows.data, a.y.dtype, y + i * a.y.stride, static_cast<Out>(carry + v));
    carry += total;
  }
}

struct CumsumState {
  int64_t dim = 0;
};

void run_cumsum(const CumsumState& s, const KernelCall& call) {
  const CumsumArgs a{DeviceLines(call.in[0], s.dim), DeviceLines(call.out[0], s.dim)};
  const bool block = a.x.len > kLongLine;
  const dim3 grid(blocks_for(a.x.rows.rows, block ? 1 : kWarps));
  const LaunchConfig config{grid, dim3(kThreads), stream_of(call), 0, true};
  dispatch_class(a.x.dtype, [&](auto t) {
    using In = typename decltype(t)::type;
    if (block)
      launch(config, cumsum_kernel<In, true>, a);
    else
      launch(config, cumsum_kernel<In, false>, a);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_cumsum(const KernelSpec& spec, std::string*) {
  return make_function_kernel("cumsum.plain", CumsumState{check_cumsum(spec)}, run_cumsum);
}

}  // namespace autodeploy::cuda
