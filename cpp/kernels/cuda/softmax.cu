// softmax and log_softmax along a dim, computed in float32: a warp for a short line, a block for a long one.
// A NaN anywhere, or a line of -inf alone, gives NaN everywhere, as in torch. The result may be x: a thread
// writes the elements that it read itself.
#include "kernels/cuda/elements.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kLongLine = 2048;

struct SoftmaxArgs {
  DeviceLines x, y;
};

AD_DEVICE float block_max(float v, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  v = warp_max(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  v = shared[0];
  for (int w = 1; w < kThreads / kWarpSize; ++w) v = fmaxf(v, shared[w]);
  __syncthreads();
  return v;
}

// T is the dtype of both, AnyFloat where they differ.
template <class T, bool kBlock, bool kLog>
__global__ void __launch_bounds__(kThreads) softmax_kernel(SoftmaxArgs a) {
  __shared__ float shared[33];
  wait_for_previous();
  let_next_start();
  constexpr int kLanes = kBlock ? kThreads : kWarpSize;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t line = int64_t{blockIdx.x} * (kThreads / kLanes) + threadIdx.x / kLanes;
  if (line >= a.x.rows.rows) return;  // whole warps; with kBlock there is none
  const int64_t x = a.x.rows.offset(line), y = a.y.rows.offset(line), n = a.x.len;
  float top = -INFINITY;  // passes over NaN, which the sum meets
  for (int64_t i = lane; i < n; i += kLanes)
    top = fmaxf(top, load_common<T>(a.x.rows.data, a.x.dtype, x + i * a.x.stride));
  top = kBlock ? block_max(top, shared) : warp_max(top);
  float sum = 0;
  for (int64_t i = lane; i < n; i += kLanes)
    sum += expf(load_common<T>(a.x.rows.data, a.x.dtype, x + i * a.x.stride) - top);
  sum = kBlock ? block_sum(sum, shared) : warp_sum(sum);
  const float shift = kLog ? logf(sum) : 1.0f / sum;
  for (int64_t i = lane; i < n; i += kLanes) {
    const float v = load_common<T>(a.x.rows.data, a.x.dtype, x + i * a.x.stride) - top;
    store_common<T>(a.y.rows.data, a.y.dtype, y + i * a.y.stride, kLog ? v - shift : expf(v) * shift);
  }
}

struct SoftmaxState {
  int64_t dim = 0;
  bool log = false;
};

template <class T, bool kLog>
void launch_softmax(const KernelCall& call, const SoftmaxArgs& a) {
  const bool block = a.x.len > kLongLine;
  const dim3 grid(blocks_for(a.x.rows.rows, block ? 1 : kThreads / kWarpSize));
  const LaunchConfig config{grid, dim3(kThreads), stream_of(call), 0, true};
  if (block)
    launch(config, softmax_kernel<T, true, kLog>, a);
  else
    launch(config, softmax_kernel<T, false, kLog>, a);
}

void run_softmax(const SoftmaxState& s, const KernelCall& call) {
  const SoftmaxArgs a{DeviceLines(call.in[0], s.dim), DeviceLines(call.out[0], s.dim)};
  const auto with_type = [&](auto t) {
    using T = typename decltype(t)::type;
    if (s.log)
      launch_softmax<T, true>(call, a);
    else
      launch_softmax<T, false>(call, a);
  };
  if (a.x.dtype == a.y.dtype)
    dispatch_act(a.x.dtype, with_type);
  else
    with_type(TypeTag<AnyFloat>{});
}

std::unique_ptr<Kernel> make(const KernelSpec& spec, std::string* why, bool log) {
  const SoftmaxState state{check_softmax(spec), log};
  if (!is_float(spec.in[0].dtype) || !is_float(spec.out[0].dtype)) {
    *why = "it takes floats";
    return nullptr;
  }
  return make_function_kernel(spec.op + ".plain", state, run_softmax);
}

}  // namespace

std::unique_ptr<Kernel> make_softmax(const KernelSpec& spec, std::string* why) {
  return make(spec, why, false);
}
std::unique_ptr<Kernel> make_log_softmax(const KernelSpec& spec, std::string* why) {
  return make(spec, why, true);
}

}  // namespace autodeploy::cuda
