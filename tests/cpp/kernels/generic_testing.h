// Helpers for tests of generic kernels: tensors that own their memory, and kernels run from a spec.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/generic/region.h"
#include "kernels/kernel.h"

namespace autodeploy::generic_testing {

// A strided view on memory of its own. Elements are reached through double, which holds float, bool and small
// integers.
class Tensor {
 public:
  Tensor(DType dtype, std::vector<int64_t> shape) : Tensor(dtype, shape, contiguous(shape), 0) {}
  Tensor(DType dtype, std::vector<int64_t> shape, std::vector<int64_t> stride, int64_t offset)
      : dtype_(dtype), shape_(std::move(shape)), stride_(std::move(stride)), offset_(offset) {
    int64_t last = offset;
    for (size_t i = 0; i < shape_.size(); ++i) last += std::max<int64_t>(0, shape_[i] - 1) * stride_[i];
    memory_ = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>((last + 1) * dtype_size(dtype)),
                                                     uint8_t{0xff});
  }

  TensorView view() const {
    TensorView v;
    v.data = memory_->data() + offset_ * dtype_size(dtype_);
    v.dtype = dtype_;
    v.ndim = static_cast<int>(shape_.size());
    for (size_t i = 0; i < shape_.size(); ++i) v.shape[i] = shape_[i], v.stride[i] = stride_[i];
    return v;
  }
  OperandSpec spec() const {
    OperandSpec o;
    o.present = true;
    o.dtype = dtype_;
    for (size_t i = 0; i < shape_.size(); ++i) {
      o.shape.push_back(Dim{shape_[i], 0, 0});
      o.stride.push_back(Dim{stride_[i], 0, 0});
    }
    return o;
  }

  int64_t numel() const { return view().numel(); }
  // The i-th element in row-major order of the shape.
  double at(int64_t i) const { return read(position(i)); }
  void set(int64_t i, double v) { write(position(i), v); }
  void fill(const std::vector<double>& values) {
    for (int64_t i = 0; i < numel(); ++i) set(i, values[static_cast<size_t>(i) % values.size()]);
  }
  void randomize(std::mt19937& rng, double scale = 2.0) {
    std::normal_distribution<double> normal(0, scale);
    const int64_t count = static_cast<int64_t>(memory_->size()) / dtype_size(dtype_);
    for (int64_t i = 0; i < count; ++i) {
      const double x = normal(rng);
      write(i, dtype_ == DType::kBool ? x > 0 : dtype_ == DType::kI64 ? std::round(4 * x) : x);
    }
  }
  std::vector<double> values() const {
    std::vector<double> out;
    for (int64_t i = 0; i < numel(); ++i) out.push_back(at(i));
    return out;
  }
  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  const std::vector<uint8_t>& bytes() const { return *memory_; }

 private:
  static std::vector<int64_t> contiguous(const std::vector<int64_t>& shape) {
    std::vector<int64_t> s(shape.size());
    int64_t next = 1;
    for (size_t i = shape.size(); i-- > 0; next *= shape[i]) s[i] = next;
    return s;
  }
  int64_t position(int64_t i) const {
    int64_t p = offset_;
    for (size_t d = shape_.size(); d-- > 0; i /= shape_[d]) p += i % shape_[d] * stride_[d];
    return p;
  }
  double read(int64_t p) const {
    const uint8_t* m = memory_->data();
    if (dtype_ == DType::kBool) return m[p];
    if (dtype_ == DType::kI64) return static_cast<double>(reinterpret_cast<const int64_t*>(m)[p]);
    return reinterpret_cast<const float*>(m)[p];
  }
  void write(int64_t p, double v) {
    uint8_t* m = memory_->data();
    if (dtype_ == DType::kBool)
      m[p] = v != 0;
    else if (dtype_ == DType::kI64)
      reinterpret_cast<int64_t*>(m)[p] = static_cast<int64_t>(v);
    else
      reinterpret_cast<float*>(m)[p] = static_cast<float>(v);
  }

  DType dtype_;
  std::vector<int64_t> shape_, stride_;
  int64_t offset_;
  std::shared_ptr<std::vector<uint8_t>> memory_;
};

struct Call {
  std::string op;
  std::vector<Tensor> in = {}, out = {};
  std::vector<std::pair<std::string, AttrValue>> attrs = {};
  const RegionProgram* region = nullptr;
  std::string kernel = {};  // by name; empty: the preferred one
};

inline KernelSpec make_spec(const Call& r, int num_threads) {
  KernelSpec spec;
  spec.op = r.op;
  spec.attrs.set_owner(r.op);
  for (const auto& [name, value] : r.attrs) spec.attrs.set(name, value);
  for (const Tensor& t : r.in) spec.in.push_back(t.spec());
  for (const Tensor& t : r.out) spec.out.push_back(t.spec());
  spec.region = r.region;
  spec.max_tokens = spec.max_rows = 1 << 20;
  spec.max_seqs = 1;
  spec.max_seq_len = 1 << 20;
  spec.num_threads = num_threads;
  return spec;
}

// Runs a kernel once; returns false where it declines (another instruction set).
inline bool run_kernel(const Call& r, int num_threads = 1) {
  const KernelSpec spec = make_spec(r, num_threads);
  std::unique_ptr<Kernel> kernel;
  for (const KernelEntry& e : kernel_table()) {
    if (r.op != e.op || (!r.kernel.empty() && r.kernel != e.name)) continue;
    std::string why;
    kernel = e.make(spec, &why);
    if (kernel) break;
    if (!r.kernel.empty()) return false;
  }
  if (!kernel) {
    ADD_FAILURE() << "no kernel for " << r.op;
    return false;
  }
  ThreadPool pool(num_threads);
  const std::vector<uint8_t> raw(static_cast<size_t>(kernel->workspace_bytes() + 128), uint8_t{0xff});
  uint8_t* workspace = const_cast<uint8_t*>(raw.data()) + (64 - reinterpret_cast<uintptr_t>(raw.data()) % 64);
  std::vector<TensorView> in, out;
  for (const Tensor& t : r.in) in.push_back(t.view());
  for (const Tensor& t : r.out) out.push_back(t.view());
  KernelCall call;
  call.in = in;
  call.out = out;
  call.workspace = workspace;
  call.pool = &pool;
  kernel->run(call);
  return true;
}

inline std::string coordinate(const std::vector<int64_t>& shape, int64_t i) {
  std::string s;
  for (size_t d = shape.size(); d-- > 0; i /= shape[d])
    s = std::to_string(i % shape[d]) + (s.empty() ? "" : ", ") + s;
  return "[" + s + "]";
}

// Reports the first element beyond |a - b| <= atol + rtol |b|; NaN equals NaN.
inline void expect_close(const Tensor& found, const std::vector<double>& expected, double rtol, double atol,
                         const std::string& what) {
  ASSERT_EQ(static_cast<size_t>(found.numel()), expected.size()) << what;
  for (int64_t i = 0; i < found.numel(); ++i) {
    const double a = found.at(i), b = expected[static_cast<size_t>(i)];
    const bool ok =
        (std::isnan(a) && std::isnan(b)) || a == b || std::abs(a - b) <= atol + rtol * std::abs(b);
    ASSERT_TRUE(ok) << what << ": first wrong element " << coordinate(found.shape(), i) << ": found " << a
                    << ", expected " << b;
  }
}

inline std::string message_of(const Call& r) {
  try {
    const KernelSpec spec = make_spec(r, 1);
    for (const KernelEntry& e : kernel_table()) {
      std::string why;
      if (r.op == e.op) e.make(spec, &why);
    }
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidArtifact);
    return e.what();
  }
  return "";
}

}  // namespace autodeploy::generic_testing
