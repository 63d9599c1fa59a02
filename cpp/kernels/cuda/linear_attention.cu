// linear_attention: a decaying outer-product memory (Qin et al. 2024, arXiv:2401.04658), token by token.
#include <cmath>

#include "kernels/cpu/mixer_checks.h"
#include "kernels/cuda/matrix_memory.h"

namespace autodeploy::cuda {
namespace {

struct LinearGates {
  FloatView gate, decay;
  float scale = 1;

  AD_DEVICE MemoryGates operator()(int64_t token, int head) const {
    float log_keep = gate.data ? gate.at(token, head) : 0.0f;
    if (decay.data) log_keep += decay.at(head);
    return {expf(log_keep), 1.0f, scale};
  }
  AD_DEVICE float skip(int, int) const { return 0.0f; }
};

void run_linear_attention(const float& scale, const KernelCall& call) {
  const TensorView &k = call.in[1], &v = call.in[2];
  MemoryArgs a;
  a.step = SlotStep(*call.device);
  a.q = FloatView(call.in[0]), a.k = FloatView(k), a.v = FloatView(v), a.y = FloatView(call.out[0]);
  a.state = SlotComponent(*call.states[0], 0);
  a.width = static_cast<int>(k.shape[2]), a.rows = static_cast<int>(v.shape[2]);
  LinearGates gates;
  gates.gate = FloatView(call.in[3]), gates.decay = FloatView(call.in[4]);
  gates.scale = scale;
  run_matrix_memory(call, a, k.shape[1], gates);
}

}  // namespace

std::unique_ptr<Kernel> make_linear_attention(const KernelSpec& spec, std::string* why) {
  check_linear_attention(spec);
  if (!all_float(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  if (!state_rows_fit(spec.in[1].shape[1].constant, spec.in[1].shape[2].constant, why)) return nullptr;
  return make_function_kernel("linear_attention.plain", static_cast<float>(spec.attrs.number("scale")),
                              run_linear_attention);
}

}  // namespace autodeploy::cuda
