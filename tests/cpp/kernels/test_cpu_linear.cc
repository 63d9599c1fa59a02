#include <gtest/gtest.h>

#include "core/error.h"
#include "kernel_harness.h"

namespace autodeploy::testing {
namespace {

struct Case {
  const char* title;
  std::vector<SegmentShape> segments;
  int64_t cols, tokens;
  bool bias = false;
  int64_t gap = 0;
  std::vector<int64_t> leading = {};  // of x, instead of {tokens}
};

std::vector<Case> cases() {
  std::vector<Case> list;
  const Format all[] = {Format::kF32,  Format::kF16,  Format::kBF16, Format::kQ8_0,
                        Format::kQ4_0, Format::kQ4_1, Format::kQ5_0, Format::kQ5_1};
  for (Format f : all) {
    for (int64_t tokens : {1, 2, 3, 5, 7, 8, 9, 25, 67})
      list.push_back({"rows", {{f, 53}}, 96, tokens, tokens % 2 == 0, tokens % 3});
    list.push_back({"tall", {{f, 1}}, 32, 3, true});
    list.push_back({"long", {{f, 49}}, 576, 4});
    list.push_back({"several dims", {{f, 33}}, 64, 0, true, 3, {3, 5}});
  }
  list.push_back({"odd columns", {{Format::kF32, 37}}, 131, 9, true});
  list.push_back({"odd columns", {{Format::kBF16, 70}}, 7, 3, true});
  list.push_back({"mixed segments",
                  {{Format::kQ4_0, 40},
                   {Format::kQ8_0, 17},
                   {Format::kQ5_0, 48},
                   {Format::kF32, 5},
                   {Format::kQ4_1, 16}},
                  160,
                  1,
                  true});
  list.push_back({"mixed segments",
                  {{Format::kQ4_0, 40},
                   {Format::kQ8_0, 17},
                   {Format::kQ5_0, 48},
                   {Format::kF32, 5},
                   {Format::kQ4_1, 16}},
                  160,
                  31,
                  true,
                  5});
  return list;
}

struct Trial {
  Weight weight;
  Tensor x, bias, y;
  KernelSpec spec;
};

Trial prepare(const Case& c, Random& random) {
  Trial r;
  r.weight = random_weight(random, c.segments, c.cols);
  std::vector<int64_t> shape = c.leading.empty() ? std::vector<int64_t>{c.tokens} : c.leading;
  shape.push_back(c.cols);
  r.x = random_tensor(random, shape, c.gap);
  shape.back() = r.weight.rows;
  r.y = make_tensor(shape);
  if (c.bias) r.bias = random_tensor(random, {r.weight.rows});
  if (c.leading.empty()) {
    r.x = over_tokens(r.x);
    r.y = over_tokens(r.y);
  }
  r.spec.op = "linear";
  r.spec.in = {spec_of(r.x), r.weight.spec(), c.bias ? spec_of(r.bias) : OperandSpec{}};
  r.spec.out = {spec_of(r.y)};
  r.spec.max_tokens = c.tokens;
  r.spec.num_threads = 2;
  return r;
}

std::vector<double> reference(Trial& r) {
  const int64_t k = r.weight.cols, n = r.weight.rows, m = r.x.numel() / k;
  std::vector<double> y(static_cast<size_t>(m * n));
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = r.bias.data.empty() ? 0.0 : r.bias[j];
      for (int64_t l = 0; l < k; ++l)
        sum += double{r.x[i * k + l]} * r.weight.values[static_cast<size_t>(j * k + l)];
      y[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return y;
}

std::vector<TensorView> views(Trial& r) {
  return {r.x.view(), TensorView{}, r.bias.data.empty() ? TensorView{} : r.bias.view()};
}

// Integer products: each activation is off by at most half a step of its block.
double quantization_bound(Trial& r, int64_t index) {
  const int64_t k = r.weight.cols, n = r.weight.rows, i = index / n, j = index % n;
  double bound = 0.0;
  for (int64_t b = 0; b < k / 32; ++b) {
    double amax = 0.0, sum = 0.0;
    for (int64_t l = 32 * b; l < 32 * b + 32; ++l) {
      amax = std::max(amax, std::fabs(double{r.x[i * k + l]}));
      sum += std::fabs(double{r.weight.values[static_cast<size_t>(j * k + l)]});
    }
    bound += sum * amax / 127.0 * 0.5;
  }
  return bound;
}

TEST(CpuLinear, EveryKernelAgainstDoubles) {
  Random random(1);
  for (const Case& c : cases()) {
    Trial r = prepare(c, random);
    const std::vector<double> want = reference(r);
    for (const bool exact : {true, false}) {
      r.spec.exact = exact;
      for (const KernelEntry* entry : kernels_of("linear")) {
        std::string why;
        std::unique_ptr<Kernel> kernel = entry->make(r.spec, &why);
        if (!kernel) continue;
        SCOPED_TRACE(std::string(c.title) + " " + std::string(format_info(c.segments[0].format).name) +
                     " tokens " + std::to_string(c.tokens) + " " + entry->name + (exact ? " exact" : ""));
        const bool integer = !exact;
        r.y.data.assign(r.y.data.size(), -7.0f);
        run_kernel(*kernel, views(r), {r.y.view()}, 1);
        const Tensor one = r.y;
        const std::string wrong = first_difference(r.y, want, [&](int64_t i) {
          const double rounding = 2e-6 * std::sqrt(static_cast<double>(c.cols)) * 4.0 +
                                  1e-6 * std::fabs(want[static_cast<size_t>(i)]);
          return rounding + (integer && c.cols % 32 == 0 ? 1.001 * quantization_bound(r, i) : 0.0);
        });
        ASSERT_EQ(wrong, "");
        r.y.data.assign(r.y.data.size(), -7.0f);
        run_kernel(*kernel, views(r), {r.y.view()}, 2);
        ASSERT_TRUE(same_bits(one, r.y)) << "two threads differ from one";
      }
    }
  }
}

// The typical error of the integer mode, against quantizing to 8 bits with a float16 scale.
TEST(CpuLinear, IntegerErrorIsThatOfEightBitActivations) {
  Random random(2);
  for (Format f : {Format::kQ4_1, Format::kQ8_0, Format::kQ5_0}) {
    Trial r = prepare({"", {{f, 64}}, 576, 16}, random);
    const std::vector<double> want = reference(r);
    double rounded_error = 0.0;
    {
      Trial q = prepare({"", {{f, 64}}, 576, 16}, random);
      q.weight.values = r.weight.values;
      q.x = r.x;
      for (int64_t b = 0; b < q.x.numel() / 32; ++b) {
        float amax = 0.0f;
        for (int64_t i = 0; i < 32; ++i) amax = std::max(amax, std::fabs(q.x[32 * b + i]));
        const float d = half_to_float(float_to_half(amax / 127.0f));
        for (int64_t i = 0; i < 32; ++i) q.x[32 * b + i] = d * std::round(q.x[32 * b + i] * 127.0f / amax);
      }
      const std::vector<double> rounded = reference(q);
      for (size_t i = 0; i < want.size(); ++i) rounded_error += std::pow(rounded[i] - want[i], 2);
    }
    for (const KernelEntry* entry : kernels_of("linear")) {
      std::unique_ptr<Kernel> kernel = entry->make(r.spec, nullptr);
      if (!kernel) continue;
      run_kernel(*kernel, views(r), {r.y.view()}, 2);
      double error = 0.0;
      for (int64_t i = 0; i < r.y.numel(); ++i) error += std::pow(r.y[i] - want[static_cast<size_t>(i)], 2);
      EXPECT_LE(error, rounded_error * 1.02) << entry->name << " " << format_info(f).name;
    }
  }
}

TEST(CpuLinear, ATokensResultDoesNotDependOnItsCompany) {
  Random random(3);
  for (Format f : {Format::kF32, Format::kBF16, Format::kQ4_1, Format::kQ8_0, Format::kQ5_0}) {
    for (const bool exact : {false, true}) {
      Trial r = prepare({"", {{f, 83}}, 288, 61, true}, random);
      r.spec.exact = exact;
      for (const KernelEntry* entry : kernels_of("linear")) {
        std::unique_ptr<Kernel> kernel = entry->make(r.spec, nullptr);
        if (!kernel) continue;
        run_kernel(*kernel, views(r), {r.y.view()}, 1);
        for (int64_t tokens : {1, 2, 3, 4, 6, 8, 11}) {
          Tensor y = make_tensor({tokens, 83});
          std::vector<TensorView> in = views(r);
          in[0].shape[0] = tokens;
          run_kernel(*kernel, in, {y.view()}, 1);
          for (int64_t i = 0; i < y.numel(); ++i) {
            ASSERT_EQ(y[i], r.y[i]) << entry->name << " " << format_info(f).name << " tokens " << tokens
                                    << " at [" << i / 83 << ", " << i % 83 << "]";
          }
        }
      }
    }
  }
}

TEST(CpuLinear, NanAndInfinityReachTheirRowAlone) {
  Random random(4);
  for (Format f : {Format::kF32, Format::kQ4_1, Format::kQ8_0}) {
    for (float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
      Trial r = prepare({"", {{f, 20}}, 64, 3}, random);
      r.x[64 + 37] = bad;
      for (const KernelEntry* entry : kernels_of("linear")) {
        std::unique_ptr<Kernel> kernel = entry->make(r.spec, nullptr);
        if (!kernel) continue;
        run_kernel(*kernel, views(r), {r.y.view()}, 1);
        for (int64_t i = 0; i < 60; ++i)
          EXPECT_EQ(std::isfinite(r.y[i]), i / 20 != 1) << entry->name << " " << bad << " at " << i;
      }
    }
  }
}

TEST(CpuLinear, ZerosAndTinyActivations) {
  Random random(5);
  Trial r = prepare({"", {{Format::kQ4_1, 20}}, 64, 2}, random);
  for (int64_t i = 0; i < 64; ++i) r.x[i] = 0.0f, r.x[64 + i] = 1e-38f;
  for (const KernelEntry* entry : kernels_of("linear")) {
    std::unique_ptr<Kernel> kernel = entry->make(r.spec, nullptr);
    if (!kernel) continue;
    run_kernel(*kernel, views(r), {r.y.view()}, 1);
    for (int64_t i = 0; i < 40; ++i) EXPECT_NEAR(r.y[i], 0.0f, 1e-30) << entry->name;
  }
}

TEST(CpuLinear, NoTokens) {
  Random random(7);
  Trial r = prepare({"", {{Format::kQ4_1, 20}, {Format::kF32, 5}}, 64, 2}, random);
  for (const KernelEntry* entry : kernels_of("linear")) {
    std::unique_ptr<Kernel> kernel = entry->make(r.spec, nullptr);
    if (!kernel) continue;
    std::vector<TensorView> in = views(r);
    TensorView y = r.y.view();
    in[0].shape[0] = y.shape[0] = 0;
    run_kernel(*kernel, in, {y}, 2);
    for (int64_t i = 0; i < r.y.numel(); ++i) EXPECT_TRUE(std::isnan(r.y[i])) << entry->name;
  }
}

TEST(CpuLinear, RefusesWrongSpecs) {
  Random random(6);
  Trial r = prepare({"", {{Format::kQ4_1, 20}}, 64, 2, true}, random);
  const auto message = [&](const std::function<void(KernelSpec&)>& spoil) {
    KernelSpec spec = r.spec;
    spoil(spec);
    try {
      kernels_of("linear").back()->make(spec, nullptr);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message([](KernelSpec&) {}), "");
  EXPECT_NE(message([](KernelSpec& s) {
              s.in[0].shape[1] = {65, 0, 0};
            }).find("[linear] expected x [T, 64], found [T, 65]"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) {
              s.out[0].shape[1] = {21, 0, 0};
            }).find("expected y [T, 20], found [T, 21]"),
            std::string::npos);
  EXPECT_NE(
      message([](KernelSpec& s) { s.in[2].shape[0] = {19, 0, 0}; }).find("expected bias [20], found [19]"),
      std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) { s.in[0].stride[1] = {2, 0, 0}; }).find("contiguous"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) { s.in.pop_back(); }).find("expected 3 operands, found 2"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) { s.in[1].weight = nullptr; }).find("weight operand"),
            std::string::npos);
}

}  // namespace
}  // namespace autodeploy::testing
