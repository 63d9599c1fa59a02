// ssd: the state space recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), token by token, parallel
// over heads and sequences.
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
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

// One head of one sequence: `tokens` steps over a state of [P, N] floats.
struct SsdHead {
  int64_t tokens = 0, p = 0, n = 0;
  const float *x = nullptr, *b = nullptr, *c = nullptr;
  const float *dt = nullptr, *decay = nullptr;  // [tokens], and exp(dt * a) likewise
  const float* d = nullptr;                     // null, or at d_stride * channel
  float* y = nullptr;
  int64_t x_stride = 0, b_stride = 0, c_stride = 0, y_stride = 0, d_stride = 0;  // per token; d per channel
  float* state = nullptr;
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/ssd_head.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

float softplus(float x) { return x > 20.0f ? x : std::log1p(std::exp(x)); }

class Ssd : public Kernel {
 public:
  Ssd(const KernelSpec& spec, Isa isa)
      : softplus_(spec.attrs.boolean("softplus")),
        dt_min_(static_cast<float>(spec.attrs.number("dt_min"))),
        dt_max_(static_cast<float>(spec.attrs.number("dt_max"))),
        heads_(spec.in[0].shape[1].constant),
        p_(spec.in[0].shape[2].constant),
        groups_(spec.in[3].shape[1].constant),
        n_(spec.in[3].shape[2].constant),
        max_tokens_(spec.max_tokens),
        run_head_(AD_PICK_ISA(isa, run_head)),
        name_(std::string("ssd.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // dt and decay, head by head.
  int64_t workspace_bytes() const override {
    return 2 * heads_ * max_tokens_ * static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    const StepBatch& batch = *call.batch;
    call.pool->parallel_for(batch.num_seqs * heads_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) run_one(call, i / heads_, i % heads_);
    });
  }

 private:
  void run_one(const KernelCall& call, int64_t seq, int64_t head) const {
    const TensorView &x = call.in[0], &dt = call.in[1], &a = call.in[2], &b = call.in[3], &c = call.in[4],
                     &d = call.in[5], &bias = call.in[6], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const int64_t start = batch.query_start[seq], stop = batch.query_start[seq + 1],
                  group = head / (heads_ / groups_);
    float* dts = reinterpret_cast<float*>(call.workspace) + 2 * head * max_tokens_ + start;
    float* decays = dts + max_tokens_;
    const float rate = a.as<const float>()[head * a.stride[0]];
    const float shift = bias ? bias.as<const float>()[head * bias.stride[0]] : 0.0f;
    for (int64_t t = start; t < stop; ++t) {
      float v = dt.as<const float>()[t * dt.stride[0] + head * dt.stride[1]] + shift;
      if (softplus_) v = softplus(v);
      v = std::min(std::max(v, dt_min_), dt_max_);
      dts[t - start] = v;
      decays[t - start] = std::exp(v * rate);
    }
    const StateMemory& memory = *call.states[0];
    float* state =
        reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) + head * p_ * n_;
    if (!batch.has_state[seq]) std::memset(state, 0, static_cast<size_t>(p_ * n_) * sizeof(float));
    SsdHead h;
    h.tokens = stop - start, h.p = p_, h.n = n_;
    h.x = x.as<const float>() + start * x.stride[0] + head * x.stride[1], h.x_stride = x.stride[0];
    h.b = b.as<const float>() + start * b.stride[0] + group * b.stride[1], h.b_stride = b.stride[0];
    h.c = c.as<const float>() + start * c.stride[0] + group * c.stride[1], h.c_stride = c.stride[0];
    h.y = y.as<float>() + start * y.stride[0] + head * y.stride[1], h.y_stride = y.stride[0];
    h.dt = dts, h.decay = decays;
    if (d) h.d = d.as<const float>() + head * d.stride[0], h.d_stride = d.ndim == 2 ? d.stride[1] : 0;
    h.state = state;
    run_head_(h);
  }

  bool softplus_;
  float dt_min_, dt_max_;
  int64_t heads_, p_, groups_, n_, max_tokens_;
  void (*run_head_)(const SsdHead&);
  std::string name_;
};

std::unique_ptr<Kernel> make_ssd(const KernelSpec& spec, std::string* why, Isa isa) {
  const SpecCheck check(spec);
  check.arity(7, 1, 1);
  const OperandSpec& x = check.input(0, "x [T, H, P]", 3, 1);
  const OperandSpec& dt = check.input(1, "dt [T, H]", 2, 0);
  const OperandSpec& b = check.input(3, "b [T, G, N]", 3, 1);
  const Dim tokens = x.shape[0], heads = x.shape[1], channels = x.shape[2];
  check.shape(dt, "dt", {tokens, heads});
  check.shape(check.input(2, "a [H]", 1, 0), "a", {heads});
  check.shape(check.input(4, "c [T, G, N]", 3, 1), "c", b.shape);
  const int64_t groups = check.static_dim(b, "b", 1), n = check.static_dim(b, "b", 2),
                h = check.static_dim(x, "x", 1);
  check.that(b.shape[0] == tokens && h % groups == 0,
             "b of as many tokens as x, and groups that divide x's heads",
             shape_text(b.shape) + " and " + shape_text(x.shape));
  if (const OperandSpec& d = spec.in[5]; d.present) {
    check.shape(d, "d", d.shape.size() == 2 ? std::vector<Dim>{heads, channels} : std::vector<Dim>{heads});
  }
  if (spec.in[6].present) check.shape(spec.in[6], "dt_bias", {heads});
  check.shape(check.output(0, "the result [T, H, P]", 3, 1), "the result", x.shape);
  const StateSpec& state = spec.states[0];
  check.that(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
                 state.components[0].shape == std::vector<int64_t>({h, channels.constant, n}) &&
                 state.components[0].dtype == DType::kF32,
             "a float32 slot state [H, P, N] = [" + std::to_string(h) + ", " +
                 std::to_string(channels.constant) + ", " + std::to_string(n) + "]",
             "another");
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4, 5, 6}, why)) return nullptr;
  return std::make_unique<Ssd>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(ssd)

}  // namespace autodeploy
