// gated_delta_rule: linear attention with a memory that is corrected and decays (arXiv:2412.06464,
// arXiv:2510.26692). Parallel over sequences, value heads and columns of their states.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/half.h"
#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/mixer_checks.h"
#include "kernels/cpu/scan_form.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

constexpr int64_t kDeltaChunk = 32;    // tokens of a chunk, counted from a sequence's first token of the step
constexpr int64_t kLeastOfChunk = 16;  // fewer are taken one by one

// Some tokens of one value head of one sequence. Strides are per token, in floats.
struct DeltaHead {
  int64_t tokens = 0, dk = 0, dv = 0, first_column = 0, last_column = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr, *beta = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr;  // what q and k are multiplied by
  const float *decay = nullptr, *k_decayed = nullptr;
  float* y = nullptr;
  float* state = nullptr;  // [dk, dv], in panels of columns
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, beta_stride = 0, norm_stride = 0, y_stride = 0;
  int64_t decay_stride = 0, decay_step = 0;  // a token's decay of key channel i is decay[i * decay_step]
  float scale = 1.0f;
};

struct DeltaCode {
  int64_t columns;  // of a panel
  float (*inverse_norm)(const float* x, int64_t n, float eps);
  void (*decays)(const DeltaHead&, const float* g, int64_t g_stride, float* decay, float* k_decayed);
  void (*tokens)(const DeltaHead&);
  void (*chunk)(const DeltaHead&, const float* g, int64_t g_stride, float* scratch);
  void (*chunk_channels)(const DeltaHead&, const float* g, int64_t g_stride, float* scratch);
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/gated_delta_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

class GatedDeltaRule : public Kernel {
 public:
  GatedDeltaRule(const KernelSpec& spec, Isa isa, ScanForm form)
      : scale_(static_cast<float>(spec.attrs.number("scale"))),
        eps_(static_cast<float>(spec.attrs.number("eps"))),
        l2norm_(spec.attrs.boolean("l2norm")),
        per_channel_(spec.in[3].present && spec.in[3].shape.size() == 3),
        chunked_(form != ScanForm::kTokens),
        key_heads_(spec.in[1].shape[1].constant),
        dk_(spec.in[1].shape[2].constant),
        heads_(spec.in[2].shape[1].constant),
        dv_(spec.in[2].shape[2].constant),
        max_tokens_(spec.max_tokens),
        num_threads_(spec.num_threads),
        code_(AD_PICK_ISA(isa, kDeltaCode)),
        name_(std::string("gated_delta_rule.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // Factors of q and k, [T, Hk] each; each thread's own.
  int64_t workspace_bytes() const override {
    return (2 * max_tokens_ * key_heads_ + num_threads_ * thread_floats()) *
           static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    const StepBatch& batch = *call.batch;
    float* norms = reinterpret_cast<float*>(call.workspace);
    call.pool->parallel_for(batch.num_tokens * key_heads_, 16, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) set_norms(call, i / key_heads_, i % key_heads_, norms);
    });
    const int64_t parts = (dv_ + code_.columns - 1) / code_.columns;
    call.pool->parallel_for(batch.num_seqs * heads_ * parts, 1, [&](int64_t begin, int64_t end, int thread) {
      float* scratch = norms + 2 * max_tokens_ * key_heads_ + thread * thread_floats();
      for (int64_t i = begin; i < end; ++i) {
        const int64_t column = i % parts * code_.columns, head = i / parts % heads_;
        run_columns(call, i / parts / heads_, head, column, scratch);
      }
    });
  }

 private:
  // Decays and decayed keys; or of a chunk the keys and queries, the keys turned, two squares,
  // five rows, and what is written. With a decay per channel also the decays and what is read with.
  int64_t thread_floats() const {
    const int64_t tokens = 2 * kDeltaChunk * dk_;
    if (!chunked_) return tokens;
    const int64_t square = 2 * kDeltaChunk;
    return std::max(tokens, per_channel_ ? kDeltaChunk * (5 * dk_ + square + 2 + dv_) + dk_
                                         : kDeltaChunk * (3 * dk_ + square + 5 + dv_));
  }

  void set_norms(const KernelCall& call, int64_t t, int64_t head, float* norms) const {
    for (int i = 0; i < 2; ++i) {
      const TensorView& x = call.in[i];
      float* to = norms + i * max_tokens_ * key_heads_ + t * key_heads_ + head;
      const float* row = x.as<const float>() + t * x.stride[0] + head * x.stride[1];
      *to = l2norm_ ? code_.inverse_norm(row, dk_, eps_) : 1.0f;
    }
  }

  void run_columns(const KernelCall& call, int64_t seq, int64_t head, int64_t column, float* scratch) const {
    const TensorView &q = call.in[0], &k = call.in[1], &v = call.in[2], &g = call.in[3], &beta = call.in[4],
                     &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const StateMemory& memory = *call.states[0];
    const int64_t group = head / (heads_ / key_heads_), stop = batch.query_start[seq + 1];
    // A sequence that is taken in chunks is taken with all columns, by the first of their jobs.
    const bool all_columns = chunked_ && stop - batch.query_start[seq] >= kLeastOfChunk;
    if (all_columns && column > 0) return;
    const float* norms = reinterpret_cast<const float*>(call.workspace);
    DeltaHead s;
    s.dk = dk_, s.dv = dv_, s.first_column = column,
    s.last_column = all_columns ? dv_ : std::min(dv_, column + code_.columns);
    s.state = reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) + head * dk_ * dv_;
    s.q_stride = q.stride[0], s.k_stride = k.stride[0], s.v_stride = v.stride[0], s.y_stride = y.stride[0];
    s.beta_stride = beta.stride[0], s.norm_stride = key_heads_, s.scale = scale_;
    s.decay = scratch, s.k_decayed = scratch + kDeltaChunk * dk_;
    s.decay_stride = per_channel_ ? dk_ : 1, s.decay_step = per_channel_ ? 1 : 0;
    if (!batch.has_state[seq]) {
      std::memset(s.state + column * dk_, 0,
                  static_cast<size_t>((s.last_column - column) * dk_) * sizeof(float));
    }
    for (int64_t t = batch.query_start[seq]; t < stop; t += kDeltaChunk) {
      s.tokens = std::min(kDeltaChunk, stop - t);
      s.q = q.as<const float>() + t * q.stride[0] + group * q.stride[1];
      s.k = k.as<const float>() + t * k.stride[0] + group * k.stride[1];
      s.v = v.as<const float>() + t * v.stride[0] + head * v.stride[1];
      s.y = y.as<float>() + t * y.stride[0] + head * y.stride[1];
      s.beta = beta.as<const float>() + t * beta.stride[0] + head * beta.stride[1];
      s.q_norm = norms + t * key_heads_ + group, s.k_norm = s.q_norm + max_tokens_ * key_heads_;
      const float* gate = g ? g.as<const float>() + t * g.stride[0] + head * g.stride[1] : nullptr;
      const int64_t gate_stride = g ? g.stride[0] : 0;
      if (all_columns && s.tokens >= kLeastOfChunk) {
        (per_channel_ ? code_.chunk_channels : code_.chunk)(s, gate, gate_stride, scratch);
      } else {
        code_.decays(s, gate, gate_stride, scratch, scratch + kDeltaChunk * dk_);
        code_.tokens(s);
      }
    }
  }

  float scale_, eps_;
  bool l2norm_, per_channel_, chunked_;
  int64_t key_heads_, dk_, heads_, dv_, max_tokens_, num_threads_;
  DeltaCode code_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Kernel> make_gated_delta_rule(const KernelSpec& spec, std::string* why, Isa isa,
                                              ScanForm form) {
  check_gated_delta_rule(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  return std::make_unique<GatedDeltaRule>(spec, isa, form);
}

AD_CPU_FACTORIES(gated_delta_rule)

}  // namespace autodeploy
