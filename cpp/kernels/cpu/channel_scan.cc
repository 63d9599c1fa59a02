// linear_scan (a recurrence of first order, as in arXiv:2402.19427) and wkv (arXiv:2305.13048): recurrences
// of independent channels, token by token, parallel over sequences and tiles of channels.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
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

constexpr int64_t kTileChannels = 128;

// Channels of one sequence; strides are per token.
struct LinearScanTile {
  int64_t tokens = 0, channels = 0, x_stride = 0, a_stride = 0, y_stride = 0;
  const float *x = nullptr, *a = nullptr;
  float *y = nullptr, *h = nullptr;
};

struct WkvTile {
  int64_t tokens = 0, channels = 0, k_stride = 0, v_stride = 0, y_stride = 0;
  const float *k = nullptr, *v = nullptr, *decay = nullptr, *bonus = nullptr;
  float *y = nullptr, *num = nullptr, *den = nullptr, *max = nullptr;
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/channel_scan_tile.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

// Component `i` of a sequence's state, from channel `first` on; set to `initial` where no earlier step left
// one.
float* state_of(const KernelCall& call, int64_t seq, size_t i, int64_t first, int64_t count, float initial) {
  const StateMemory& memory = *call.states[0];
  uint8_t* slot = memory.data[i] + call.batch->slot[seq] * memory.bytes[i];
  float* state = reinterpret_cast<float*>(slot) + first;
  if (!call.batch->has_state[seq]) std::fill_n(state, count, initial);
  return state;
}

// Calls fn(sequence, first channel, number of channels) for every tile.
template <typename Fn>
void for_each_tile(const KernelCall& call, int64_t channels, const Fn& fn) {
  const int64_t tiles = (channels + kTileChannels - 1) / kTileChannels;
  call.pool->parallel_for(call.batch->num_seqs * tiles, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % tiles * kTileChannels;
      fn(i / tiles, first, std::min(kTileChannels, channels - first));
    }
  });
}

class LinearScan : public Kernel {
 public:
  LinearScan(const KernelSpec& spec, Isa isa)
      : channels_(spec.in[0].shape[1].constant),
        run_(AD_PICK_ISA(isa, run_linear_scan)),
        name_(std::string("linear_scan.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }

  void run(const KernelCall& call) const override {
    for_each_tile(call, channels_, [&](int64_t seq, int64_t first, int64_t count) {
      const TensorView &x = call.in[0], &a = call.in[1], &y = call.out[0];
      const int64_t start = call.batch->query_start[seq];
      LinearScanTile s;
      s.tokens = call.batch->query_start[seq + 1] - start, s.channels = count;
      s.x = x.as<const float>() + start * x.stride[0] + first, s.x_stride = x.stride[0];
      s.a = a.as<const float>() + start * a.stride[0] + first, s.a_stride = a.stride[0];
      s.y = y.as<float>() + start * y.stride[0] + first, s.y_stride = y.stride[0];
      s.h = state_of(call, seq, 0, first, count, 0.0f);
      run_(s);
    });
  }

 private:
  int64_t channels_;
  void (*run_)(const LinearScanTile&);
  std::string name_;
};

class Wkv : public Kernel {
 public:
  Wkv(const KernelSpec& spec, Isa isa)
      : channels_(spec.in[0].shape[1].constant),
        run_(AD_PICK_ISA(isa, run_wkv)),
        name_(std::string("wkv.") + isa_name(isa)) {}

  const char* name() const override { return name_.c_str(); }

  void run(const KernelCall& call) const override {
    for_each_tile(call, channels_, [&](int64_t seq, int64_t first, int64_t count) {
      const TensorView &k = call.in[0], &v = call.in[1], &y = call.out[0];
      const int64_t start = call.batch->query_start[seq];
      WkvTile s;
      s.tokens = call.batch->query_start[seq + 1] - start, s.channels = count;
      s.k = k.as<const float>() + start * k.stride[0] + first, s.k_stride = k.stride[0];
      s.v = v.as<const float>() + start * v.stride[0] + first, s.v_stride = v.stride[0];
      s.y = y.as<float>() + start * y.stride[0] + first, s.y_stride = y.stride[0];
      s.decay = call.in[2].as<const float>() + first, s.bonus = call.in[3].as<const float>() + first;
      s.num = state_of(call, seq, 0, first, count, 0.0f);
      s.den = state_of(call, seq, 1, first, count, 0.0f);
      s.max = state_of(call, seq, 2, first, count, -std::numeric_limits<float>::infinity());
      run_(s);
    });
  }

 private:
  int64_t channels_;
  void (*run_)(const WkvTile&);
  std::string name_;
};

std::unique_ptr<Kernel> make_linear_scan(const KernelSpec& spec, std::string* why, Isa isa) {
  check_linear_scan(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1}, why)) return nullptr;
  return std::make_unique<LinearScan>(spec, isa);
}

std::unique_ptr<Kernel> make_wkv(const KernelSpec& spec, std::string* why, Isa isa) {
  check_wkv(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3}, why)) return nullptr;
  return std::make_unique<Wkv>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(linear_scan)
AD_CPU_FACTORIES(wkv)

}  // namespace autodeploy
