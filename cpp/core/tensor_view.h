// A strided view of memory owned by someone else.
#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace autodeploy {

constexpr int kMaxDims = 8;

struct TensorView {
  void* data = nullptr;  // element at index (0, ..., 0); nullptr for an absent optional operand
  DType dtype = DType::kF32;
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{};
  std::array<int64_t, kMaxDims> stride{};  // in elements; 0 broadcasts

  explicit operator bool() const { return data != nullptr; }
  int64_t numel() const {
    int64_t n = 1;
    for (int i = 0; i < ndim; ++i) n *= shape[i];
    return n;
  }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

}  // namespace autodeploy
