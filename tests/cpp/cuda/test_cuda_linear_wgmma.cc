// linear on Hopper's matrix units: every way to share tiles among blocks, on the emulated device, against
// sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda_testing.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_wgmma_kernel.h"

namespace autodeploy::cuda {
namespace {

constexpr int kRows = 16, kGroups = 2, kBoxes = 1, kStages = 3;

struct Case {
  int m = 1, n = 1, k = 8;
  int splits = 1, blocks = 1;
};

// Outputs are n; of a gate, the weights have 2n rows.
template <class T, class Epilogue>
void check(const Case& c) {
  SCOPED_TRACE("m " + std::to_string(c.m) + " n " + std::to_string(c.n) + " k " + std::to_string(c.k) +
               " blocks " + std::to_string(c.blocks) + " splits " + std::to_string(c.splits));
  constexpr DType dtype = std::is_same_v<T, bf16> ? DType::kBF16 : DType::kF16;
  constexpr int kSlices = Epilogue::kSlices;
  std::mt19937 random(static_cast<unsigned>(c.m * 1000003 + c.n * 1009 + c.k * 17 + c.blocks));
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto size = [](int a, int b) { return static_cast<size_t>(a) * static_cast<size_t>(b); };
  Halves x(dtype, size(c.m, c.k)), w(dtype, size(c.n * kSlices, c.k)), y(dtype, size(c.m, c.n)),
      bias(dtype, size(c.n, kSlices));
  for (size_t i = 0; i < size(c.m, c.k); ++i) x.set(i, uniform(random));
  for (size_t i = 0; i < size(c.n * kSlices, c.k); ++i) w.set(i, uniform(random));
  for (size_t i = 0; i < size(c.n, kSlices); ++i) bias.set(i, uniform(random));
  for (size_t i = 0; i < size(c.m, c.n); ++i) y.set(i, NAN);

  const int tiles = (c.n * kSlices + kGroups * 64 - 1) / (kGroups * 64);
  std::vector<float> partial(static_cast<size_t>(wgmma_partial_bytes(kRows, kGroups, c.blocks) / 4), NAN);
  std::vector<uint32_t> arrived(size(tiles, kGroups));
  WgmmaLinearArgs a;
  a.linear.x = DeviceRows(view(x.data(), dtype, {c.m, c.k}, {c.k, 1}), 1);
  a.linear.y = DeviceRows(view(y.data(), dtype, {c.m, c.n}, {c.n, 1}), 1);
  a.linear.weight = w.data(), a.linear.bias = bias.data();
  a.linear.rows = c.m, a.linear.cols = c.k, a.linear.outputs = c.n;
  if (kSlices == 2) a.linear.slice_offset[1] = c.n;
  a.partial = partial.data(), a.arrived = arrived.data();
  simt::Stream stream;
  const WgmmaLinearLaunch l{c.splits, c.blocks, true};
  for (int run = 0; run < 2; ++run) {  // counters are as before after a run
    const char* why = launch_wgmma_linear<T, kRows, kGroups, kBoxes, kStages>(a, Epilogue{}, l, &stream);
    ASSERT_EQ(why, nullptr);
    ASSERT_EQ(take_launch_error(), nullptr);
    for (uint32_t n : arrived) ASSERT_EQ(n, 0u);
    const double ulp = dtype == DType::kBF16 ? 1.0 / 256 : 1.0 / 2048;
    for (int m = 0; m < c.m; ++m) {
      for (int j = 0; j < c.n; ++j) {
        double value[2] = {}, magnitude = 0;
        for (int s = 0; s < kSlices; ++s) {
          for (int k = 0; k < c.k; ++k) {
            const double term = static_cast<double>(x.get(size(m, c.k) + static_cast<size_t>(k))) *
                                static_cast<double>(w.get(size(s * c.n + j, c.k) + static_cast<size_t>(k)));
            value[s] += term, magnitude += std::abs(term);
          }
          value[s] += static_cast<double>(bias.get(static_cast<size_t>(s * c.n + j)));
        }
        double expected = value[0], error = magnitude * 2e-6;
        if (kSlices == 2) {
          // Three roundings: of both products and of the gate.
          expected = value[0] / (1 + std::exp(-value[0])) * value[1];
          error += 4 * ulp * (std::abs(expected) + std::abs(value[0] * value[1]));
        }
        ASSERT_NEAR(y.get(size(m, c.n) + static_cast<size_t>(j)), expected,
                    std::abs(expected) * ulp * 1.01 + error)
            << "row " << m << ", output " << j << ", run " << run;
      }
    }
  }
}

TEST(CudaLinearWgmma, ClustersShareColumns) {
  for (int splits : {1, 2, 3, 4, 8}) {
    check<bf16, StoreLinear>({16, 128, 1024, splits});
    check<f16, StoreLinear>({5, 200, 72 * 8, splits});  // a tile that is not full, a chunk that is not
    check<bf16, StoreLinear>({7, 133, 520, splits});    // rows of y that begin anywhere
  }
  check<bf16, StoreLinear>({3, 70, 136, 8});  // fewer chunks than blocks of the cluster
}

TEST(CudaLinearWgmma, BlocksShareTiles) {
  for (int blocks : {1, 2, 3, 5, 7, 32}) {
    check<bf16, StoreLinear>({16, 300, 520, 0, blocks});
    check<f16, StoreLinear>({9, 128, 1032, 0, blocks});
  }
}

TEST(CudaLinearWgmma, Gates) {
  for (int blocks : {1, 3, 5}) check<bf16, GateStore>({16, 200, 200, 0, blocks});
  for (int splits : {1, 2, 3}) check<f16, GateStore>({7, 136, 264, splits});
  check<bf16, GateStore>({1, 8, 8, 0, 4});
}

// Clusters that fit a device of 132 processors in groups of 16 and 18.
int clusters(int, int splits) { return 6 * (16 / splits) + 2 * (18 / splits); }

TEST(CudaLinearWgmma, ChoicesFitTheDevice) {
  for (int rows : kWgmmaRows) {
    for (int64_t cols : {64, 512, 2048, 4096, 11008, 14336}) {
      for (int64_t weight_rows = 8; weight_rows < 200000; weight_rows = weight_rows * 3 / 2) {
        SCOPED_TRACE(std::to_string(rows) + " rows, weights " + std::to_string(weight_rows) + " x " +
                     std::to_string(cols));
        const WgmmaChoice c = choose_wgmma_linear(rows, cols, weight_rows, 132, clusters);
        const int64_t tiles = (weight_rows + c.groups * 64 - 1) / (c.groups * 64);
        ASSERT_GE(c.groups, 1);
        ASSERT_LE(c.groups, kMaxWgmmaGroups);
        ASSERT_LE(tiles * c.splits, 132);
        if (c.splits > 1) {
          ASSERT_LE(tiles, clusters(c.groups, c.splits));
        }
      }
    }
  }
}

TEST(CudaLinearWgmma, ChoicesUseMostOfTheDevice) {
  const struct {
    int64_t weight_rows, cols;
  } shapes[] = {{6144, 4096}, {4096, 4096}, {28672, 4096}, {4096, 14336}, {22016, 2048}, {2048, 11008}};
  for (const auto& s : shapes) {
    const WgmmaChoice c = choose_wgmma_linear(64, s.cols, s.weight_rows, 132, clusters);
    const int64_t tiles = (s.weight_rows + c.groups * 64 - 1) / (c.groups * 64);
    EXPECT_GT(c.splits, 0) << s.weight_rows << " x " << s.cols;  // no sums through memory
    EXPECT_GE(tiles * c.splits, 88) << s.weight_rows << " x " << s.cols;
  }
  EXPECT_EQ(choose_wgmma_linear(64, 4096, 128256, 132, clusters).splits, 0);
}

}  // namespace
}  // namespace autodeploy::cuda
