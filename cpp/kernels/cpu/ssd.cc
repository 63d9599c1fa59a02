// ssd: the state space recurrence of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060), parallel over heads and
// sequences. Chunks of a prefill are products of matrices (section 6 of the paper); few tokens are taken one
// by one.
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
#include "kernels/cpu/mixer_checks.h"
#include "kernels/cpu/scan_form.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

constexpr int64_t kSsdChunk = 64;      // tokens of a chunk, counted from a sequence's first token of the step
constexpr int64_t kLeastOfChunk = 16;  // fewer are taken one by one

// At most kSsdChunk tokens of one head of one sequence. Strides are per token, in floats.
struct SsdHead {
  int64_t tokens = 0, p = 0, n = 0;
  const float *x = nullptr, *b = nullptr, *c = nullptr;
  const float *dt = nullptr, *log_decay = nullptr, *decay = nullptr;  // [tokens]: dt, dt * a, exp(dt * a)
  const float* d = nullptr;                                           // [p]
  float* y = nullptr;
  int64_t x_stride = 0, b_stride = 0, c_stride = 0, y_stride = 0, score_stride = 0;
  float* state = nullptr;  // [n, p]
};

struct SsdCode {
  void (*steps)(int64_t tokens, float a, bool has_softplus, float least, float most, float* dt,
                float* log_decay, float* decay);
  void (*tokens)(const SsdHead&);
  void (*scores)(const SsdHead&, float* turned, float* scores);
  void (*chunk)(const SsdHead&, const float* scores, float* scratch);
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/ssd_head.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

// A head's state [P, N] lies as [N, P].
class Ssd : public Kernel {
 public:
  Ssd(const KernelSpec& spec, Isa isa, ScanForm form)
      : softplus_(spec.attrs.boolean("softplus")),
        chunked_(form != ScanForm::kTokens),
        dt_min_(static_cast<float>(spec.attrs.number("dt_min"))),
        dt_max_(static_cast<float>(spec.attrs.number("dt_max"))),
        heads_(spec.in[0].shape[1].constant),
        p_(spec.in[0].shape[2].constant),
        groups_(spec.in[3].shape[1].constant),
        n_(spec.in[3].shape[2].constant),
        max_tokens_(spec.max_tokens),
        num_threads_(spec.num_threads),
        code_(AD_PICK_ISA(isa, kSsdCode)),
        name_(std::string("ssd.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override {
    const int64_t scores = chunked_ ? max_tokens_ * groups_ * kSsdChunk : 0;
    return (scores + num_threads_ * thread_floats()) * static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    const StepBatch& batch = *call.batch;
    int64_t longest = 0;
    for (int64_t i = 0; i < batch.num_seqs; ++i) longest = std::max(longest, length(batch, i));
    if (chunked_ && longest >= kLeastOfChunk) {
      // The heads of a group share the products of its b and c.
      const int64_t chunks = (longest + kSsdChunk - 1) / kSsdChunk;
      call.pool->parallel_for(
          batch.num_seqs * groups_ * chunks, 1, [&](int64_t begin, int64_t end, int thread) {
            for (int64_t i = begin; i < end; ++i)
              run_scores(call, i / chunks / groups_, i / chunks % groups_, i % chunks * kSsdChunk, thread);
          });
    }
    call.pool->parallel_for(batch.num_seqs * heads_, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) run_head(call, i / heads_, i % heads_, thread);
    });
  }

 private:
  static int64_t length(const StepBatch& batch, int64_t seq) {
    return batch.query_start[seq + 1] - batch.query_start[seq];
  }
  // Of a chunk: weights, three rows and scaled x, or b with tokens innermost; dt, its logarithm and decay; d.
  int64_t thread_floats() const {
    const int64_t chunk = kSsdChunk * (kSsdChunk + 3 + p_), turned = kSsdChunk * n_;
    return chunked_ ? std::max(chunk, turned) + own_floats() : own_floats();
  }
  int64_t own_floats() const { return 3 * kSsdChunk + (p_ + 15) / 16 * 16; }
  float* scores(const KernelCall& call, int64_t token, int64_t group) const {
    return reinterpret_cast<float*>(call.workspace) + (group * max_tokens_ + token) * kSsdChunk;
  }
  float* scratch(const KernelCall& call, int64_t thread) const {
    return reinterpret_cast<float*>(call.workspace) + (chunked_ ? max_tokens_ * groups_ * kSsdChunk : 0) +
           thread * thread_floats();
  }

  // Operands of at most kSsdChunk tokens from `token` on.
  SsdHead make_head(const KernelCall& call, int64_t token, int64_t tokens, int64_t head,
                    int64_t group) const {
    const TensorView &x = call.in[0], &b = call.in[3], &c = call.in[4], &y = call.out[0];
    SsdHead h;
    h.tokens = tokens, h.p = p_, h.n = n_, h.score_stride = kSsdChunk;
    h.x = x.as<const float>() + token * x.stride[0] + head * x.stride[1], h.x_stride = x.stride[0];
    h.b = b.as<const float>() + token * b.stride[0] + group * b.stride[1], h.b_stride = b.stride[0];
    h.c = c.as<const float>() + token * c.stride[0] + group * c.stride[1], h.c_stride = c.stride[0];
    h.y = y.as<float>() + token * y.stride[0] + head * y.stride[1], h.y_stride = y.stride[0];
    return h;
  }

  void run_scores(const KernelCall& call, int64_t seq, int64_t group, int64_t first, int64_t thread) const {
    const int64_t tokens = std::min(kSsdChunk, length(*call.batch, seq) - first);
    if (tokens < kLeastOfChunk) return;
    const int64_t token = call.batch->query_start[seq] + first;
    code_.scores(make_head(call, token, tokens, 0, group), scratch(call, thread), scores(call, token, group));
  }

  void run_head(const KernelCall& call, int64_t seq, int64_t head, int64_t thread) const {
    const TensorView &dt = call.in[1], &a = call.in[2], &d = call.in[5], &bias = call.in[6];
    const StepBatch& batch = *call.batch;
    const StateMemory& memory = *call.states[0];
    const int64_t group = head / (heads_ / groups_), stop = batch.query_start[seq + 1];
    float* own = scratch(call, thread) + thread_floats() - own_floats();
    float *dts = own, *log_decay = dts + kSsdChunk, *decay = log_decay + kSsdChunk, *skip = decay + kSsdChunk;
    const float rate = a.as<const float>()[head * a.stride[0]];
    const float shift = bias ? bias.as<const float>()[head * bias.stride[0]] : 0.0f;
    for (int64_t i = 0; i < p_; ++i)
      skip[i] = d ? d.as<const float>()[head * d.stride[0] + (d.ndim == 2 ? i * d.stride[1] : 0)] : 0.0f;
    float* state =
        reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) + head * p_ * n_;
    if (!batch.has_state[seq]) std::memset(state, 0, static_cast<size_t>(p_ * n_) * sizeof(float));
    std::memset(dts, 0, kSsdChunk * sizeof(float));
    for (int64_t t = batch.query_start[seq]; t < stop; t += kSsdChunk) {
      SsdHead h = make_head(call, t, std::min(kSsdChunk, stop - t), head, group);
      for (int64_t i = 0; i < h.tokens; ++i)
        dts[i] = dt.as<const float>()[(t + i) * dt.stride[0] + head * dt.stride[1]] + shift;
      code_.steps(h.tokens, rate, softplus_, dt_min_, dt_max_, dts, log_decay, decay);
      h.dt = dts, h.log_decay = log_decay, h.decay = decay, h.d = skip, h.state = state;
      if (chunked_ && h.tokens >= kLeastOfChunk) {
        code_.chunk(h, scores(call, t, group), scratch(call, thread));
      } else {
        code_.tokens(h);
      }
    }
  }

  bool softplus_, chunked_;
  float dt_min_, dt_max_;
  int64_t heads_, p_, groups_, n_, max_tokens_, num_threads_;
  SsdCode code_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Kernel> make_ssd(const KernelSpec& spec, std::string* why, Isa isa, ScanForm form) {
  check_ssd(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4, 5, 6}, why)) return nullptr;
  return std::make_unique<Ssd>(spec, isa, form);
}

AD_CPU_FACTORIES(ssd)

}  // namespace autodeploy
