// wkv: weighted averages of values with weights that decay by channel (arXiv:2305.13048), a thread for each
// channel of a sequence. Operands of some tokens are loaded at once, as they do not wait for each other.
#include <limits>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/float_view.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 64, kTokens = 16;
constexpr float kInf = std::numeric_limits<float>::infinity();

struct WkvArgs {
  SlotStep step;
  FloatView k, v, decay, bonus, y;
  SlotComponent num, den, max;
  int64_t channels = 0;
};

template <class T>
__global__ void __launch_bounds__(kThreads) wkv_kernel(WkvArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t seq = blockIdx.x, c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  const int32_t slot = a.step.slot[seq];
  const float decay = a.decay.at(c), bonus = a.bonus.at(c);
  float num = 0, den = 0, most = -kInf;
  if (a.step.has_state[seq]) {
    num = a.num.of<float>(slot)[c], den = a.den.of<float>(slot)[c], most = a.max.of<float>(slot)[c];
  }
  const int64_t stop = a.step.query_start[seq + 1];
  for (int64_t first = a.step.query_start[seq]; first < stop; first += kTokens) {
    float keys[kTokens], values[kTokens];
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const bool there = first + t < stop;
      keys[t] = there ? load_common<T>(a.k, first + t, c) : 0.0f;
      values[t] = there ? load_common<T>(a.v, first + t, c) : 0.0f;
    }
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      if (first + t >= stop) break;
      {
        const float now = keys[t] + bonus, top = fmaxf(most, now);
        const float past = expf(most - top), own = expf(now - top);
        store_common<T>(a.y, first + t, c, (past * num + own * values[t]) / (past * den + own));
      }
      const float aged = most + decay, top = fmaxf(aged, keys[t]);
      const float past = expf(aged - top), own = expf(keys[t] - top);
      num = past * num + own * values[t];
      den = past * den + own;
      most = top;
    }
  }
  a.num.of<float>(slot)[c] = num, a.den.of<float>(slot)[c] = den, a.max.of<float>(slot)[c] = most;
}

void run_wkv(const std::optional<DType>& common, const KernelCall& call) {
  WkvArgs a;
  a.step = SlotStep(*call.device);
  a.k = FloatView(call.in[0]), a.v = FloatView(call.in[1]), a.y = FloatView(call.out[0]);
  a.decay = FloatView(call.in[2]), a.bonus = FloatView(call.in[3]);
  const StateMemory& memory = *call.states[0];
  a.num = SlotComponent(memory, 0), a.den = SlotComponent(memory, 1), a.max = SlotComponent(memory, 2);
  a.channels = call.in[0].shape[1];
  const dim3 grid(static_cast<unsigned>(call.device->num_seqs), blocks_for(a.channels, kThreads));
  dispatch_common(common, [&](auto t) {
    launch({grid, dim3(kThreads), stream_of(call), 0, true}, wkv_kernel<typename decltype(t)::type>, a);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_wkv(const KernelSpec& spec, std::string* why) {
  check_wkv(spec);
  if (!all_float(spec, {0, 1, 2, 3}, why)) return nullptr;
  return make_function_kernel("wkv.plain",
                              common_dtype({spec.in[0].dtype, spec.in[1].dtype, spec.out[0].dtype}), run_wkv);
}

}  // namespace autodeploy::cuda
