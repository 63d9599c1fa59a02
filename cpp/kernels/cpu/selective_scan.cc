// selective_scan: the state space recurrence of Mamba (Gu and Dao 2023, arXiv:2312.00752), token by token,
// parallel over tiles of channels. Every state of every channel decays at a rate of its own, so there is no
// product of matrices in it.
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
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

// At most as many channels of one sequence as a vector has lanes.
struct ScanTile {
  int64_t tokens = 0, channels = 0, n = 0;
  const float *x = nullptr, *dt = nullptr, *b = nullptr, *c = nullptr;
  const float *bias = nullptr, *d = nullptr;  // [channels], or null
  const float* a = nullptr;                   // [n, channels]
  float* y = nullptr;
  float* state = nullptr;                                                         // [n, channels]
  int64_t x_stride = 0, dt_stride = 0, b_stride = 0, c_stride = 0, y_stride = 0;  // per token
  bool softplus = false;
};

struct ScanCode {
  int64_t lanes;
  void (*run_tile)(const ScanTile&);
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/selective_scan_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

// A state [C, N] lies tile by tile, within a tile [N, channels of the tile].
class SelectiveScan : public Kernel {
 public:
  SelectiveScan(const KernelSpec& spec, Isa isa)
      : softplus_(spec.attrs.boolean("softplus")),
        channels_(spec.in[2].shape[0].constant),
        n_(spec.in[2].shape[1].constant),
        code_(AD_PICK_ISA(isa, kScanCode)),
        name_(std::string("selective_scan.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // a in the order of the states; bias and d.
  int64_t workspace_bytes() const override {
    return (n_ + 2) * channels_ * static_cast<int64_t>(sizeof(float));
  }

  void run(const KernelCall& call) const override {
    const int64_t tiles = (channels_ + code_.lanes - 1) / code_.lanes;
    call.pool->parallel_for(tiles, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) run_channels(call, tile * code_.lanes);
    });
  }

 private:
  void run_channels(const KernelCall& call, int64_t first) const {
    const TensorView &x = call.in[0], &dt = call.in[1], &a = call.in[2], &b = call.in[3], &c = call.in[4],
                     &d = call.in[5], &bias = call.in[6], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const StateMemory& memory = *call.states[0];
    const int64_t channels = std::min(code_.lanes, channels_ - first);
    float* rates = reinterpret_cast<float*>(call.workspace) + first * n_;
    float* biases = reinterpret_cast<float*>(call.workspace) + channels_ * n_ + first;
    float* skips = biases + channels_;
    for (int64_t i = 0; i < channels; ++i) {
      const float* row = a.as<const float>() + (first + i) * a.stride[0];
      for (int64_t n = 0; n < n_; ++n) rates[n * channels + i] = row[n * a.stride[1]];
      if (bias) biases[i] = bias.as<const float>()[(first + i) * bias.stride[0]];
      if (d) skips[i] = d.as<const float>()[(first + i) * d.stride[0]];
    }
    ScanTile s;
    s.channels = channels, s.n = n_, s.a = rates, s.softplus = softplus_;
    if (bias) s.bias = biases;
    if (d) s.d = skips;
    for (int64_t seq = 0; seq < batch.num_seqs; ++seq) {
      const int64_t start = batch.query_start[seq];
      s.tokens = batch.query_start[seq + 1] - start;
      s.x = x.as<const float>() + start * x.stride[0] + first, s.x_stride = x.stride[0];
      s.dt = dt.as<const float>() + start * dt.stride[0] + first, s.dt_stride = dt.stride[0];
      s.b = b.as<const float>() + start * b.stride[0], s.b_stride = b.stride[0];
      s.c = c.as<const float>() + start * c.stride[0], s.c_stride = c.stride[0];
      s.y = y.as<float>() + start * y.stride[0] + first, s.y_stride = y.stride[0];
      s.state = reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) + first * n_;
      if (!batch.has_state[seq]) std::memset(s.state, 0, static_cast<size_t>(channels * n_) * sizeof(float));
      code_.run_tile(s);
    }
  }

  bool softplus_;
  int64_t channels_, n_;
  ScanCode code_;
  std::string name_;
};

std::unique_ptr<Kernel> make_selective_scan(const KernelSpec& spec, std::string* why, Isa isa) {
  check_selective_scan(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3, 4, 5, 6}, why)) return nullptr;
  return std::make_unique<SelectiveScan>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(selective_scan)

}  // namespace autodeploy
