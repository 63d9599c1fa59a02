// The fast kernels of linear, on the emulated device, against sums in double.
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
  DType dtype = DType::kBF16;
  int64_t m = 1, n = 1, k = 8;
  int64_t x_gap = 0;     // elements between rows of x; below 0, they lie in each other
  int64_t x_offset = 0;  // elements before x
  Bias bias = Bias::kNone;
};

std::string text(const Case& c) {
  return std::string(dtype_name(c.dtype)) + " m " + std::to_string(c.m) + " n " + std::to_string(c.n) +
         " k " + std::to_string(c.k) + " gap " + std::to_string(c.x_gap) + " offset " +
         std::to_string(c.x_offset) + " bias " + std::to_string(static_cast<int>(c.bias));
}

void check_once(const Case& c) {
  SCOPED_TRACE(text(c));
  std::mt19937 random(static_cast<unsigned>(c.m * 1000003 + c.n * 1009 + c.k));
  std::uniform_real_distribution<float> uniform(-1, 1);
  const int64_t x_stride = c.k + c.x_gap;
  const auto x_size = static_cast<size_t>(c.x_offset + c.m * x_stride + c.k);
  Halves x(c.dtype, x_size), w(c.dtype, static_cast<size_t>(c.n * c.k)),
      bias(c.dtype, static_cast<size_t>(c.n)), y(c.dtype, static_cast<size_t>(c.m * c.n));
  std::vector<float> bias_f32(static_cast<size_t>(c.n));
  for (size_t i = 0; i < x_size; ++i) x.set(i, NAN);
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t k = 0; k < c.k; ++k)
      x.set(static_cast<size_t>(c.x_offset + m * x_stride + k), uniform(random));
  }
  for (size_t i = 0; i < static_cast<size_t>(c.n * c.k); ++i) w.set(i, uniform(random));
  for (size_t i = 0; i < static_cast<size_t>(c.n); ++i) {
    bias.set(i, uniform(random));
    bias_f32[i] = uniform(random);
  }

  KernelSpec spec;
  spec.op = "linear";
  Operand bias_operand;
  if (c.bias == Bias::kAct) bias_operand = make_operand(bias.data(), c.dtype, {c.n}, true);
  if (c.bias == Bias::kF32) bias_operand = make_operand(bias_f32.data(), DType::kF32, {c.n}, true);
  std::string why;
  ASSERT_TRUE(run_kernel("linear.small", spec,
                         {make_operand(x.data() + c.x_offset, c.dtype, {c.m, c.k}, {x_stride, 1}),
                          make_operand(w.data(), c.dtype, {c.n, c.k}, true), bias_operand},
                         {make_operand(y.data(), c.dtype, {c.m, c.n})}, &why))
      << why;

  const double ulp = c.dtype == DType::kBF16 ? 1.0 / 256 : 1.0 / 2048;  // half a unit of rounding, relative
  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t n = 0; n < c.n; ++n) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        const double term = static_cast<double>(x.get(static_cast<size_t>(c.x_offset + m * x_stride + k))) *
                            static_cast<double>(w.get(static_cast<size_t>(n * c.k + k)));
        sum += term;
        magnitude += std::abs(term);
      }
      if (c.bias == Bias::kAct) sum += static_cast<double>(bias.get(static_cast<size_t>(n)));
      if (c.bias == Bias::kF32) sum += static_cast<double>(bias_f32[static_cast<size_t>(n)]);
      ASSERT_NEAR(y.get(static_cast<size_t>(m * c.n + n)), sum, std::abs(sum) * ulp * 1.01 + magnitude * 2e-6)
          << "row " << m << ", output " << n;
    }
  }
}

void check(const Case& c) {
  for (const bool has : {true, false}) {
    SCOPED_TRACE(has ? "with warpgroups" : "without warpgroups");
    const EmulatedSetting with(simt::has_warpgroups, has);
    check_once(c);
  }
}

TEST(CudaLinear, EveryFewRows) {
  for (DType t : {DType::kBF16, DType::kF16}) {
    for (int64_t m = 1; m <= 17; ++m) check({t, m, 70, 328});
  }
}

TEST(CudaLinear, ShapesOfOneRow) {
  for (int64_t n : {1, 2, 3, 7, 24, 25, 61, 200}) {
    for (int64_t k : {8, 16, 248, 256, 264, 520, 1544, 4104}) check({DType::kBF16, 1, n, k});
  }
}

TEST(CudaLinear, ShapesOfSomeRows) {
  for (int64_t m : {2, 5, 9, 16}) {
    for (int64_t n : {1, 7, 16, 17, 41, 500}) {
      for (int64_t k : {8, 24, 64, 72, 520, 1032}) check({DType::kF16, m, n, k});
    }
  }
}

TEST(CudaLinear, LongRowsThatDoNotFitInSharedMemory) {
  for (int64_t m : {2, 4, 7, 13}) check({DType::kBF16, m, 24, 14344});
}

TEST(CudaLinear, StridedRowsAndBias) {
  for (Bias bias : {Bias::kNone, Bias::kAct, Bias::kF32}) {
    for (int64_t m : {1, 3, 11, 40}) {
      check({DType::kBF16, m, 37, 136, 8, 0, bias});
      check({DType::kF16, m, 37, 136, 3, 0, bias});
      check({DType::kBF16, m, 37, 136, 0, 1, bias});
      check({DType::kBF16, m, 37, 12296, 5, 3, bias});
    }
  }
}

TEST(CudaLinear, RowsThatLieInEachOther) {
  for (int64_t m : {2, 5, 20}) {
    check({DType::kBF16, m, 37, 136, -136});
    check({DType::kF16, m, 37, 136, -128});
  }
}

TEST(CudaLinear, ShapesOfManyRows) {
  for (int64_t m : {17, 31, 33, 64, 65, 130}) {
    for (int64_t n : {1, 7, 130, 400}) {
      for (int64_t k : {8, 72, 200}) check({DType::kBF16, m, n, k});
    }
  }
  check({DType::kF16, 300, 1300, 64});  // several groups of tiles
}

TEST(CudaLinear, ManyRowsThatShareTheInnerDimensionAmongBlocks) {
  for (Bias bias : {Bias::kNone, Bias::kAct, Bias::kF32}) {
    for (int64_t n : {60, 61, 250}) check({DType::kF16, 20, n, 2056, 8, 0, bias});
    check({DType::kBF16, 100, 66, 1544, 0, 0, bias});
  }
}

TEST(CudaLinear, DeclinesWhatItDoesNotServe) {
  const auto why_not = [](DType t, int64_t k, std::vector<int64_t> stride, size_t offset, bool param) {
    Halves x(DType::kBF16, 256), w(DType::kBF16, 256), y(DType::kBF16, 256);
    KernelSpec spec;
    spec.op = "linear";
    std::string why;
    EXPECT_FALSE(run_kernel("linear.small", spec,
                            {make_operand(x.data(), t, {2, k}),
                             make_operand(w.data() + offset, t, {4, k}, stride, param), Operand{}},
                            {make_operand(y.data(), t, {2, 4})}, &why));
    return why;
  };
  EXPECT_EQ(why_not(DType::kF32, 8, {8, 1}, 0, true), "it takes bf16 and f16");
  EXPECT_EQ(why_not(DType::kBF16, 12, {12, 1}, 0, true),
            "rows of the weights are no multiple of 16 bytes, or a dim is too large");
  const std::string no_param = "the weights are no whole param that begins at a 16-byte boundary";
  EXPECT_EQ(why_not(DType::kBF16, 8, {8, 1}, 0, false), no_param);
  EXPECT_EQ(why_not(DType::kBF16, 8, {8, 1}, 4, true), no_param);
  EXPECT_EQ(why_not(DType::kBF16, 8, {16, 1}, 0, true), no_param);
}

TEST(CudaLinear, NoRows) { check({DType::kBF16, 0, 5, 16}); }

}  // namespace
}  // namespace autodeploy::cuda
