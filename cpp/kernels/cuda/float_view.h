// Float operands that are read and written as float32 whatever their dtype is: a branch for each element,
// which is the same for all threads.
#pragma once

#include <cstdint>

#include "core/tensor_view.h"
#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

AD_DEVICE float load_float(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kBF16) return to_float(static_cast<const bf16*>(data)[i]);
  if (dtype == DType::kF16) return to_float(static_cast<const f16*>(data)[i]);
  return static_cast<const float*>(data)[i];
}
AD_DEVICE void store_float(void* data, DType dtype, int64_t i, float v) {
  if (dtype == DType::kBF16)
    static_cast<bf16*>(data)[i] = from_float<bf16>(v);
  else if (dtype == DType::kF16)
    static_cast<f16*>(data)[i] = from_float<f16>(v);
  else
    static_cast<float*>(data)[i] = v;
}

// A view of at most three dimensions; data is nullptr where the operand is absent.
struct FloatView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t stride[3] = {};

  FloatView() = default;
  explicit FloatView(const TensorView& v) : data(v.data), dtype(v.dtype) {
    for (int d = 0; d < v.ndim && d < 3; ++d) stride[d] = v.stride[static_cast<size_t>(d)];
  }
  AD_DEVICE float at(int64_t i) const { return load_float(data, dtype, i * stride[0]); }
  AD_DEVICE float at(int64_t i, int64_t j) const {
    return load_float(data, dtype, i * stride[0] + j * stride[1]);
  }
  AD_DEVICE float at(int64_t i, int64_t j, int64_t k) const {
    return load_float(data, dtype, i * stride[0] + j * stride[1] + k * stride[2]);
  }
  AD_DEVICE void set(int64_t i, int64_t j, float v) const {
    store_float(data, dtype, i * stride[0] + j * stride[1], v);
  }
  AD_DEVICE void set(int64_t i, int64_t j, int64_t k, float v) const {
    store_float(data, dtype, i * stride[0] + j * stride[1] + k * stride[2], v);
  }
};

}  // namespace autodeploy::cuda
