// causal_conv1d: depthwise convolution over the last K tokens of each sequence, the first K - 1 of a step
// coming from its state, [K - 1, C] with the oldest row first. A thread for each channel of a token; of a
// sequence where all are short, and then it brings the state up to date as well.
#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/float_view.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kShort = 4;  // tokens of a sequence that a thread takes one by one

struct ConvArgs {
  SlotStep step;
  FloatView x, weight, bias, y;
  SlotComponent state;
  DType state_dtype = DType::kF32;
  int64_t channels = 0;
  int taps = 0;
  bool silu = false;
};

// What stood in a channel at token `at` of a sequence's step, one of its `start`; before 0: in its state.
template <class T>
AD_DEVICE float history(const ConvArgs& a, const void* state, int64_t start, int64_t at, int64_t c) {
  if (at >= 0) return load_common<T>(a.x, start + at, c);
  return state ? load_common<T>(state, a.state_dtype, (a.taps - 1 + at) * a.channels + c) : 0.0f;
}

template <class T>
AD_DEVICE void convolve(const ConvArgs& a, const void* state, int64_t start, int64_t at, int64_t c) {
  float sum = a.bias.data ? a.bias.at(c) : 0.0f;
#pragma unroll 4
  for (int k = 0; k < a.taps; ++k)
    sum += a.weight.at(c, k) * history<T>(a, state, start, at - (a.taps - 1) + k, c);
  store_common<T>(a.y, start + at, c, a.silu ? sum / (1.0f + expf(-sum)) : sum);
}

template <class T>
__global__ void __launch_bounds__(kThreads) token_kernel(ConvArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x, c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  const int32_t seq = a.step.token_seq[token], start = a.step.query_start[seq];
  convolve<T>(a, a.step.has_state[seq] ? a.state.of<uint8_t>(a.step.slot[seq]) : nullptr, start,
              token - start, c);
}

// The results of a sequence, where they are wanted, and its state.
template <class T>
__global__ void __launch_bounds__(kThreads) sequence_kernel(ConvArgs a, bool results) {
  wait_for_previous();
  let_next_start();
  const int64_t seq = blockIdx.x, c = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (c >= a.channels) return;
  const int64_t start = a.step.query_start[seq], tokens = a.step.query_start[seq + 1] - start;
  uint8_t* state = a.state.of<uint8_t>(a.step.slot[seq]);
  const uint8_t* earlier = a.step.has_state[seq] ? state : nullptr;
  if (results) {
    for (int64_t t = 0; t < tokens; ++t) convolve<T>(a, earlier, start, t, c);
  }
  // Rows move towards the front, so one is read before it is overwritten.
  const int width = a.taps - 1;
  for (int i = 0; i < width; ++i)
    store_common<T>(state, a.state_dtype, i * a.channels + c,
                    history<T>(a, earlier, start, tokens - width + i, c));
}

struct ConvState {
  bool silu = false;
  DType state_dtype = DType::kF32;
  std::optional<DType> common;  // dtype of x, y and the state
};

void run_conv(const ConvState& s, const KernelCall& call) {
  ConvArgs a;
  a.step = SlotStep(*call.device);
  a.x = FloatView(call.in[0]), a.weight = FloatView(call.in[1]), a.y = FloatView(call.out[0]);
  if (call.in[2]) a.bias = FloatView(call.in[2]);
  a.state = SlotComponent(*call.states[0], 0);
  a.state_dtype = s.state_dtype;
  a.channels = call.in[1].shape[0];
  a.taps = static_cast<int>(call.in[1].shape[1]);
  a.silu = s.silu;
  const unsigned tiles = blocks_for(a.channels, kThreads);
  const LaunchConfig config{dim3(static_cast<unsigned>(call.device->num_seqs), tiles), dim3(kThreads),
                            stream_of(call), 0, true};
  const bool all_short = call.device->max_query_len <= kShort;
  LaunchConfig tokens = config;
  tokens.grid.x = static_cast<unsigned>(call.device->num_tokens);
  dispatch_common(s.common, [&](auto t) {
    using T = typename decltype(t)::type;
    if (!all_short) launch(tokens, token_kernel<T>, a);
    if (all_short || a.taps > 1) launch(config, sequence_kernel<T>, a, all_short);
  });
}

}  // namespace

std::unique_ptr<Kernel> make_causal_conv1d(const KernelSpec& spec, std::string* why) {
  check_causal_conv1d(spec);
  if (!all_float(spec, {0, 1, 2}, why)) return nullptr;
  const DType state_dtype = spec.states[0].components[0].dtype;
  if (!is_float(state_dtype)) {
    *why = "it takes states of floats";
    return nullptr;
  }
  const ConvState state{spec.attrs.string("activation") == "silu", state_dtype,
                        common_dtype({spec.in[0].dtype, spec.out[0].dtype, state_dtype})};
  return make_function_kernel("causal_conv1d.plain", state, run_conv);
}

}  // namespace autodeploy::cuda
