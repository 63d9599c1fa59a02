// Every form of the kernel for many rows, on the emulated device, against sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda_testing.h"
#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_tensor_run.inc"

namespace autodeploy::cuda {
namespace {

struct Case {
  int64_t m = 1, outputs = 1, k = 8;
  int splits = 1;
  bool bias = false;
};

// Slice s of output j is row s * outputs + j of the weights.
template <class TileForm, class Epilogue>
void check(const Case& c, const Epilogue& epilogue) {
  constexpr int64_t kSlices = Epilogue::kSlices;
  const int64_t n = c.outputs * kSlices;
  std::mt19937 random(static_cast<unsigned>(c.m * 1000003 + n * 1009 + c.k));
  std::uniform_real_distribution<float> uniform(-1, 1);
  const auto numbers = [&](int64_t count) {
    Halves h(DType::kBF16, static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) h.set(static_cast<size_t>(i), uniform(random));
    return h;
  };
  Halves x = numbers(c.m * c.k), w = numbers(n * c.k), bias = numbers(n), y = numbers(c.m * c.outputs);
  std::vector<float> partial(static_cast<size_t>(c.splits * c.m * n), NAN);
  TensorLinearArgs a;
  a.x = DeviceRows(view(x.data(), DType::kBF16, {c.m, c.k}, {c.k, 1}), 1);
  a.y = DeviceRows(view(y.data(), DType::kBF16, {c.m, c.outputs}, {c.outputs, 1}), 1);
  a.weight = w.data();
  if (c.bias) a.bias = bias.data();
  a.partial = partial.data();
  a.rows = static_cast<int32_t>(c.m), a.cols = static_cast<int32_t>(c.k);
  a.outputs = static_cast<int32_t>(c.outputs), a.splits = c.splits;
  a.pairs = stores_pairs(a.y, c.outputs);
  for (int64_t s = 0; s < kSlices; ++s) a.slice_offset[s] = static_cast<int32_t>(s * c.outputs);
  TileForm::template launch<bf16>(a, epilogue, nullptr);

  for (int64_t m = 0; m < c.m; ++m) {
    for (int64_t j = 0; j < c.outputs; ++j) {
      float products[kSlices];
      double magnitude = 0;
      for (int64_t s = 0; s < kSlices; ++s) {
        const int64_t row = s * c.outputs + j;
        double sum = c.bias ? static_cast<double>(bias.get(static_cast<size_t>(row))) : 0;
        for (int64_t k = 0; k < c.k; ++k) {
          const double term = static_cast<double>(x.get(static_cast<size_t>(m * c.k + k))) *
                              static_cast<double>(w.get(static_cast<size_t>(row * c.k + k)));
          sum += term, magnitude += std::abs(term);
        }
        products[s] = static_cast<float>(sum);
      }
      const double expected = static_cast<double>(epilogue.template result<bf16>(products));
      // Half a unit of rounding of the result; a gate's products are rounded before, two of them.
      const double ulps = kSlices == 1 ? 1.01 : 6;
      ASSERT_NEAR(y.get(static_cast<size_t>(m * c.outputs + j)), expected,
                  std::abs(expected) / 256 * ulps + magnitude * (kSlices == 1 ? 2e-6 : 2e-4))
          << "row " << m << ", output " << j;
    }
  }
}

TEST(CudaLinearTensor, EveryTile) {
  for_each_tile([](auto tile) {
    using TileForm = decltype(tile);
    for (const Case& c :
         {Case{20, 300, 200}, {64, 256, 72, 1, true}, {70, 301, 136, 2, true}, {33, 90, 648, 3}}) {
      SCOPED_TRACE("m " + std::to_string(c.m) + " outputs " + std::to_string(c.outputs) + " splits " +
                   std::to_string(c.splits));
      check<TileForm>(c, TensorStore{});
      check<TileForm>(c, GateStore{});
    }
  });
}

}  // namespace
}  // namespace autodeploy::cuda
