// linear_attention: a decaying outer-product memory (Qin et al. 2024, arXiv:2401.04658), token by token,
// parallel over sequences, heads and columns of the memory.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>

#include "core/error.h"
#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/matrix_memory.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

#define AD_ISA_SOURCE "kernels/cpu/matrix_memory_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

class LinearAttention : public Kernel {
 public:
  LinearAttention(const KernelSpec& spec, Isa isa)
      : scale_(static_cast<float>(spec.attrs.number("scale"))),
        heads_(spec.in[1].shape[1].constant),
        width_(spec.in[1].shape[2].constant),
        value_width_(spec.in[2].shape[2].constant),
        max_tokens_(spec.max_tokens),
        run_memory_(AD_PICK_ISA(isa, run_memory)),
        name_(std::string("linear_attention.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // What the memory keeps at each step, head by head.
  int64_t workspace_bytes() const override {
    return heads_ * max_tokens_ * static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    const int64_t tiles = (value_width_ + kMemoryColumns - 1) / kMemoryColumns;
    call.pool->parallel_for(heads_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t head = begin; head < end; ++head) find_decay(call, head);
    });
    call.pool->parallel_for(call.batch->num_seqs * heads_ * tiles, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) run_one(call, i / tiles / heads_, i / tiles % heads_, i % tiles);
    });
  }

 private:
  float* keep_of(const KernelCall& call, int64_t head) const {
    return reinterpret_cast<float*>(call.workspace) + head * max_tokens_;
  }

  void find_decay(const KernelCall& call, int64_t head) const {
    const TensorView &gate = call.in[3], &decay = call.in[4];
    const float rate = decay ? decay.as<const float>()[head * decay.stride[0]] : 0.0f;
    float* keep = keep_of(call, head);
    const int64_t tokens = call.batch->num_tokens;
    if (!gate) {
      std::fill(keep, keep + tokens, std::exp(rate));
      return;
    }
    const float* g = gate.as<const float>() + head * gate.stride[1];
    for (int64_t t = 0; t < tokens; ++t) keep[t] = std::exp(g[t * gate.stride[0]] + rate);
  }

  void run_one(const KernelCall& call, int64_t seq, int64_t head, int64_t tile) const {
    const TensorView &q = call.in[0], &k = call.in[1], &v = call.in[2], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const int64_t start = batch.query_start[seq], first = tile * kMemoryColumns;
    const StateMemory& memory = *call.states[0];
    MatrixMemoryTile m;
    m.tokens = batch.query_start[seq + 1] - start;
    m.width = width_, m.columns = std::min(kMemoryColumns, value_width_ - first);
    m.q = q.as<const float>() + start * q.stride[0] + head * q.stride[1], m.q_stride = q.stride[0];
    m.k = k.as<const float>() + start * k.stride[0] + head * k.stride[1], m.k_stride = k.stride[0];
    m.v = v.as<const float>() + start * v.stride[0] + head * v.stride[1] + first, m.v_stride = v.stride[0];
    m.y = y.as<float>() + start * y.stride[0] + head * y.stride[1] + first, m.y_stride = y.stride[0];
    m.keep = keep_of(call, head) + start;
    m.scale = scale_;
    m.state = reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) +
              head * width_ * value_width_ + first;
    m.state_stride = value_width_;
    if (!batch.has_state[seq]) {
      for (int64_t d = 0; d < width_; ++d) std::fill_n(m.state + d * m.state_stride, m.columns, 0.0f);
    }
    run_memory_(m);
  }

  float scale_;
  int64_t heads_, width_, value_width_, max_tokens_;
  void (*run_memory_)(const MatrixMemoryTile&);
  std::string name_;
};

std::unique_ptr<Kernel> make_linear_attention(const KernelSpec& spec, std::string* why, Isa isa) {
  const SpecCheck check(spec);
  check.arity(5, 1, 1);
  const OperandSpec& k = check.input(1, "k [T, H, Dk]", 3, 1);
  const OperandSpec& v = check.input(2, "v [T, H, Dv]", 3, 1);
  check.shape(check.input(0, "q [T, H, Dk]", 3, 1), "q", k.shape);
  const int64_t heads = check.static_dim(k, "k", 1), width = check.static_dim(k, "k", 2),
                values = check.static_dim(v, "v", 2);
  check.shape(v, "v", {k.shape[0], k.shape[1], v.shape[2]});
  if (spec.in[3].present) check.shape(spec.in[3], "gate", {k.shape[0], k.shape[1]});
  if (spec.in[4].present) check.shape(spec.in[4], "decay", {k.shape[1]});
  check.shape(check.output(0, "the result [T, H, Dv]", 3, 1), "the result", v.shape);
  check.finite("scale");
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({heads, width, values}) &&
                 state.components[0].dtype == DType::kF32,
             "a float32 slot state [H, Dk, Dv] = [" + std::to_string(heads) + ", " + std::to_string(width) +
                 ", " + std::to_string(values) + "]",
             "another");
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  return std::make_unique<LinearAttention>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(linear_attention)

}  // namespace autodeploy
