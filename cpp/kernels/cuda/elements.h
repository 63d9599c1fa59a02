// Elements of strided views: loads and stores whose dtype is known at run time, and views seen along a dim.
#pragma once

#include "kernels/cuda/float_view.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

// One rounding on the GPU. The emulation rounds twice: the hosts that run it may have no such instruction.
AD_DEVICE float multiply_add(float a, float b, float c) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  return a * b + c;
#else
  return fmaf(a, b, c);
#endif
}

// The element type of a class of dtypes, as kernels compute it: float for every float dtype.
template <class T>
AD_DEVICE T load_as(const void* data, DType t, int64_t i) {
  if constexpr (std::is_same_v<T, float>)
    return load_float(data, t, i);
  else
    return static_cast<const T*>(data)[i];
}
template <class T>
AD_DEVICE void store_as(void* data, DType t, int64_t i, T v) {
  if constexpr (std::is_same_v<T, float>)
    store_float(data, t, i, v);
  else
    static_cast<T*>(data)[i] = v;
}
// f(TypeTag<float | int64_t | uint8_t>) for a dtype's class.
template <class F>
void dispatch_class(DType t, F&& f) {
  if (t == DType::kI64)
    f(TypeTag<int64_t>{});
  else if (t == DType::kBool)
    f(TypeTag<uint8_t>{});
  else
    f(TypeTag<float>{});
}
// f(TypeTag) of an unsigned integer as wide as the dtype, for kernels that move elements.
template <class F>
void dispatch_width(DType t, F&& f) {
  const int64_t size = dtype_size(t);
  if (size == 8)
    f(TypeTag<uint64_t>{});
  else if (size == 4)
    f(TypeTag<uint32_t>{});
  else if (size == 2)
    f(TypeTag<uint16_t>{});
  else
    f(TypeTag<uint8_t>{});
}

// The view with one dim put last, for DeviceRows(view, 1): its rows are the lines along that dim. Views whose
// other dims agree number their lines alike.
inline TensorView with_dim_last(TensorView view, int64_t dim) {
  const size_t from = static_cast<size_t>(dim), last = static_cast<size_t>(view.ndim - 1);
  const int64_t size = view.shape[from], stride = view.stride[from];
  for (size_t d = from; d < last; ++d) view.shape[d] = view.shape[d + 1], view.stride[d] = view.stride[d + 1];
  view.shape[last] = size, view.stride[last] = stride;
  return view;
}

struct DeviceLines {
  DeviceLines() = default;
  DeviceLines(const TensorView& view, int64_t dim)
      : rows(with_dim_last(view, dim), 1),
        len(view.shape[static_cast<size_t>(dim)]),
        stride(view.stride[static_cast<size_t>(dim)]),
        dtype(view.dtype) {}

  DeviceRows rows;
  int64_t len = 0, stride = 0;
  DType dtype = DType::kF32;
};

// Whether rows of `width` elements can be moved in packs of `bytes`: their beginnings are aligned, their
// lengths whole.
inline bool moves_in_packs(const DeviceRows& rows, int64_t width, int64_t element_bytes, int64_t bytes) {
  bool whole = reinterpret_cast<uintptr_t>(rows.data) % static_cast<uintptr_t>(bytes) == 0 &&
               width * element_bytes % bytes == 0;
  for (int d = 0; d < rows.dims; ++d) whole = whole && rows.stride[d] * element_bytes % bytes == 0;
  return whole;
}

}  // namespace autodeploy::cuda
