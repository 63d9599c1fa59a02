// What tests of kernels on the emulated device share: memory, views and specs of operands, one call of a
// kernel.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "emulated_setting.h"
#include "kernels/cuda/device_step.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

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

inline OperandSpec operand(DType t, std::vector<int64_t> shape, std::vector<int64_t> stride) {
  OperandSpec o;
  o.present = true;
  o.dtype = t;
  for (int64_t n : shape) o.shape.push_back({n});
  for (int64_t n : stride) o.stride.push_back({n});
  return o;
}
inline TensorView view(void* data, DType t, std::vector<int64_t> shape, std::vector<int64_t> stride) {
  TensorView v;
  v.data = data;
  v.dtype = t;
  v.ndim = static_cast<int>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) v.shape[i] = shape[i], v.stride[i] = stride[i];
  return v;
}

// Contiguous.
inline std::vector<int64_t> strides_of(const std::vector<int64_t>& shape) {
  std::vector<int64_t> stride(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) stride[i] = step;
  return stride;
}

// An operand and where it lies.
struct Operand {
  OperandSpec spec;
  TensorView view;
};
inline Operand make_operand(void* data, DType t, std::vector<int64_t> shape, std::vector<int64_t> stride,
                            bool param = false) {
  Operand o{operand(t, shape, stride), view(data, t, shape, stride)};
  if (param) o.spec.constant = data;
  return o;
}
inline Operand make_operand(void* data, DType t, const std::vector<int64_t>& shape, bool param = false) {
  return make_operand(data, t, shape, strides_of(shape), param);
}

inline const KernelEntry& entry(const std::string& name) {
  for (const KernelEntry& e : kernel_table()) {
    if (e.name == name) return e;
  }
  throw std::runtime_error("no kernel " + name);
}

// Makes the kernel of that name for the operands and runs it once. False where it declines.
inline bool run_kernel(const std::string& name, KernelSpec spec, const std::vector<Operand>& in,
                       const std::vector<Operand>& out, std::string* why) {
  std::vector<TensorView> in_views, out_views;
  for (const Operand& o : in) {
    spec.in.push_back(o.spec);
    in_views.push_back(o.view);
  }
  for (const Operand& o : out) {
    spec.out.push_back(o.spec);
    out_views.push_back(o.view);
  }
  const auto kernel = entry(name).make(spec, why);
  if (!kernel) return false;
  std::vector<uint8_t> workspace(static_cast<size_t>(kernel->workspace_bytes()) + 256);
  simt::Stream stream;
  DeviceStep step;
  step.stream = &stream;
  KernelCall call;
  call.in = in_views, call.out = out_views;
  call.workspace = workspace.data() + (256 - reinterpret_cast<uintptr_t>(workspace.data()) % 256) % 256;
  call.device = &step;
  kernel->run(call);
  EXPECT_EQ(take_launch_error(), nullptr);
  return true;
}

}  // namespace autodeploy::cuda
