// mlstm: an outer-product memory with exponential gates (Beck et al. 2024, arXiv:2405.04517), token by token.
// A warp for each head of a sequence walks over what is one number per token, the stabiliser and the
// normaliser; then the memory itself is walked over by its rows.
#include <cmath>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/matrix_memory.h"

namespace autodeploy::cuda {
namespace {

struct GateArgs {
  SlotStep step;
  FloatView q, k, input, forget;
  SlotComponent normaliser, stabiliser;
  float* gates = nullptr;  // [T, heads, 3]: keep, add, weight
  int heads = 0, width = 0;
  float scale = 0, eps = 0;
};

AD_DEVICE float log_sigmoid(float x) { return fminf(x, 0.0f) - log1pf(expf(-fabsf(x))); }

template <class Row>
__global__ void __launch_bounds__(kWarpSize) gate_kernel(GateArgs a) {
  wait_for_previous();
  let_next_start();
  const int seq = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const bool aligned = a.width % 4 == 0;
  const int32_t slot = a.step.slot[seq];
  float* normaliser = a.normaliser.of<float>(slot) + int64_t{head} * a.width;
  float* stabiliser = a.stabiliser.of<float>(slot) + head;
  Row n;
  n.clear();
  float m = 0;
  if (a.step.has_state[seq]) {
    n.load(normaliser, a.width, aligned);
    m = *stabiliser;
  }
  __syncwarp();  // all lanes have read it
  const int64_t stop = a.step.query_start[seq + 1];
  for (int64_t token = a.step.query_start[seq]; token < stop; ++token) {
    const float let = a.input.at(token, head), stay = log_sigmoid(a.forget.at(token, head)) + m;
    m = fmaxf(stay, let);
    const float keep = expf(stay - m), add = expf(let - m);
    float dot = 0;
#pragma unroll
    for (int p = 0; p < Row::kPacks; ++p) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = Row::first(p) + i;
        if (c >= a.width) continue;
        n.x[p][i] = keep * n.x[p][i] + add * a.k.at(token, head, c);
        dot += n.x[p][i] * a.q.at(token, head, c);
      }
    }
    dot = Row::sum(dot);
    if (Row::lane() == 0) {
      float* to = a.gates + (token * a.heads + head) * 3;
      to[0] = keep, to[1] = add;
      to[2] = a.scale / (fmaxf(fabsf(a.scale * dot), expf(-m)) + a.eps);
    }
  }
  n.store(normaliser, a.width, aligned);
  if (Row::lane() == 0) *stabiliser = m;
}

struct MlstmGates {
  const float* gates = nullptr;
  int heads = 0;

  AD_DEVICE MemoryGates operator()(int64_t token, int head) const {
    const float* g = gates + (token * heads + head) * 3;
    return {g[0], g[1], g[2]};
  }
  AD_DEVICE float skip(int, int) const { return 0.0f; }
};

struct MlstmState {
  float scale = 0, eps = 0;
};

void run_mlstm(const MlstmState& s, const KernelCall& call) {
  const TensorView &k = call.in[1], &v = call.in[2];
  GateArgs g;
  g.step = SlotStep(*call.device);
  g.q = FloatView(call.in[0]), g.k = FloatView(k);
  g.input = FloatView(call.in[3]), g.forget = FloatView(call.in[4]);
  g.normaliser = SlotComponent(*call.states[0], 1), g.stabiliser = SlotComponent(*call.states[0], 2);
  g.gates = reinterpret_cast<float*>(call.workspace);
  g.heads = static_cast<int>(k.shape[1]), g.width = static_cast<int>(k.shape[2]);
  g.scale = s.scale, g.eps = s.eps;
  const LaunchConfig config{
      dim3(static_cast<unsigned>(call.device->num_seqs), static_cast<unsigned>(g.heads)), dim3(kWarpSize),
      stream_of(call), 0, true};
  if (g.width <= 128)
    launch(config, gate_kernel<StateRow<32, 1>>, g);
  else if (g.width <= 512)
    launch(config, gate_kernel<StateRow<32, 4>>, g);
  else
    launch(config, gate_kernel<StateRow<32, 16>>, g);

  MemoryArgs a;
  a.step = g.step;
  a.q = g.q, a.k = g.k, a.v = FloatView(v), a.y = FloatView(call.out[0]);
  a.state = SlotComponent(*call.states[0], 0);
  a.width = g.width, a.rows = static_cast<int>(v.shape[2]);
  run_matrix_memory(call, a, g.heads, MlstmGates{g.gates, g.heads});
}

}  // namespace

std::unique_ptr<Kernel> make_mlstm(const KernelSpec& spec, std::string* why) {
  check_mlstm(spec);
  if (!all_float(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  const int64_t heads = spec.in[1].shape[1].constant;
  if (!state_rows_fit(heads, spec.in[1].shape[2].constant, why)) return nullptr;
  const MlstmState state{static_cast<float>(spec.attrs.number("scale")),
                         static_cast<float>(spec.attrs.number("eps"))};
  const int64_t workspace = spec.max_tokens * heads * 3 * static_cast<int64_t>(sizeof(float));
  return make_function_kernel("mlstm.plain", state, run_mlstm, workspace);
}

}  // namespace autodeploy::cuda
