// Float operands that are read and written as float32 whatever their dtype is: with a branch for each
// element, the same for all threads, or for kernels that are compiled for the dtype that their large operands
// have in common.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <optional>

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

// Stands for dtypes that are only known at run time, or differ between operands.
struct AnyFloat {};

template <class T>
AD_DEVICE float load_common(const void* data, DType dtype, int64_t i) {
  if constexpr (std::is_same_v<T, AnyFloat>) {
    return load_float(data, dtype, i);
  } else {
    return to_float(static_cast<const T*>(data)[i]);
  }
}
template <class T>
AD_DEVICE void store_common(void* data, DType dtype, int64_t i, float v) {
  if constexpr (std::is_same_v<T, AnyFloat>) {
    store_float(data, dtype, i, v);
  } else {
    static_cast<T*>(data)[i] = from_float<T>(v);
  }
}
template <class T>
AD_DEVICE float load_common(const FloatView& x, int64_t i, int64_t j) {
  return load_common<T>(x.data, x.dtype, i * x.stride[0] + j * x.stride[1]);
}
template <class T>
AD_DEVICE void store_common(const FloatView& x, int64_t i, int64_t j, float v) {
  store_common<T>(x.data, x.dtype, i * x.stride[0] + j * x.stride[1], v);
}

// The dtype of all of the operands, which are floats; none where they differ.
inline std::optional<DType> common_dtype(std::initializer_list<DType> dtypes) {
  for (DType t : dtypes) {
    if (t != *dtypes.begin()) return std::nullopt;
  }
  return *dtypes.begin();
}
// f(TypeTag<T>), T AnyFloat where there is no common dtype.
template <class F>
void dispatch_common(std::optional<DType> common, F&& f) {
  if (common)
    dispatch_act(*common, f);
  else
    f(TypeTag<AnyFloat>{});
}

}  // namespace autodeploy::cuda
