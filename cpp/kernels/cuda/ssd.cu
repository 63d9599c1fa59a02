// ssd: the state space recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), token by token.
#include <cmath>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/matrix_memory.h"

namespace autodeploy::cuda {
namespace {

struct SsdGates {
  FloatView dt, a, d, dt_bias;
  bool softplus = false, d_of_head = false;
  float dt_min = 0, dt_max = 0;

  AD_DEVICE MemoryGates operator()(int64_t token, int head) const {
    float step = dt.at(token, head);
    if (dt_bias.data) step += dt_bias.at(head);
    if (softplus && step <= 20.0f) step = log1pf(expf(step));
    step = fminf(fmaxf(step, dt_min), dt_max);
    return {expf(step * a.at(head)), step, 1.0f};
  }
  AD_DEVICE float skip(int head, int row) const {
    if (!d.data) return 0.0f;
    return d_of_head ? d.at(head) : d.at(head, row);
  }
};

struct SsdState {
  bool softplus = false;
  float dt_min = 0, dt_max = 0;
};

void run_ssd(const SsdState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &b = call.in[3];
  MemoryArgs a;
  a.step = SlotStep(*call.device);
  a.q = FloatView(call.in[4]), a.k = FloatView(b), a.v = FloatView(x), a.y = FloatView(call.out[0]);
  a.state = SlotComponent(*call.states[0], 0);
  a.width = static_cast<int>(b.shape[2]), a.rows = static_cast<int>(x.shape[2]);
  a.key_group = static_cast<int>(x.shape[1] / b.shape[1]);
  SsdGates gates;
  gates.dt = FloatView(call.in[1]), gates.a = FloatView(call.in[2]);
  gates.d = FloatView(call.in[5]), gates.dt_bias = FloatView(call.in[6]);
  gates.softplus = s.softplus, gates.d_of_head = call.in[5].ndim == 1;
  gates.dt_min = s.dt_min, gates.dt_max = s.dt_max;
  run_matrix_memory(call, a, x.shape[1], gates);
}

}  // namespace

std::unique_ptr<Kernel> make_ssd(const KernelSpec& spec, std::string* why) {
  check_ssd(spec);
  if (!all_float(spec, {0, 1, 2, 3, 4, 5, 6}, why)) return nullptr;
  if (!state_rows_fit(spec.in[0].shape[1].constant, spec.in[3].shape[2].constant, why)) return nullptr;
  const SsdState state{spec.attrs.boolean("softplus"), static_cast<float>(spec.attrs.number("dt_min")),
                       static_cast<float>(spec.attrs.number("dt_max"))};
  return make_function_kernel("ssd.plain", state, run_ssd);
}

}  // namespace autodeploy::cuda
