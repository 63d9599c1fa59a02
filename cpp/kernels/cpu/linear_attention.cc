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
#include "kernels/cpu/mixer_checks.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

#define AD_ISA_SOURCE "kernels/cpu/matrix_memory_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

class LinearAttention : public Kernel {
 public:
  LinearAttention(const KernelSpec& spec, Isa isa, ScanForm form)
      : scale_(static_cast<float>(spec.attrs.number("scale"))),
        heads_(spec.in[1].shape[1].constant),
        width_(spec.in[1].shape[2].constant),
        value_width_(spec.in[2].shape[2].constant),
        max_tokens_(spec.max_tokens),
        num_threads_(spec.num_threads),
        chunked_(form != ScanForm::kTokens),
        code_(AD_PICK_ISA(isa, kMatrixMemoryCode)),
        name_(std::string("linear_attention.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // What the memory keeps at each step, head by head; scratch of threads.
  int64_t workspace_bytes() const override {
    const int64_t scratch = chunked_ ? num_threads_ * matrix_memory_scratch(width_, value_width_) : 0;
    return (heads_ * max_tokens_ + scratch) * static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    call.pool->parallel_for(heads_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t head = begin; head < end; ++head) prepare(call, head);
    });
    run_matrix_memory(call, heads_, value_width_, code_, chunked_ ? keep_of(call, heads_) : nullptr,
                      [&](int64_t seq, int64_t head) { return tile_of(call, seq, head); });
  }

 private:
  float* keep_of(const KernelCall& call, int64_t head) const {
    return reinterpret_cast<float*>(call.workspace) + head * max_tokens_;
  }

  // What each token keeps of the memory, and the empty memory of sequences that begin.
  void prepare(const KernelCall& call, int64_t head) const {
    const TensorView &gate = call.in[3], &decay = call.in[4];
    const float rate = decay ? decay.as<const float>()[head * decay.stride[0]] : 0.0f;
    for (int64_t seq = 0; seq < call.batch->num_seqs; ++seq) {
      if (!call.batch->has_state[seq]) std::fill_n(state_of(call, seq, head), width_ * value_width_, 0.0f);
    }
    float* keep = keep_of(call, head);
    const int64_t tokens = call.batch->num_tokens;
    if (!gate) {
      std::fill(keep, keep + tokens, std::exp(rate));
      return;
    }
    const float* g = gate.as<const float>() + head * gate.stride[1];
    for (int64_t t = 0; t < tokens; ++t) keep[t] = std::exp(g[t * gate.stride[0]] + rate);
  }

  MatrixMemoryTile tile_of(const KernelCall& call, int64_t seq, int64_t head) const {
    const TensorView &q = call.in[0], &k = call.in[1], &v = call.in[2], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const int64_t start = batch.query_start[seq];
    MatrixMemoryTile m;
    m.tokens = batch.query_start[seq + 1] - start;
    m.width = width_, m.columns = value_width_;
    m.q = q.as<const float>() + start * q.stride[0] + head * q.stride[1], m.q_stride = q.stride[0];
    m.k = k.as<const float>() + start * k.stride[0] + head * k.stride[1], m.k_stride = k.stride[0];
    m.v = v.as<const float>() + start * v.stride[0] + head * v.stride[1], m.v_stride = v.stride[0];
    m.y = y.as<float>() + start * y.stride[0] + head * y.stride[1], m.y_stride = y.stride[0];
    m.keep = keep_of(call, head) + start;
    m.scale = scale_;
    m.state = state_of(call, seq, head), m.state_stride = value_width_;
    return m;
  }

  float* state_of(const KernelCall& call, int64_t seq, int64_t head) const {
    const StateMemory& memory = *call.states[0];
    uint8_t* slot = memory.data[0] + call.batch->slot[seq] * memory.bytes[0];
    return reinterpret_cast<float*>(slot) + head * width_ * value_width_;
  }

  float scale_;
  int64_t heads_, width_, value_width_, max_tokens_, num_threads_;
  bool chunked_;
  MatrixMemoryCode code_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Kernel> make_linear_attention(const KernelSpec& spec, std::string* why, Isa isa,
                                              ScanForm form) {
  check_linear_attention(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  return std::make_unique<LinearAttention>(spec, isa, form);
}

AD_CPU_FACTORIES(linear_attention)

}  // namespace autodeploy
