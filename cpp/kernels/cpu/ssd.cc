// ssd: the state space recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), token by token, parallel over heads and sequences.
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
  explicit Ssd(const KernelSpec& spec)
      : softplus_(spec.attrs.boolean("softplus")),
        dt_min_(static_cast<float>(spec.attrs.number("dt_min"))),
        dt_max_(static_cast<float>(spec.attrs.number("dt_max"))),
        heads_(spec.in[0].shape[1].constant),
        p_(spec.in[0].shape[2].constant),
        groups_(spec.in[3].shape[1].constant),
        n_(spec.in[3].shape[2].constant),
        max_tokens_(spec.max_tokens),
        run_head_(isa_available(Isa::kAvx512) ? AD_PICK_ISA(Isa::kAvx512, run_head)
                  : isa_available(Isa::kAvx2) ? AD_PICK_ISA(Isa::kAvx2, run_head)
                                              : AD_PICK_ISA(Isa::kPortable, run_head)) {}

  const char* name() const override { return "ssd.cpu"; }
  // dt and decay, head by head.
  int64_t workspace_bytes() const override { return 2 * heads_ * max_tokens_ * static_cast<int64_t>(sizeof(float)); }

  void run(const KernelCall& call) const override {
    const StepBatch& batch = *call.batch;
    call.pool->parallel_for(batch.num_seqs * heads_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) run_one(call, i / heads_, i % heads_);
    });
  }

 private:
  void run_one(const KernelCall& call, int64_t seq, int64_t head) const {
    const TensorView &x = call.in[0], &dt = call.in[1], &a = call.in[2], &b = call.in[3], &c = call.in[4], &d = call.in[5],
                     &bias = call.in[6], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const int64_t start = batch.query_start[seq], stop = batch.query_start[seq + 1], group = head / (heads_ / groups_);
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
    float* state = reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) + head * p_ * n_;
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
};

std::string describe(const OperandSpec& o) {
  std::string text = "[";
  for (size_t i = 0; i < o.shape.size(); ++i) {
    text += (i ? ", " : "") + (o.shape[i].is_static() ? std::to_string(o.shape[i].constant) : std::string("T"));
  }
  return text + "]";
}

}  // namespace

std::unique_ptr<Kernel> make_ssd(const KernelSpec& spec, std::string* why) {
  AD_CHECK(spec.in.size() == 7 && spec.out.size() == 1 && spec.states.size() == 1, ErrorKind::kInvalidArtifact,
           "[ssd] expected 7 operands, 1 result and 1 state, found ", spec.in.size(), ", ", spec.out.size(), " and ",
           spec.states.size());
  const OperandSpec &x = spec.in[0], &dt = spec.in[1], &a = spec.in[2], &b = spec.in[3], &c = spec.in[4], &d = spec.in[5];
  AD_CHECK(x.shape.size() == 3 && dt.shape.size() == 2 && a.shape.size() == 1 && b.shape.size() == 3 && c.shape == b.shape,
           ErrorKind::kInvalidArtifact, "[ssd] expected x [T, H, P], dt [T, H], a [H], b and c [T, G, N], found ", describe(x),
           ", ", describe(dt), ", ", describe(a), ", ", describe(b), ", ", describe(c));
  const int64_t heads = x.shape[1].constant, p = x.shape[2].constant, groups = b.shape[1].constant, n = b.shape[2].constant;
  AD_CHECK(groups > 0 && heads % groups == 0 && dt.shape[1].constant == heads && a.shape[0].constant == heads,
           ErrorKind::kInvalidArtifact, "[ssd] expected the heads of x, dt and a to agree and to be a multiple of the groups, found ",
           describe(x), ", ", describe(dt), ", ", describe(a), ", ", describe(b));
  AD_CHECK(!d.present || (d.shape.size() == 1 && d.shape[0].constant == heads) ||
               (d.shape.size() == 2 && d.shape[0].constant == heads && d.shape[1].constant == p),
           ErrorKind::kInvalidArtifact, "[ssd] expected d [H] or [H, P], found ", describe(d));
  AD_CHECK(!spec.in[6].present || (spec.in[6].shape.size() == 1 && spec.in[6].shape[0].constant == heads), ErrorKind::kInvalidArtifact,
           "[ssd] expected dt_bias [H], found ", describe(spec.in[6]));
  const StateSpec& state = spec.states[0];
  AD_CHECK(state.kind == StateSpec::Kind::kSlot && state.components.size() == 1 &&
               state.components[0].shape == std::vector<int64_t>({heads, p, n}) && state.components[0].dtype == DType::kF32,
           ErrorKind::kInvalidArtifact, "[ssd] expected a float32 slot state [", heads, ", ", p, ", ", n, "]");
  for (const OperandSpec& o : spec.in) {
    if (o.present && o.dtype != DType::kF32) {
      *why = "serves float32 only";
      return nullptr;
    }
  }
  for (int i : {0, 3, 4}) {
    AD_CHECK(spec.in[i].stride[2] == Dim{1} || spec.in[i].shape[2] == Dim{1}, ErrorKind::kInvalidArtifact,
             "[ssd] expected contiguous channels in operand ", i);
  }
  return std::make_unique<Ssd>(spec);
}

}  // namespace autodeploy
