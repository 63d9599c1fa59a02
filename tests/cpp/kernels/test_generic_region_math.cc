// Accuracy of the region's elementary functions against the C library in double, for every instruction set
// this machine has.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/generic/region_tile.h"

namespace autodeploy {
namespace {

struct Function {
  const char* name;
  TileOp op;
  std::function<double(double)> exact;
  double lo, hi, max_ulp;
};

double gelu(double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); }
double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}

const std::vector<Function>& functions() {
  static const std::vector<Function> all = {
      {"exp", TileOp::f32_exp, [](double x) { return std::exp(x); }, -110, 95, 2},
      {"expm1", TileOp::f32_expm1, [](double x) { return std::expm1(x); }, -30, 95, 2.5},
      {"expm1 near 0", TileOp::f32_expm1, [](double x) { return std::expm1(x); }, -1, 1, 2.5},
      {"log", TileOp::f32_log, [](double x) { return std::log(x); }, 1e-3, 100, 2},
      {"log of anything", TileOp::f32_log, [](double x) { return std::log(x); }, 0, 3e38, 2},
      {"log of denormals", TileOp::f32_log, [](double x) { return std::log(x); }, 1e-45, 1e-37, 2},
      {"log near 1", TileOp::f32_log, [](double x) { return std::log(x); }, 0.98, 1.02, 2},
      {"log1p", TileOp::f32_log1p, [](double x) { return std::log1p(x); }, -0.9999, 100, 2.5},
      {"log1p near 0", TileOp::f32_log1p, [](double x) { return std::log1p(x); }, -1e-3, 1e-3, 2.5},
      {"tanh", TileOp::f32_tanh, [](double x) { return std::tanh(x); }, -12, 12, 2.5},
      {"sigmoid", TileOp::f32_sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, -80, 80, 3},
      {"silu", TileOp::f32_silu, [](double x) { return x / (1 + std::exp(-x)); }, -80, 80, 3},
      {"erf", TileOp::f32_erf, [](double x) { return std::erf(x); }, -5, 5, 2},
      {"softplus", TileOp::f32_softplus, [](double x) { return x > 20 ? x : std::log1p(std::exp(x)); }, -50,
       50, 3.5},
      {"sin", TileOp::f32_sin, [](double x) { return std::sin(x); }, -10, 10, 1},
      {"cos", TileOp::f32_cos, [](double x) { return std::cos(x); }, -10, 10, 1},
      {"sin far out", TileOp::f32_sin, [](double x) { return std::sin(x); }, -1.3e8, 1.3e8, 1},
      {"cos far out", TileOp::f32_cos, [](double x) { return std::cos(x); }, -1.3e8, 1.3e8, 1},
      {"cos beyond the limit", TileOp::f32_cos, [](double x) { return std::cos(x); }, -1e12, 1e12, 1},
      {"sqrt", TileOp::f32_sqrt, [](double x) { return std::sqrt(x); }, 0, 1e10, 0.51},
      {"rsqrt", TileOp::f32_rsqrt, [](double x) { return 1 / std::sqrt(x); }, 1e-6, 1e10, 1.51},
      {"reciprocal", TileOp::f32_reciprocal, [](double x) { return 1 / x; }, 1e-6, 1e10, 0.51},
  };
  return all;
}

double ulp_of(double x) {
  const double a = std::abs(x);
  if (a < 1.17549435e-38) return 1.4e-45;
  return std::ldexp(1.0, std::ilogb(a) - 23);
}

std::vector<Isa> isas() {
  std::vector<Isa> out;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa_available(isa)) out.push_back(isa);
  }
  return out;
}

std::vector<float> apply(Isa isa, TileOp op, const std::vector<float>& x) {
  std::vector<float> y(x.size());
  tile_table(isa).fn[static_cast<int>(op)][kBothVary](y.data(), x.data(), x.data(), x.data(),
                                                      static_cast<int64_t>(x.size()));
  return y;
}

TEST(RegionMath, WithinUlpsOfTheRealValue) {
  for (const Function& f : functions()) {
    std::vector<float> x;
    for (int i = 0; i <= 40000; ++i) x.push_back(static_cast<float>(f.lo + (f.hi - f.lo) * i / 40000));
    for (Isa isa : isas()) {
      const std::vector<float> y = apply(isa, f.op, x);
      double worst = 0;
      float where = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = f.exact(x[i]);
        if (std::abs(exact) > 3.4028235e38) {
          EXPECT_TRUE(std::isinf(y[i])) << f.name << " " << isa_name(isa) << " of " << x[i];
          continue;
        }
        const double error = exact == y[i] ? 0 : std::abs(exact - y[i]) / ulp_of(exact);
        if (!(error <= worst)) worst = error, where = x[i];
      }
      EXPECT_LE(worst, f.max_ulp) << f.name << " " << isa_name(isa) << " of " << where;
    }
  }
}

TEST(RegionMath, GeluWithinAbsoluteError) {
  std::vector<float> x;
  for (int i = -8000; i <= 8000; ++i) x.push_back(static_cast<float>(i) * 1e-3f);
  for (Isa isa : isas()) {
    const std::vector<float> a = apply(isa, TileOp::f32_gelu, x), b = apply(isa, TileOp::f32_gelu_tanh, x);
    for (size_t i = 0; i < x.size(); ++i) {
      const double bound = 2.5e-7 * std::max(0.5, std::abs(static_cast<double>(x[i])));
      ASSERT_NEAR(a[i], gelu(x[i]), bound) << "gelu " << isa_name(isa) << " of " << x[i];
      ASSERT_NEAR(b[i], gelu_tanh(x[i]), bound) << "gelu_tanh " << isa_name(isa) << " of " << x[i];
    }
  }
}

TEST(RegionMath, SpecialValues) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  struct Case {
    TileOp op;
    float x, y;
  };
  const Case cases[] = {
      {TileOp::f32_exp, inf, inf},     {TileOp::f32_exp, -inf, 0},        {TileOp::f32_exp, nan, nan},
      {TileOp::f32_exp, 0, 1},         {TileOp::f32_expm1, inf, inf},     {TileOp::f32_expm1, -inf, -1},
      {TileOp::f32_expm1, nan, nan},   {TileOp::f32_log, 0, -inf},        {TileOp::f32_log, inf, inf},
      {TileOp::f32_log, -1, nan},      {TileOp::f32_log, nan, nan},       {TileOp::f32_log, 1, 0},
      {TileOp::f32_log1p, -1, -inf},   {TileOp::f32_log1p, inf, inf},     {TileOp::f32_log1p, -2, nan},
      {TileOp::f32_log1p, nan, nan},   {TileOp::f32_tanh, inf, 1},        {TileOp::f32_tanh, -inf, -1},
      {TileOp::f32_tanh, nan, nan},    {TileOp::f32_sigmoid, inf, 1},     {TileOp::f32_sigmoid, -inf, 0},
      {TileOp::f32_sigmoid, nan, nan}, {TileOp::f32_silu, nan, nan},      {TileOp::f32_erf, inf, 1},
      {TileOp::f32_erf, -inf, -1},     {TileOp::f32_erf, nan, nan},       {TileOp::f32_sin, inf, nan},
      {TileOp::f32_cos, nan, nan},     {TileOp::f32_softplus, inf, inf},  {TileOp::f32_softplus, -inf, 0},
      {TileOp::f32_relu, nan, nan},    {TileOp::f32_relu, -3, 0},         {TileOp::f32_round, 2.5f, 2},
      {TileOp::f32_round, -1.5f, -2},  {TileOp::f32_round, 1e30f, 1e30f}, {TileOp::f32_sign, nan, 0},
      {TileOp::f32_sign, -2, -1},      {TileOp::f32_sqrt, -1, nan},       {TileOp::f32_rsqrt, 0, inf},
  };
  for (Isa isa : isas()) {
    for (const Case& c : cases) {
      // Alone and within a vector: the tail must agree with the body.
      for (const float y : {apply(isa, c.op, {c.x})[0], apply(isa, c.op, std::vector<float>(37, c.x))[5]}) {
        EXPECT_TRUE(y == c.y || (std::isnan(y) && std::isnan(c.y)))
            << "operation " << static_cast<int>(c.op) << " " << isa_name(isa) << " of " << c.x << ": found "
            << y << ", expected " << c.y;
      }
    }
    for (TileOp op : {TileOp::f32_expm1, TileOp::f32_log1p, TileOp::f32_erf}) {
      EXPECT_TRUE(std::signbit(apply(isa, op, {-0.0f})[0]))
          << static_cast<int>(op) << " keeps the sign of -0, " << isa_name(isa);
    }
  }
}

TEST(RegionMath, TailsEqualBodiesBitForBit) {
  std::vector<float> x;
  for (int i = 0; i < 61; ++i) x.push_back(static_cast<float>(i - 30) * 0.731f);
  for (Isa isa : isas()) {
    for (int op = static_cast<int>(TileOp::f32_neg); op <= static_cast<int>(TileOp::f32_square); ++op) {
      const std::vector<float> all = apply(isa, static_cast<TileOp>(op), x);
      for (size_t i = 0; i < x.size(); ++i) {
        const float one = apply(isa, static_cast<TileOp>(op), {x[i]})[0];
        ASSERT_EQ(std::memcmp(&one, &all[i], 4), 0)
            << "operation " << op << " " << isa_name(isa) << " of " << x[i] << ": " << one << " alone, "
            << all[i] << " in a vector";
      }
    }
  }
}

}  // namespace
}  // namespace autodeploy
