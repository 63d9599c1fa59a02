// rope: rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first rotary_dim channels of
// every head.
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
#include "kernels/cpu/row_op_checks.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

#define AD_ISA_SOURCE "kernels/cpu/rope_head.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

class Rope : public Kernel {
 public:
  Rope(const KernelSpec& spec, Isa isa)
      : half_(spec.in[1].shape.back().constant),
        turn_(spec.attrs.boolean("interleaved") ? AD_PICK_ISA(isa, turn_pairs)
                                                : AD_PICK_ISA(isa, turn_halves)),
        name_(std::string("rope.") + isa_name(isa)) {}
  const char* name() const override { return name_.c_str(); }

  void run(const KernelCall& call) const override {
    const TensorView &x = call.in[0], &cos = call.in[1], &sin = call.in[2], &y = call.out[0];
    const int64_t heads = x.shape[1], width = x.shape[2], rest = width - 2 * half_;
    // cos and sin [T, R2], or [T, Hn, R2] with any stride over the heads.
    const int64_t cos_head = cos.ndim == 3 ? cos.stride[1] : 0, sin_head = sin.ndim == 3 ? sin.stride[1] : 0;
    call.pool->parallel_for(x.shape[0], 1 + 8192 / (heads * width + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < heads; ++h) {
          const float* from = x.as<const float>() + t * x.stride[0] + h * x.stride[1];
          float* to = y.as<float>() + t * y.stride[0] + h * y.stride[1];
          turn_(from, cos.as<const float>() + t * cos.stride[0] + h * cos_head,
                sin.as<const float>() + t * sin.stride[0] + h * sin_head, to, half_);
          if (rest > 0 && to != from)
            std::memmove(to + 2 * half_, from + 2 * half_, static_cast<size_t>(rest) * sizeof(float));
        }
      }
    });
  }

 private:
  int64_t half_;
  void (*turn_)(const float* x, const float* cos, const float* sin, float* y, int64_t half);
  std::string name_;
};

std::unique_ptr<Kernel> make_rope(const KernelSpec& spec, std::string* why, Isa isa) {
  check_rope(spec);
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2}, why)) return nullptr;
  return std::make_unique<Rope>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(rope)

}  // namespace autodeploy
