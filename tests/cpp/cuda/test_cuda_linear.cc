// The fast kernels of linear, on the emulated device, against sums in double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/device_step.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

// 16-bit floats in memory that begins at a 16-byte boundary.
struct Halves {
  explicit Halves(DType t, size_t n) : dtype(t), bits(n + 8) {
    start = (16 - reinterpret_cast<uintptr_t>(bits.data()) % 16) / 2 % 8;
  }
  uint16_t* data() { return bits.data() + start; }
  void set(size_t i, float x) {
    if (dtype == DType::kBF16) {
      const bf16 v = __float2bfloat16_rn(x);
      std::memcpy(data() + i, &v, 2);
    } else {
      const f16 v = __float2half_rn(x);
      std::memcpy(data() + i, &v, 2);
    }
  }
  float get(size_t i) {
    if (dtype == DType::kBF16) {
      bf16 v;
      std::memcpy(static_cast<void*>(&v), data() + i, 2);
      return __bfloat162float(v);
    }
    f16 v;
    std::memcpy(static_cast<void*>(&v), data() + i, 2);
    return __half2float(v);
  }
  DType dtype;
  std::vector<uint16_t> bits;
  size_t start;
};

OperandSpec operand(DType t, std::vector<int64_t> shape, std::vector<int64_t> stride) {
  OperandSpec o;
  o.present = true;
  o.dtype = t;
  for (int64_t n : shape) o.shape.push_back({n});
  for (int64_t n : stride) o.stride.push_back({n});
  return o;
}
TensorView view(void* data, DType t, std::vector<int64_t> shape, std::vector<int64_t> stride) {
  TensorView v;
  v.data = data;
  v.dtype = t;
  v.ndim = static_cast<int>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) v.shape[i] = shape[i], v.stride[i] = stride[i];
  return v;
}

const KernelEntry& entry(const std::string& name) {
  for (const KernelEntry& e : kernel_table()) {
    if (e.name == name) return e;
  }
  throw std::runtime_error("no kernel " + name);
}

enum class Bias { kNone, kAct, kF32 };

struct Case {
  DType dtype = DType::kBF16;
  int64_t m = 1, n = 1, k = 8;
  int64_t x_gap = 0;     // elements between rows of x
  int64_t x_offset = 0;  // elements before x
  Bias bias = Bias::kNone;
};

std::string text(const Case& c) {
  return std::string(dtype_name(c.dtype)) + " m " + std::to_string(c.m) + " n " + std::to_string(c.n) +
         " k " + std::to_string(c.k) + " gap " + std::to_string(c.x_gap) + " offset " +
         std::to_string(c.x_offset) + " bias " + std::to_string(static_cast<int>(c.bias));
}

void check(const Case& c) {
  SCOPED_TRACE(text(c));
  std::mt19937 random(static_cast<unsigned>(c.m * 1000003 + c.n * 1009 + c.k));
  std::uniform_real_distribution<float> uniform(-1, 1);
  const int64_t x_stride = c.k + c.x_gap;
  Halves x(c.dtype, static_cast<size_t>(c.x_offset + c.m * x_stride)),
      w(c.dtype, static_cast<size_t>(c.n * c.k)), bias(c.dtype, static_cast<size_t>(c.n)),
      y(c.dtype, static_cast<size_t>(c.m * c.n));
  std::vector<float> bias_f32(static_cast<size_t>(c.n));
  for (size_t i = 0; i < static_cast<size_t>(c.x_offset + c.m * x_stride); ++i) x.set(i, NAN);
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
  spec.in = {operand(c.dtype, {c.m, c.k}, {x_stride, 1}), operand(c.dtype, {c.n, c.k}, {c.k, 1}), {}};
  spec.in[1].constant = w.data();
  if (c.bias == Bias::kAct) spec.in[2] = operand(c.dtype, {c.n}, {1});
  if (c.bias == Bias::kF32) spec.in[2] = operand(DType::kF32, {c.n}, {1});
  spec.out = {operand(c.dtype, {c.m, c.n}, {c.n, 1})};
  std::string why;
  const auto kernel = entry("linear.small").make(spec, &why);
  ASSERT_TRUE(kernel) << why;

  std::vector<TensorView> in = {view(x.data() + c.x_offset, c.dtype, {c.m, c.k}, {x_stride, 1}),
                                view(w.data(), c.dtype, {c.n, c.k}, {c.k, 1}),
                                {}};
  if (c.bias == Bias::kAct) in[2] = view(bias.data(), c.dtype, {c.n}, {1});
  if (c.bias == Bias::kF32) in[2] = view(bias_f32.data(), DType::kF32, {c.n}, {1});
  const std::vector<TensorView> out = {view(y.data(), c.dtype, {c.m, c.n}, {c.n, 1})};
  std::vector<uint8_t> workspace(static_cast<size_t>(kernel->workspace_bytes()) + 64);
  simt::Stream stream;
  DeviceStep step;
  step.stream = &stream;
  KernelCall call;
  call.in = in, call.out = out;
  call.workspace = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
  call.device = &step;
  kernel->run(call);
  ASSERT_EQ(take_launch_error(), nullptr);

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

TEST(CudaLinear, NoRows) { check({DType::kBF16, 0, 5, 16}); }

}  // namespace
}  // namespace autodeploy::cuda
