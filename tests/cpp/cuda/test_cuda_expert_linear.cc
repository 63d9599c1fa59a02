// The fast kernels of expert_linear, on the emulated device, against sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda_testing.h"

namespace autodeploy::cuda {
namespace {

enum class Bias { kNone, kAct, kF32 };
struct Case {
  DType dtype;
  int64_t rows, repeat, experts, n, k;
  Bias bias = Bias::kNone;
  int64_t x_gap = 0;
};

void check(const Case& c) {
  SCOPED_TRACE(std::string(dtype_name(c.dtype)) + " rows " + std::to_string(c.rows) + " repeat " +
               std::to_string(c.repeat) + " experts " + std::to_string(c.experts) + " n " +
               std::to_string(c.n) + " k " + std::to_string(c.k));
  std::mt19937 random(static_cast<unsigned>(c.rows + 101 * c.n + 1009 * c.k));
  std::uniform_real_distribution<float> uniform(-1, 1);
  const int64_t sources = c.rows / c.repeat, x_stride = c.k + c.x_gap;
  const auto filled = [&](int64_t n) {
    Halves h(c.dtype, static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) h.set(static_cast<size_t>(i), uniform(random));
    return h;
  };
  Halves x = filled(sources * x_stride), w = filled(c.experts * c.n * c.k), bias = filled(c.experts * c.n),
         y = filled(c.rows * c.n);
  std::vector<float> bias_f32(static_cast<size_t>(c.experts * c.n));
  for (float& b : bias_f32) b = uniform(random);
  std::vector<int64_t> ids(static_cast<size_t>(c.rows));
  for (int64_t& id : ids) id = static_cast<int64_t>(random() % static_cast<unsigned>(c.experts + 2)) - 1;

  KernelSpec spec;
  spec.op = "expert_linear";
  spec.attrs.set("x_repeat", c.repeat);
  Operand bias_operand;
  if (c.bias == Bias::kAct) bias_operand = make_operand(bias.data(), c.dtype, {c.experts, c.n}, true);
  if (c.bias == Bias::kF32) bias_operand = make_operand(bias_f32.data(), DType::kF32, {c.experts, c.n}, true);
  std::string why;
  ASSERT_TRUE(run_kernel("expert_linear.fast", spec,
                         {make_operand(x.data(), c.dtype, {sources, c.k}, {x_stride, 1}),
                          make_operand(w.data(), c.dtype, {c.experts, c.n, c.k}, true),
                          make_operand(ids.data(), DType::kI64, {c.rows}), bias_operand},
                         {make_operand(y.data(), c.dtype, {c.rows, c.n})}, &why))
      << why;

  const double ulp = c.dtype == DType::kBF16 ? 1.0 / 256 : 1.0 / 2048;
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t e = ids[static_cast<size_t>(r)];
    const bool known = e >= 0 && e < c.experts;
    for (int64_t n = 0; n < c.n; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; known && k < c.k; ++k) {
        const double term = static_cast<double>(x.get(static_cast<size_t>(r / c.repeat * x_stride + k))) *
                            static_cast<double>(w.get(static_cast<size_t>((e * c.n + n) * c.k + k)));
        sum += term;
        magnitude += std::abs(term);
      }
      const auto at = static_cast<size_t>(e * c.n + n);
      if (known && c.bias == Bias::kAct) sum += static_cast<double>(bias.get(at));
      if (known && c.bias == Bias::kF32) sum += static_cast<double>(bias_f32[at]);
      ASSERT_NEAR(y.get(static_cast<size_t>(r * c.n + n)), sum, std::abs(sum) * ulp * 1.01 + magnitude * 2e-6)
          << "row " << r << ", output " << n;
    }
  }
}

TEST(CudaExpertLinear, FewRows) {
  for (DType t : {DType::kBF16, DType::kF16}) {
    for (int64_t rows : {1, 2, 7, 32}) {
      for (int64_t n : {1, 5, 64}) {
        for (int64_t k : {8, 264, 776}) check({t, rows, 1, 5, n, k});
      }
    }
    check({t, 8, 4, 3, 30, 72, Bias::kAct});
    check({t, 30, 2, 9, 30, 72, Bias::kF32, 8});
  }
}

TEST(CudaExpertLinear, ManyRows) {
  for (int64_t rows : {33, 100, 260}) {
    for (int64_t experts : {1, 3, 40}) {
      check({DType::kBF16, rows, 1, experts, 70, 136, Bias::kAct});
      check({DType::kF16, rows / 2 * 2, 2, experts, 131, 72, Bias::kF32, 8});
    }
  }
}

TEST(CudaExpertLinear, RowsThatAreNotAligned) {
  for (int64_t rows : {4, 60}) check({DType::kBF16, rows, 2, 3, 12, 40, Bias::kAct, 3});
}

TEST(CudaExpertLinear, NoRows) { check({DType::kF16, 0, 2, 3, 12, 40}); }

}  // namespace
}  // namespace autodeploy::cuda
