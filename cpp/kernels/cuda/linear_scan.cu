// linear_scan: a recurrence of first order (as in arXiv:2402.19427), a thread for each channel of a sequence.
// Operands of some tokens are loaded at once, as they do not wait for each other.
#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/float_view.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 64, kTokens = 16;

struct LinearScanArgs {
  SlotStep step;
  FloatView x, a, y;
  SlotComponent state;
  int64_t channels = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads) linear_scan_kernel(LinearScanArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t seq = blockIdx.x, c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  float* state = a.state.of<float>(a.step.slot[seq]) + c;
  float h = a.step.has_state[seq] ? *state : 0.0f;
  const int64_t stop = a.step.query_start[seq + 1];
  for (int64_t first = a.step.query_start[seq]; first < stop; first += kTokens) {
    float x[kTokens], keep[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const bool there = first + t < stop;
      x[t] = there ? load_common<T>(a.x, first + t, c) : 0.0f;
      keep[t] = there ? load_common<T>(a.a, first + t, c) : 0.0f;
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= stop) break;
      h = keep[t] * h + x[t];
      store_common<T>(a.y, first + t, c, h);
    }
  }
  *state = h;
}

void run_linear_scan(const std::optional<DType>& common, const KernelCall& call) {
  LinearScanArgs a;
  a.step = SlotStep(*call.device);
  a.x = FloatView(call.in[0]), a.a = FloatView(call.in[1]), a.y = FloatView(call.out[0]);
  a.state = SlotComponent(*call.states[0], 0);
  a.channels = call.in[0].shape[1];
  const dim3 grid(static_cast<unsigned>(call.device->num_seqs), blocks_for(a.channels, kThreads));
  dispatch_common(common, [&](auto t) {
    launch({grid, dim3(kThreads), stream_of(call), 0, true}, linear_scan_kernel<typename decltype(t)::type>,
           a);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_linear_scan(const KernelSpec& spec, std::string* why) {
  check_linear_scan(spec);
  if (!all_float(spec, {0, 1}, why)) return nullptr;
  return make_function_kernel("linear_scan.plain",
                              common_dtype({spec.in[0].dtype, spec.in[1].dtype, spec.out[0].dtype}),
                              run_linear_scan);
}

}  // namespace autodeploy::cuda
