// causal_conv1d: depthwise convolution over the last K tokens of each sequence, the first K - 1 of a step
// coming from its state.
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
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {
namespace {

constexpr int64_t kTileChannels = 128;

// A tile of channels of one sequence. Rows of `past` are the K - 1 inputs before the step, oldest first.
struct ConvTile {
  int64_t tokens = 0, channels = 0, taps = 0;
  const float* x = nullptr;  // [tokens, channels]
  float* y = nullptr;
  const float* past = nullptr;
  const float* weight = nullptr;  // [taps, channels], oldest tap first
  const float* bias = nullptr;    // may be null
  int64_t x_stride = 0, y_stride = 0, past_stride = 0, weight_stride = 0;
  bool silu = false;
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/causal_conv1d_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

class CausalConv1d : public Kernel {
 public:
  CausalConv1d(const KernelSpec& spec, Isa isa)
      : silu_(spec.attrs.string("activation") == "silu"),
        channels_(spec.in[1].shape[0].constant),
        taps_(spec.in[1].shape[1].constant),
        run_tile_(AD_PICK_ISA(isa, run_tile)),
        name_(std::string("causal_conv1d.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }
  // The weight with channels innermost, its bias, and zeros for sequences without a state.
  int64_t workspace_bytes() const override { return (taps_ + 1) * channels_ * 4 + taps_ * kTileChannels * 4; }

  void run(const KernelCall& call) const override {
    const int64_t tiles = (channels_ + kTileChannels - 1) / kTileChannels;
    float* weight = reinterpret_cast<float*>(call.workspace);
    float* bias = weight + taps_ * channels_;
    float* zeros = bias + channels_;
    std::memset(zeros, 0, static_cast<size_t>(taps_ * kTileChannels) * sizeof(float));
    call.pool->parallel_for(tiles, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * kTileChannels, last = std::min(channels_, first + kTileChannels);
        arrange(call, first, last, weight, bias);
        for (int64_t seq = 0; seq < call.batch->num_seqs; ++seq)
          run_one(call, seq, first, last, weight, bias, zeros);
      }
    });
  }

 private:
  void arrange(const KernelCall& call, int64_t first, int64_t last, float* weight, float* bias) const {
    const TensorView &w = call.in[1], &b = call.in[2];
    for (int64_t c = first; c < last; ++c) {
      for (int64_t k = 0; k < taps_; ++k) {
        weight[k * channels_ + c] = w.as<const float>()[c * w.stride[0] + k * w.stride[1]];
      }
      bias[c] = b ? b.as<const float>()[c * b.stride[0]] : 0.0f;
    }
  }

  void run_one(const KernelCall& call, int64_t seq, int64_t first, int64_t last, const float* weight,
               const float* bias, const float* zeros) const {
    const TensorView &x = call.in[0], &y = call.out[0];
    const StepBatch& batch = *call.batch;
    const int64_t start = batch.query_start[seq], tokens = batch.query_start[seq + 1] - start,
                  width = taps_ - 1;
    const StateMemory& memory = *call.states[0];
    float* state = reinterpret_cast<float*>(memory.data[0] + batch.slot[seq] * memory.bytes[0]) + first;
    ConvTile tile;
    tile.tokens = tokens, tile.channels = last - first, tile.taps = taps_;
    tile.x = x.as<const float>() + start * x.stride[0] + first, tile.x_stride = x.stride[0];
    tile.y = y.as<float>() + start * y.stride[0] + first, tile.y_stride = y.stride[0];
    tile.past = batch.has_state[seq] ? state : zeros;
    tile.past_stride = batch.has_state[seq] ? channels_ : kTileChannels;
    tile.weight = weight + first, tile.weight_stride = channels_;
    tile.bias = bias + first;
    tile.silu = silu_;
    run_tile_(tile);
    // The last K - 1 inputs become the state; rows move towards the front, so a row is read before it is
    // overwritten.
    const size_t bytes = static_cast<size_t>(tile.channels) * sizeof(float);
    for (int64_t i = 0; i < width; ++i) {
      const int64_t t = tokens - width + i;
      const float* from = t >= 0 ? tile.x + t * tile.x_stride : tile.past + (width + t) * tile.past_stride;
      std::memmove(state + i * channels_, from, bytes);
    }
  }

  bool silu_;
  int64_t channels_, taps_;
  void (*run_tile_)(const ConvTile&);
  std::string name_;
};

std::unique_ptr<Kernel> make_causal_conv1d(const KernelSpec& spec, std::string* why, Isa isa) {
  check_causal_conv1d(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2}, why)) return nullptr;
  if (spec.states[0].components[0].dtype != DType::kF32) {
    *why = "serves float32 states only";
    return nullptr;
  }
  return std::make_unique<CausalConv1d>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(causal_conv1d)

}  // namespace autodeploy
