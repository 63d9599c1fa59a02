// mlstm: an outer-product memory with exponential gates (Beck et al. 2024, arXiv:2405.04517), parallel over
// sequences and heads. Chunks of a prefill are products of matrices; few tokens are taken one by one.
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

float log_sigmoid(float x) { return std::min(x, 0.0f) - std::log1p(std::exp(-std::fabs(x))); }

class Mlstm : public Kernel {
 public:
  Mlstm(const KernelSpec& spec, Isa isa, ScanForm form)
      : scale_(static_cast<float>(spec.attrs.number("scale"))),
        eps_(static_cast<float>(spec.attrs.number("eps"))),
        heads_(spec.in[1].shape[1].constant),
        width_(spec.in[1].shape[2].constant),
        value_width_(spec.in[2].shape[2].constant),
        max_tokens_(spec.max_tokens),
        num_threads_(spec.num_threads),
        chunked_(form != ScanForm::kTokens),
        code_(AD_PICK_ISA(isa, kMatrixMemoryCode)),
        name_(std::string("mlstm.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // Head by head, for each token: what the memory keeps, what it adds, and what its answer is divided by;
  // scratch of threads.
  int64_t workspace_bytes() const override {
    const int64_t scratch = chunked_ ? num_threads_ * matrix_memory_scratch(width_, value_width_) : 0;
    return (3 * heads_ * max_tokens_ + scratch) * static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    call.pool->parallel_for(call.batch->num_seqs * heads_, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) run_gates(call, i / heads_, i % heads_);
    });
    run_matrix_memory(call, heads_, value_width_, code_, chunked_ ? workspace(call, heads_, 0) : nullptr,
                      [&](int64_t seq, int64_t head) { return tile_of(call, seq, head); });
  }

 private:
  float* workspace(const KernelCall& call, int64_t head, int64_t which) const {
    return reinterpret_cast<float*>(call.workspace) + (3 * head + which) * max_tokens_;
  }

  float* state(const KernelCall& call, int64_t seq, size_t component, int64_t offset) const {
    const StateMemory& memory = *call.states[0];
    uint8_t* slot = memory.data[component] + call.batch->slot[seq] * memory.bytes[component];
    return reinterpret_cast<float*>(slot) + offset;
  }

  // The stabiliser m and the normaliser n, and with them everything that is one number per token.
  void run_gates(const KernelCall& call, int64_t seq, int64_t head) const {
    const TensorView &q = call.in[0], &k = call.in[1], &input = call.in[3], &forget = call.in[4];
    const StepBatch& batch = *call.batch;
    float *n = state(call, seq, 1, head * width_), *m = state(call, seq, 2, head);
    if (!batch.has_state[seq]) {
      std::fill_n(n, width_, 0.0f), *m = 0.0f;
      std::fill_n(state(call, seq, 0, head * width_ * value_width_), width_ * value_width_, 0.0f);
    }
    float *keep = workspace(call, head, 0), *add = workspace(call, head, 1),
          *weight = workspace(call, head, 2);
    for (int64_t t = batch.query_start[seq]; t < batch.query_start[seq + 1]; ++t) {
      const float let = input.as<const float>()[t * input.stride[0] + head * input.stride[1]];
      const float stay =
          log_sigmoid(forget.as<const float>()[t * forget.stride[0] + head * forget.stride[1]]) + *m;
      *m = std::max(stay, let);
      keep[t] = std::exp(stay - *m), add[t] = std::exp(let - *m);
      const float* query = q.as<const float>() + t * q.stride[0] + head * q.stride[1];
      const float* key = k.as<const float>() + t * k.stride[0] + head * k.stride[1];
      float dot = 0.0f;
      for (int64_t d = 0; d < width_; ++d) {
        n[d] = keep[t] * n[d] + add[t] * key[d];
        dot += query[d] * n[d];
      }
      weight[t] = std::max(std::fabs(scale_ * dot), std::exp(-*m)) + eps_;
    }
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
    m.keep = workspace(call, head, 0) + start, m.add = workspace(call, head, 1) + start;
    m.weight = workspace(call, head, 2) + start;
    m.scale = scale_;
    m.state = state(call, seq, 0, head * width_ * value_width_), m.state_stride = value_width_;
    return m;
  }

  float scale_, eps_;
  int64_t heads_, width_, value_width_, max_tokens_, num_threads_;
  bool chunked_;
  MatrixMemoryCode code_;
  std::string name_;
};

}  // namespace

std::unique_ptr<Kernel> make_mlstm(const KernelSpec& spec, std::string* why, Isa isa, ScanForm form) {
  check_mlstm(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4}, why)) return nullptr;
  return std::make_unique<Mlstm>(spec, isa, form);
}

AD_CPU_FACTORIES(mlstm)

}  // namespace autodeploy
