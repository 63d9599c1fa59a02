// rms_norm (Zhang and Sennrich 2019), layer_norm (Ba et al. 2016), and both with a residual addition before.
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

// One row. x + residual is stored to sum where a residual is given; y may be any of the inputs.
struct NormRow {
  const float *x = nullptr, *residual = nullptr, *weight = nullptr, *bias = nullptr;
  float *y = nullptr, *sum = nullptr;
  int64_t len = 0;
  float eps = 0, offset = 0;  // y = xhat * (offset + weight)
};

}  // namespace
}  // namespace autodeploy

#define AD_ISA_SOURCE "kernels/cpu/norm_row.inc"
#include "kernels/cpu/foreach_isa.inc"
#undef AD_ISA_SOURCE

namespace autodeploy {
namespace {

using RowFn = void (*)(const NormRow&);

// Operands: x, [residual], weight, [bias]; results: y, [sum].
class Norm : public Kernel {
 public:
  Norm(const KernelSpec& spec, Isa isa, RowFn fn, bool residual, bool bias)
      : fn_(fn),
        residual_(residual),
        bias_(bias),
        eps_(static_cast<float>(spec.attrs.number("eps"))),
        offset_(bias ? 0.0f : static_cast<float>(spec.attrs.number("offset"))),
        name_(spec.op + "." + isa_name(isa)) {}
  const char* name() const override { return name_.c_str(); }
  void run(const KernelCall& call) const override {
    const int64_t len = call.in[0].shape[call.in[0].ndim - 1];
    const RowView x(call.in[0], 1), y(call.out[0], 1), residual(call.in[residual_ ? 1 : 0], 1),
        sum(call.out[residual_ ? 1 : 0], 1);
    const int64_t grain = 1 + 8192 / (len + 1);  // small work stays on one thread
    call.pool->parallel_for(x.rows(), grain, [&](int64_t begin, int64_t end, int) {
      NormRow row;
      row.len = len, row.eps = eps_, row.offset = offset_;
      row.weight = call.in[residual_ ? 2 : 1].as<const float>();
      if (bias_) row.bias = call.in[residual_ ? 3 : 2].as<const float>();
      for (int64_t r = begin; r < end; ++r) {
        row.x = x.row(r);
        row.y = y.row(r);
        if (residual_) row.residual = residual.row(r), row.sum = sum.row(r);
        fn_(row);
      }
    });
  }

 private:
  RowFn fn_;
  bool residual_, bias_;
  float eps_, offset_;
  std::string name_;
};

std::unique_ptr<Kernel> make(const KernelSpec& spec, std::string* why, Isa isa, RowFn fn, bool residual,
                             bool bias) {
  const SpecCheck check(spec);
  check.arity(size_t{2} + residual + bias, residual ? 2 : 1);
  const OperandSpec& x = check.input(0, "x [M, H]", 1, 1, true);
  check.that(check.static_dim(x, "x", x.shape.size() - 1) > 0, "rows that are not empty",
             shape_text(x.shape));
  if (residual) check.shape(check.input(1, "residual [M, H]", 1, 1, true), "residual", x.shape);
  for (size_t i = residual ? 2 : 1; i < spec.in.size(); ++i) {
    if (const OperandSpec* w = check.optional_input(i, "weight or bias [H]", 1, 1))
      check.shape(*w, "weight or bias", {x.shape.back()});
  }
  for (size_t i = 0; i < spec.out.size(); ++i)
    check.shape(check.output(i, "a result [M, H]", 1, 1, true), "a result", x.shape);
  check.finite("eps");
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1}, why)) return nullptr;
  return std::make_unique<Norm>(spec, isa, fn, residual, bias);
}

std::unique_ptr<Kernel> make_rms_norm(const KernelSpec& spec, std::string* why, Isa isa) {
  return make(spec, why, isa, AD_PICK_ISA(isa, rms_row), false, false);
}
std::unique_ptr<Kernel> make_add_rms_norm(const KernelSpec& spec, std::string* why, Isa isa) {
  return make(spec, why, isa, AD_PICK_ISA(isa, rms_row), true, false);
}
std::unique_ptr<Kernel> make_layer_norm(const KernelSpec& spec, std::string* why, Isa isa) {
  return make(spec, why, isa, AD_PICK_ISA(isa, layer_row), false, true);
}
std::unique_ptr<Kernel> make_add_layer_norm(const KernelSpec& spec, std::string* why, Isa isa) {
  return make(spec, why, isa, AD_PICK_ISA(isa, layer_row), true, true);
}

}  // namespace

AD_CPU_FACTORIES(rms_norm)
AD_CPU_FACTORIES(add_rms_norm)
AD_CPU_FACTORIES(layer_norm)
AD_CPU_FACTORIES(add_layer_norm)

}  // namespace autodeploy
