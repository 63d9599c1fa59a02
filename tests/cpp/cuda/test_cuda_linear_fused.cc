// linear with a norm before and a region after it in one kernel, on the emulated device, against the parts
// one by one by the plain kernels.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda_testing.h"
#include "kernels/generic/region.h"

namespace autodeploy::cuda {
namespace {

enum class Norm { kNone, kNorm, kAddNorm };

struct Case {
  DType dtype = DType::kBF16;
  Norm norm = Norm::kNone;
  int64_t m = 1, n = 8, k = 16;
  std::vector<int64_t> slices = {};  // none: no region
  int64_t slice_stride = 1, outputs = 0;
  const RegionProgram* region = nullptr;
  bool bias = false, f32_norm_weight = false, keeps_normed = false;
};

std::string text(const Case& c) {
  return std::string(dtype_name(c.dtype)) + " norm " + std::to_string(static_cast<int>(c.norm)) + " m " +
         std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) + " slices " +
         std::to_string(c.slices.size()) + " stride " + std::to_string(c.slice_stride);
}

class Numbers {
 public:
  explicit Numbers(const Case& c)
      : dtype_(c.dtype), random_(static_cast<unsigned>(c.m + 31 * c.n + 1009 * c.k)) {}
  std::unique_ptr<Halves> halves(int64_t n, float scale = 1) {
    auto h = std::make_unique<Halves>(dtype_, static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) h->set(static_cast<size_t>(i), scale * uniform_(random_));
    return h;
  }
  std::vector<float> floats(int64_t n) {
    std::vector<float> v(static_cast<size_t>(n));
    for (float& x : v) x = uniform_(random_);
    return v;
  }

 private:
  DType dtype_;
  std::mt19937 random_;
  std::uniform_real_distribution<float> uniform_{-1, 1};
};

void expect_close(Halves& found, Halves& expected, int64_t n, const char* what) {
  float most = 0;
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::abs(expected.get(static_cast<size_t>(i))));
  const float tolerance = expected.dtype == DType::kBF16 ? 0.02f : 0.003f;
  for (int64_t i = 0; i < n; ++i)
    ASSERT_NEAR(found.get(static_cast<size_t>(i)), expected.get(static_cast<size_t>(i)), most * tolerance)
        << what << " " << i;
}

void check_once(const Case& c) {
  SCOPED_TRACE(text(c));
  Numbers numbers(c);
  const bool norm = c.norm != Norm::kNone, add = c.norm == Norm::kAddNorm, region = c.region != nullptr;
  const int64_t outputs = region ? c.outputs : c.n;
  const auto x = numbers.halves(c.m * c.k), residual = numbers.halves(c.m * c.k),
             norm_weight = numbers.halves(c.k), weight = numbers.halves(c.n * c.k, 0.2f),
             bias = numbers.halves(c.n);
  std::vector<float> norm_weight_f32 = numbers.floats(c.k);
  std::vector<std::unique_ptr<Halves>> other_data;
  std::vector<Operand> others;
  for (size_t i = 0; region && i < c.slices.size(); ++i) {
    if (c.slices[i] >= 0) continue;
    other_data.push_back(numbers.halves(c.m * outputs));
    // The first varies along outputs alone.
    others.push_back(
        make_operand(other_data.back()->data(), c.dtype, {c.m, outputs}, {others.empty() ? 0 : outputs, 1}));
  }
  const Operand x_operand = make_operand(x->data(), c.dtype, {c.m, c.k}),
                residual_operand = make_operand(residual->data(), c.dtype, {c.m, c.k}),
                norm_weight_operand = c.f32_norm_weight
                                          ? make_operand(norm_weight_f32.data(), DType::kF32, {c.k}, true)
                                          : make_operand(norm_weight->data(), c.dtype, {c.k}, true),
                weight_operand = make_operand(weight->data(), c.dtype, {c.n, c.k}, true),
                bias_operand = c.bias ? make_operand(bias->data(), c.dtype, {c.n}, true) : Operand{};
  std::string why;

  // By parts.
  const auto normed = numbers.halves(c.m * c.k), sum = numbers.halves(c.m * c.k),
             product = numbers.halves(c.m * c.n), expected = numbers.halves(c.m * outputs);
  const Operand normed_operand = make_operand(normed->data(), c.dtype, {c.m, c.k});
  if (norm) {
    KernelSpec spec;
    spec.op = add ? "add_rms_norm" : "rms_norm";
    spec.attrs.set("eps", 1e-5);
    spec.attrs.set("offset", 1.0);
    std::vector<Operand> in = {x_operand}, out = {normed_operand};
    if (add) {
      in.push_back(residual_operand);
      out.push_back(make_operand(sum->data(), c.dtype, {c.m, c.k}));
    }
    in.push_back(norm_weight_operand);
    if (c.f32_norm_weight) in.back().spec.dtype = DType::kF32;
    ASSERT_TRUE(run_kernel(spec.op + ".plain", spec, in, out, &why)) << why;
  }
  {
    KernelSpec spec;
    spec.op = "linear";
    ASSERT_TRUE(run_kernel("linear.plain", spec,
                           {norm ? normed_operand : x_operand, weight_operand, bias_operand},
                           {make_operand((region ? product : expected)->data(), c.dtype, {c.m, c.n})}, &why))
        << why;
  }
  if (region) {
    KernelSpec spec;
    spec.op = "region";
    spec.region = c.region;
    std::vector<Operand> in;
    size_t other = 0;
    for (int64_t slice : c.slices)
      in.push_back(
          slice < 0 ? others[other++]
                    : make_operand(product->data() + slice, c.dtype, {c.m, outputs}, {c.n, c.slice_stride}));
    ASSERT_TRUE(run_kernel("region.interpreted", spec, in,
                           {make_operand(expected->data(), c.dtype, {c.m, outputs})}, &why))
        << why;
  }

  // In one.
  const auto y = numbers.halves(c.m * outputs), y_sum = numbers.halves(c.m * c.k),
             y_normed = numbers.halves(c.m * c.k);
  KernelSpec spec;
  spec.op = std::string(add    ? "add_rms_norm+"
                        : norm ? "rms_norm+"
                               : "") +
            "linear" + (region ? "+region" : "");
  spec.region = c.region;
  std::vector<Operand> in = {x_operand}, out = {make_operand(y->data(), c.dtype, {c.m, outputs})};
  if (add) {
    in.push_back(residual_operand);
    out.push_back(make_operand(y_sum->data(), c.dtype, {c.m, c.k}));
  }
  if (norm) {
    in.push_back(norm_weight_operand);
    spec.attrs.set("eps", 1e-5);
    spec.attrs.set("offset", 1.0);
    if (c.keeps_normed) out.push_back(make_operand(y_normed->data(), c.dtype, {c.m, c.k}));
  }
  in.push_back(weight_operand);
  in.push_back(bias_operand);
  if (region) {
    in.insert(in.end(), others.begin(), others.end());
    spec.attrs.set("slices", c.slices);
    spec.attrs.set("slice_stride", c.slice_stride);
  }
  ASSERT_TRUE(run_kernel(spec.op + ".small", spec, in, out, &why)) << why;
  expect_close(*y, *expected, c.m * outputs, "y");
  if (add) expect_close(*y_sum, *sum, c.m * c.k, "sum");
  if (norm && c.keeps_normed) expect_close(*y_normed, *normed, c.m * c.k, "normed");
}

RegionProgram gate(DType t, RegionOp act, int gated, bool in_float32) {
  RegionProgram r;
  r.inputs = {t, t};
  r.outputs = {0};
  const DType mid = in_float32 ? DType::kF32 : t;
  r.nodes.push_back({act, mid, {gated}});
  r.nodes.push_back({RegionOp::kMul, mid, {2, 1 - gated}});
  r.outputs = {3};
  if (in_float32) {
    r.nodes.push_back({RegionOp::kCast, t, {3}});
    r.outputs = {4};
  }
  return r;
}

void check(const Case& c) {
  for (const bool has : {true, false}) {
    SCOPED_TRACE(has ? "with warpgroups" : "without warpgroups");
    const EmulatedSetting with(simt::has_warpgroups, has);
    check_once(c);
  }
}

TEST(CudaLinearFused, GatesOfFewAndManyRows) {
  for (DType t : {DType::kBF16, DType::kF16}) {
    for (int64_t m : {1, 2, 4, 9, 16, 20}) {
      const RegionProgram silu = gate(t, RegionOp::kSilu, 0, false), gelu = gate(t, RegionOp::kGelu, 1, true);
      check({t, Norm::kNone, m, 48, 136, {0, 24}, 1, 24, &silu});
      check({t, Norm::kNone, m, 50, 136, {25, 0}, 1, 25, &gelu, true});
      check({t, Norm::kNone, m, 50, 72, {0, 1}, 2, 25, &silu});
    }
  }
}

TEST(CudaLinearFused, EveryActOfGates) {
  for (RegionOp act : {RegionOp::kSilu, RegionOp::kGelu, RegionOp::kGeluTanh, RegionOp::kRelu}) {
    for (int gated : {0, 1}) {
      const RegionProgram r = gate(DType::kF16, act, gated, false);
      for (int64_t m : {1, 3, 17}) check({DType::kF16, Norm::kNone, m, 32, 64, {16, 0}, 1, 16, &r});
    }
  }
}

TEST(CudaLinearFused, NormsOfFewAndManyRows) {
  for (Norm norm : {Norm::kNorm, Norm::kAddNorm}) {
    for (int64_t m : {1, 2, 3, 4, 5, 16, 21}) {
      check({DType::kBF16, norm, m, 40, 72, {}, 1, 0, nullptr, false, false, false});
      check({DType::kBF16, norm, m, 21, 4616, {}, 1, 0, nullptr, true, true, true});
      check({DType::kF16, norm, m, 40, 264, {}, 1, 0, nullptr, true, false, true});
    }
  }
}

TEST(CudaLinearFused, NormAndGate) {
  const RegionProgram r = gate(DType::kBF16, RegionOp::kSilu, 0, false);
  for (Norm norm : {Norm::kNorm, Norm::kAddNorm}) {
    for (int64_t m : {1, 2, 4, 8, 33})
      check({DType::kBF16, norm, m, 96, 520, {0, 48}, 1, 48, &r, false, false, m == 2});
  }
}

// A gate with limits, as some models have it, between slices that lie in turn.
TEST(CudaLinearFused, RegionsOfOtherForms) {
  const DType t = DType::kF16;
  RegionProgram limited;
  limited.inputs = {t, t};
  limited.nodes = {{RegionOp::kConst, DType::kF32, {}, 0.75},
                   {RegionOp::kMin, t, {0, 2}},
                   {RegionOp::kNeg, t, {2}},
                   {RegionOp::kMax, t, {1, 4}},
                   {RegionOp::kSigmoid, t, {3}},
                   {RegionOp::kMul, t, {3, 6}},
                   {RegionOp::kAdd, t, {5, 2}},
                   {RegionOp::kMul, t, {7, 8}}};
  limited.outputs = {9};
  RegionProgram added;  // slice + other * weight, where the slice is positive
  added.inputs = {t, t, t};
  added.nodes = {{RegionOp::kConst, DType::kF32, {}, 0.0},
                 {RegionOp::kGt, DType::kBool, {2, 3}},
                 {RegionOp::kMul, t, {0, 1}},
                 {RegionOp::kAdd, t, {2, 5}},
                 {RegionOp::kWhere, t, {4, 6, 1}}};
  added.outputs = {7};
  for (int64_t m : {1, 2, 7, 13, 19}) {
    check({t, Norm::kNone, m, 60, 80, {0, 1}, 2, 30, &limited});
    check({t, Norm::kAddNorm, m, 60, 80, {30, 0}, 1, 30, &limited, true});
    check({t, Norm::kNone, m, 40, 80, {-1, -1, 3}, 1, 37, &added});
    check({t, Norm::kNorm, m, 40, 80, {-1, -1, 0}, 1, 40, &added});
  }
}

}  // namespace
}  // namespace autodeploy::cuda
