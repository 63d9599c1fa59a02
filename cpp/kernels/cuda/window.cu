// window: what stood at some distances before every token in its own sequence, the rows before a step coming
// from its state, [reach, C] with the oldest row first. Elements are moved, whatever they are.
#include <algorithm>
#include <vector>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMostDistances = 64;  // of one launch

struct WindowArgs {
  SlotStep step;
  const void *x = nullptr, *fill = nullptr;
  void* y = nullptr;
  int64_t x_stride = 0, y_stride = 0, tap_stride = 0;  // in elements; per token, per distance
  SlotComponent state;
  int64_t channels = 0, reach = 0;
  int64_t back[kMostDistances] = {};
  int first = 0, count = 0;  // of the distances
};

// What stood in a channel at token `at` of a sequence's step; before 0: in its state.
template <class T>
AD_DEVICE T history(const WindowArgs& a, const T* state, int64_t start, int64_t at, int64_t c) {
  if (at >= 0) return static_cast<const T*>(a.x)[(start + at) * a.x_stride + c];
  if (state) return state[(a.reach + at) * a.channels + c];
  return a.fill ? static_cast<const T*>(a.fill)[c] : T{0};
}

template <class T>
__global__ void __launch_bounds__(kThreads) token_kernel(WindowArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x, c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  const int32_t seq = a.step.token_seq[token], start = a.step.query_start[seq];
  const T* state = a.step.has_state[seq] ? a.state.of<const T>(a.step.slot[seq]) : nullptr;
  T* y = static_cast<T*>(a.y) + token * a.y_stride + c;
  for (int j = 0; j < a.count; ++j)
    y[(a.first + j) * a.tap_stride] = history<T>(a, state, start, token - start - a.back[j], c);
}

template <class T>
__global__ void __launch_bounds__(kThreads) state_kernel(WindowArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t seq = blockIdx.x, c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  const int64_t start = a.step.query_start[seq], tokens = a.step.query_start[seq + 1] - start;
  T* state = a.state.of<T>(a.step.slot[seq]);
  const T* earlier = a.step.has_state[seq] ? state : nullptr;
  // Rows move towards the front, so one is read before it is overwritten.
  for (int64_t i = 0; i < a.reach; ++i)
    state[i * a.channels + c] = history<T>(a, earlier, start, tokens - a.reach + i, c);
}

template <class T>
void launch_all(const std::vector<int64_t>& back, WindowArgs a, const KernelCall& call) {
  const unsigned tiles = blocks_for(a.channels, kThreads);
  LaunchConfig config{dim3(static_cast<unsigned>(call.device->num_tokens), tiles), dim3(kThreads),
                      stream_of(call), 0, true};
  for (size_t first = 0; first < back.size(); first += kMostDistances) {
    a.first = static_cast<int>(first);
    a.count = static_cast<int>(std::min<size_t>(kMostDistances, back.size() - first));
    std::copy_n(back.begin() + a.first, a.count, a.back);
    launch(config, token_kernel<T>, a);
  }
  config.grid.x = static_cast<unsigned>(call.device->num_seqs);
  launch(config, state_kernel<T>, a);
}

void run_window(const std::vector<int64_t>& back, const KernelCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  WindowArgs a;
  a.step = SlotStep(*call.device);
  a.x = x.data, a.fill = call.in[1].data, a.y = y.data;
  a.x_stride = x.stride[0], a.y_stride = y.stride[0], a.tap_stride = y.stride[1];
  a.state = SlotComponent(*call.states[0], 0);
  a.channels = x.shape[1];
  a.reach = *std::max_element(back.begin(), back.end());
  switch (dtype_size(x.dtype)) {
    case 1:
      return launch_all<uint8_t>(back, a, call);
    case 2:
      return launch_all<uint16_t>(back, a, call);
    case 4:
      return launch_all<uint32_t>(back, a, call);
    default:
      return launch_all<uint64_t>(back, a, call);
  }
}

}  // namespace

std::unique_ptr<Kernel> make_window(const KernelSpec& spec, std::string* why) {
  check_window(spec);
  if (spec.states[0].components[0].dtype != spec.in[0].dtype) {
    *why = "it takes states of x's dtype only";
    return nullptr;
  }
  return make_function_kernel("window.plain", spec.attrs.integers("back"), run_window);
}

}  // namespace autodeploy::cuda
