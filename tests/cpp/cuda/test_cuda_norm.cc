// Norms of every length and alignment, on the emulated device, against sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "cuda_testing.h"

namespace autodeploy::cuda {
namespace {

struct Case {
  const char* op = "rms_norm";
  int64_t rows = 1, len = 8;
  int64_t gap = 0, offset = 0;  // elements between rows of x, and before x
  bool f32_weight = false, f32 = false, half_weight = false;
};

// Elements of either type.
struct Numbers {
  Numbers(bool wide, int64_t n) : f32(wide), halves(DType::kBF16, static_cast<size_t>(wide ? 0 : n)) {
    if (wide) floats.resize(static_cast<size_t>(n) + 4);
    shift = (16 - reinterpret_cast<uintptr_t>(floats.data()) % 16) / 4 % 4;
  }
  void* data() { return f32 ? static_cast<void*>(floats.data() + shift) : halves.data(); }
  void set(int64_t i, float x) {
    if (f32)
      floats[shift + static_cast<size_t>(i)] = x;
    else
      halves.set(static_cast<size_t>(i), x);
  }
  double get(int64_t i) {
    return static_cast<double>(f32 ? floats[shift + static_cast<size_t>(i)]
                                   : halves.get(static_cast<size_t>(i)));
  }
  bool f32;
  Halves halves;
  std::vector<float> floats;
  size_t shift = 0;
};

void check(const Case& c) {
  const std::string op = c.op;
  SCOPED_TRACE(op + " rows " + std::to_string(c.rows) + " len " + std::to_string(c.len) + " gap " +
               std::to_string(c.gap) + " offset " + std::to_string(c.offset));
  const bool layer = op.find("layer") != std::string::npos, add = op.find("add") == 0;
  const DType t = c.f32 ? DType::kF32 : DType::kBF16, weight_type = c.f32_weight    ? DType::kF32
                                                                    : c.half_weight ? DType::kBF16
                                                                                    : t;
  std::mt19937 random(static_cast<unsigned>(c.len));
  std::normal_distribution<float> normal;
  const int64_t stride = c.len + c.gap;
  const auto numbers = [&](bool f32, int64_t n) {
    Numbers x(f32, n);
    for (int64_t i = 0; i < n; ++i) x.set(i, normal(random));
    return x;
  };
  Numbers x = numbers(c.f32, c.offset + c.rows * stride), residual = numbers(c.f32, c.rows * c.len);
  Numbers weight = numbers(weight_type == DType::kF32, c.len),
          bias = numbers(weight_type == DType::kF32, c.len);
  Numbers y(c.f32, c.rows * c.len), sum(c.f32, c.rows * c.len);
  KernelSpec spec;
  spec.op = op;
  spec.attrs.set("eps", 1e-5);
  if (!layer) spec.attrs.set("offset", 0.5);
  const std::vector<int64_t> shape{c.rows, c.len};
  auto* x_data = static_cast<uint8_t*>(x.data()) + c.offset * dtype_size(t);
  std::vector<Operand> in{make_operand(x_data, t, shape, {stride, 1})}, out{make_operand(y.data(), t, shape)};
  if (add)
    in.push_back(make_operand(residual.data(), t, shape)), out.push_back(make_operand(sum.data(), t, shape));
  in.push_back(make_operand(weight.data(), weight_type, {c.len}, true));
  if (layer) in.push_back(make_operand(bias.data(), weight_type, {c.len}, true));
  std::string why;
  ASSERT_TRUE(run_kernel(op + ".plain", spec, in, out, &why)) << why;

  const double ulp = c.f32 ? 1e-6 : 1.0 / 256;
  for (int64_t r = 0; r < c.rows; ++r) {
    std::vector<double> row(static_cast<size_t>(c.len));
    double mean = 0, square = 0;
    for (int64_t i = 0; i < c.len; ++i) {
      double& v = row[static_cast<size_t>(i)];
      v = x.get(c.offset + r * stride + i);
      if (add) {
        const double exact = v + residual.get(r * c.len + i);
        v = sum.get(r * c.len + i);
        ASSERT_NEAR(v, exact, std::abs(exact) * ulp) << "sum, row " << r << ", column " << i;
      }
      mean += v / static_cast<double>(c.len);
    }
    if (!layer) mean = 0;
    for (const double v : row) square += (v - mean) * (v - mean) / static_cast<double>(c.len);
    for (int64_t i = 0; i < c.len; ++i) {
      double expected = (row[static_cast<size_t>(i)] - mean) / std::sqrt(square + 1e-5);
      expected *= weight.get(i) + (layer ? 0 : 0.5);
      if (layer) expected += bias.get(i);
      ASSERT_NEAR(y.get(r * c.len + i), expected, std::abs(expected) * ulp * 1.01 + 4e-6)
          << "row " << r << ", column " << i;
    }
  }
}

TEST(CudaNorm, LengthsAndAlignments) {
  for (const char* op : {"rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"}) {
    for (int64_t len : {8, 24, 2048, 2056, 4104, 8200, 16384, 16392, 77}) check({op, 2, len});
    check({op, 3, 264, 8});
    check({op, 3, 264, 3});
    check({op, 3, 264, 0, 4});
    check({op, 2, 2056, 0, 0, true});
    check({op, 2, 2056, 0, 0, false, true, true});
    for (int64_t len : {4, 1024, 1028, 4100, 8192, 8196}) check({op, 2, len, 0, 0, false, true});
  }
}

}  // namespace
}  // namespace autodeploy::cuda
