// arange and full: values that need no operand.
#include "kernels/cuda/elements.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) arange_kernel(T* y, int64_t n, double start, double step) {
  wait_for_previous();
  let_next_start();
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= n) return;
  if constexpr (std::is_same_v<T, int64_t>)
    y[i] = static_cast<int64_t>(start) + static_cast<int64_t>(step) * i;
  else
    y[i] = from_float<T>(static_cast<float>(start + step * static_cast<double>(i)));
}

template <class T>
__global__ void __launch_bounds__(kThreads) full_kernel(T* y, int64_t n, T value) {
  wait_for_previous();
  let_next_start();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < n; i += int64_t{gridDim.x} * kThreads)
    y[i] = value;
}

struct FullState {
  double value = 0;
};

void run_arange(const ArangeForm& s, const KernelCall& call) {
  const TensorView& y = call.out[0];
  const int64_t n = y.numel();
  const LaunchConfig config{dim3(blocks_for(n, kThreads)), dim3(kThreads), stream_of(call), 0, true};
  dispatch_any(y.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if constexpr (!std::is_same_v<T, uint8_t>)
      launch(config, arange_kernel<T>, y.as<T>(), n, s.start, s.step);
  });
}

// On the host, rounded as from_float.
template <class T>
T value_as(double v) {
  if constexpr (std::is_same_v<T, bf16>)
    return __float2bfloat16_rn(static_cast<float>(v));
  else if constexpr (std::is_same_v<T, f16>)
    return __float2half_rn(static_cast<float>(v));
  else if constexpr (std::is_same_v<T, uint8_t>)
    return v != 0;
  else
    return static_cast<T>(v);
}

void run_full(const FullState& s, const KernelCall& call) {
  const TensorView& y = call.out[0];
  const int64_t n = y.numel();
  const LaunchConfig config{dim3(blocks_for(n, kThreads * 4)), dim3(kThreads), stream_of(call), 0, true};
  dispatch_any(y.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    launch(config, full_kernel<T>, y.as<T>(), n, value_as<T>(s.value));
  });
}

}  // namespace

std::unique_ptr<Kernel> make_arange(const KernelSpec& spec, std::string*) {
  return make_function_kernel("arange.plain", check_arange(spec), run_arange);
}
std::unique_ptr<Kernel> make_full(const KernelSpec& spec, std::string*) {
  return make_function_kernel("full.plain", FullState{check_full(spec)}, run_full);
}

}  // namespace autodeploy::cuda
