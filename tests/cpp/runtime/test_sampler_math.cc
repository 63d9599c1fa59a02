#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "runtime/philox.h"
#include "runtime/row_math.h"

namespace autodeploy {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_row(int64_t n, uint32_t seed, float scale = 4) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> row(static_cast<size_t>(n));
  for (float& x : row) x = normal(rng);
  return row;
}

// Vectors of the known-answer file that the authors of Random123 publish.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (PhiloxBlock{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({~0U, ~0U, ~0U, ~0U}, {~0U, ~0U}),
            (PhiloxBlock{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxBlock{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformIsSpreadOverTheUnitInterval) {
  double sum = 0, squares = 0, least = 1, most = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = philox_uniform(static_cast<uint64_t>(i % 7) << 40, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
    least = std::min(least, u);
    most = std::max(most, u);
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.01);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.01);
  EXPECT_LT(least, 1e-3);
  EXPECT_GT(most, 1 - 1e-3);
}

TEST(RowMath, FindsTheFirstMaximum) {
  for (const RowMath* math : row_math_variants()) {
    SCOPED_TRACE(math->name);
    for (int64_t n : {1, 15, 16, 17, 255, 256, 257, 5003}) {
      std::vector<float> x = random_row(n, static_cast<uint32_t>(n));
      for (int64_t at : {int64_t{0}, n / 2, n - 1}) {
        std::vector<float> y = x;
        y[static_cast<size_t>(at)] = 100;
        y[static_cast<size_t>(n - 1)] = 100;
        const RowMax max = math->find_max(y.data(), n);
        EXPECT_EQ(max.token, at) << n;
        EXPECT_EQ(max.value, 100) << n;
        y[static_cast<size_t>(n - 1 - at)] = std::nanf("");
        EXPECT_EQ(math->find_max(y.data(), n).token, -1) << n;
      }
      std::fill(x.begin(), x.end(), -kInf);
      EXPECT_EQ(math->find_max(x.data(), n).value, -kInf);
      EXPECT_EQ(math->find_max(x.data(), n).token, 0);
    }
  }
}

TEST(RowMath, ExponentialsAreRight) {
  for (const RowMath* math : row_math_variants()) {
    SCOPED_TRACE(math->name);
    for (int64_t n : {1, 16, 31, 256, 300, 4999}) {
      std::vector<float> x = random_row(n, static_cast<uint32_t>(n), 20);
      x[0] = -kInf;
      x[static_cast<size_t>(n - 1)] = 200;
      const float max = math->find_max(x.data(), n).value;
      std::vector<float> out(x.size());
      std::vector<double> sums(static_cast<size_t>(num_row_blocks(n)));
      for (float scale : {1.0F, 0.3F, 7.0F}) {
        const double total = math->exp_shifted(x.data(), n, max, scale, out.data(), sums.data());
        double expected_total = 0, block_total = 0;
        for (double s : sums) block_total += s;
        EXPECT_EQ(block_total, total);
        for (size_t i = 0; i < x.size(); ++i) {
          const double z = static_cast<double>((x[i] - max) * scale);
          const double expected = std::exp(z);
          expected_total += expected;
          if (z < -85) {
            ASSERT_LT(out[i], 2e-37) << i;
          } else {
            ASSERT_NEAR(out[i] / expected, 1, 2e-7) << "element " << i << ", z = " << z;
          }
        }
        EXPECT_NEAR(total / expected_total, 1, 1e-6);
      }
      EXPECT_EQ(out[static_cast<size_t>(n - 1)], 1.0F);
    }
  }
}

TEST(RowMath, VariantsGiveTheSameBits) {
  for (int64_t n : {1, 100, 256, 1000, 4111}) {
    const std::vector<float> x = random_row(n, 5);
    const std::vector<float> thresholds = {3.0F, 0.0F, -2.5F};
    struct Result {
      std::vector<float> exps, maxima;
      std::vector<double> sums, at_least;
      std::vector<Candidate> candidates;
      double total = 0;
      int64_t above = 0;
    };
    std::vector<Result> results;
    for (const RowMath* math : row_math_variants()) {
      Result& r = results.emplace_back();
      const auto size = static_cast<size_t>(n), blocks = static_cast<size_t>(num_row_blocks(n));
      r.exps.resize(size), r.maxima.resize(blocks), r.sums.resize(blocks), r.at_least.resize(3),
          r.candidates.resize(size);
      r.total = math->exp_shifted(x.data(), n, math->find_max(x.data(), n).value, 0.7F, r.exps.data(),
                                  r.sums.data());
      math->block_maxima(x.data(), n, r.maxima.data());
      math->sum_at_least(x.data(), n, thresholds, r.at_least.data());
      r.candidates.resize(
          static_cast<size_t>(math->collect_at_least(x.data(), n, 1.0F, r.candidates.data())));
      r.above = math->count_above(x.data(), n, 1.0F);
      int64_t above = 0;
      double at_least = 0;
      for (float v : x) above += v > 1.0F, at_least += v >= 0 ? v : 0;
      EXPECT_EQ(r.above, above) << math->name;
      EXPECT_NEAR(r.at_least[1], at_least, 1e-4 * (1 + at_least)) << math->name;
      EXPECT_EQ(static_cast<int64_t>(r.candidates.size()), above) << math->name;
      for (const Candidate& c : r.candidates) EXPECT_EQ(c.value, x[static_cast<size_t>(c.token)]);
      for (size_t b = 0; b < blocks; ++b) {
        const auto begin = x.begin() + static_cast<std::ptrdiff_t>(b * kRowBlock);
        const auto end = x.begin() + static_cast<std::ptrdiff_t>(std::min<size_t>(size, (b + 1) * kRowBlock));
        EXPECT_EQ(r.maxima[b], *std::max_element(begin, end)) << math->name;
      }
      const Result& first = results.front();
      EXPECT_EQ(r.exps, first.exps) << math->name;
      EXPECT_EQ(r.sums, first.sums) << math->name;
      EXPECT_EQ(r.total, first.total) << math->name;
      EXPECT_EQ(r.at_least, first.at_least) << math->name;
    }
  }
}

}  // namespace
}  // namespace autodeploy
