// What factories of device kernels share: dtype checks, row views, and a Kernel made of a function.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/cpu/spec_check.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/device_step.h"
#include "kernels/kernel.h"

namespace autodeploy::cuda {

inline Stream stream_of(const KernelCall& call) { return static_cast<Stream>(call.device->stream); }

constexpr bool is_float(DType t) { return t == DType::kF32 || t == DType::kF16 || t == DType::kBF16; }

// Whether the given operands, where present, and all results are floats; else says so in *why.
inline bool all_float(const KernelSpec& spec, std::initializer_list<size_t> inputs, std::string* why) {
  const auto fits = [&](const OperandSpec& o) {
    if (!o.present || is_float(o.dtype)) return true;
    *why = "it takes floats, found " + std::string(dtype_name(o.dtype));
    return false;
  };
  for (size_t i : inputs) {
    if (!fits(spec.in.at(i))) return false;
  }
  for (const OperandSpec& o : spec.out) {
    if (!fits(o)) return false;
  }
  return true;
}

// Number of blocks for so many items.
constexpr unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// The rows of a view - everything but its last `inner` dimensions, flattened in order - for kernels:
// offset(i) is where row i begins, in elements. Dimensions that lie in one stride are joined.
class DeviceRows {
 public:
  DeviceRows() = default;
  DeviceRows(const TensorView& view, int inner) : data(view.data) {
    for (int d = 0; d < view.ndim - inner; ++d) {
      const int64_t n = view.shape[static_cast<size_t>(d)], s = view.stride[static_cast<size_t>(d)];
      rows *= n;
      if (n == 1 && dims > 0) continue;
      if (dims > 0 && shape[dims - 1] == 1) --dims;
      if (dims > 0 && stride[dims - 1] == s * n) {
        shape[dims - 1] *= n;
        stride[dims - 1] = s;
      } else {
        shape[dims] = n;
        stride[dims++] = s;
      }
    }
  }
  __host__ AD_DEVICE int64_t offset(int64_t i) const {
    if (dims <= 1) return i * stride[0];
    int64_t at = 0;
    if (rows <= INT32_MAX) {  // divisions of 32 bits are several times cheaper
      uint32_t j = static_cast<uint32_t>(i);
      for (int d = dims; d-- > 1;) {
        const uint32_t n = static_cast<uint32_t>(shape[d]);
        at += j % n * stride[d];
        j /= n;
      }
      return at + j * stride[0];
    }
    for (int d = dims; d-- > 1;) {
      at += i % shape[d] * stride[d];
      i /= shape[d];
    }
    return at + i * stride[0];
  }
  template <class T>
  __host__ AD_DEVICE T* row(int64_t i) const {
    return static_cast<T*>(data) + offset(i);
  }

  void* data = nullptr;
  int64_t rows = 1;
  int dims = 0;
  int64_t shape[kMaxDims] = {}, stride[kMaxDims] = {};
};

inline bool aligned_16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
// Whether rows begin at 16-byte boundaries; elements of so many bytes.
inline bool rows_aligned_16(const DeviceRows& rows, int64_t element = 2) {
  if (!aligned_16(rows.data)) return false;
  for (int d = 0; d < rows.dims; ++d) {
    if (rows.shape[d] > 1 && rows.stride[d] * element % 16 != 0) return false;
  }
  return true;
}

// A kernel whose work is a function of the call and what was learnt from the spec.
template <class State, class Fn>
class FunctionKernel final : public Kernel {
 public:
  FunctionKernel(std::string name, State state, Fn fn, int64_t workspace)
      : name_(std::move(name)), state_(std::move(state)), fn_(fn), workspace_(workspace) {}
  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override { return workspace_; }
  void run(const KernelCall& call) const override { fn_(state_, call); }

 private:
  std::string name_;
  State state_;
  Fn fn_;
  int64_t workspace_;
};

template <class State, class Fn>
std::unique_ptr<Kernel> make_function_kernel(std::string name, State state, Fn fn, int64_t workspace = 0) {
  return std::make_unique<FunctionKernel<State, Fn>>(std::move(name), std::move(state), fn, workspace);
}

// All kernels of the device, in order of preference within an op (kernel_list.inc).
std::span<const KernelEntry> kernel_table();

}  // namespace autodeploy::cuda
