// Walking strided views: along one axis, and copies from any layout to any other.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "kernels/cpu/spec_check.h"
#include "kernels/kernel.h"

namespace autodeploy {

// The lines of a view along one dim; the other dims, flattened in order, number them. Views whose other dims
// agree number alike.
class AxisLines {
 public:
  AxisLines(const TensorView& view, int64_t dim);
  int64_t count() const { return count_; }
  int64_t len() const { return len_; }
  int64_t stride() const { return stride_; }  // between elements of a line
  // Position of the first element of a line.
  int64_t offset(int64_t line) const {
    int64_t at = 0;
    for (int d = outer_; d-- > 0;) {
      const size_t k = static_cast<size_t>(d);
      at += (d == 0 ? line : line % outer_shape_[k]) * outer_stride_[k];
      line /= outer_shape_[k];
    }
    return at;
  }

 private:
  int outer_ = 0;
  int64_t count_ = 1, len_ = 1, stride_ = 1;
  std::array<int64_t, kMaxDims> outer_shape_{}, outer_stride_{};
};

// Copies src to dst, which have one shape and dtype and do not overlap.
void copy_strided(const TensorView& dst, const TensorView& src, ThreadPool& pool);

// How many items of `cost` simple operations each to give a thread at once.
inline int64_t grain_of(int64_t cost) { return 1 + 30000 / (cost < 1 ? 1 : cost); }

// Whether all operands and results are float32, i64 or bool; else says so in *why.
bool serves_plain(const KernelSpec& spec, std::string* why);
// The attribute `dim`, checked against the operand's rank.
int64_t axis_attr(const SpecCheck& check, const OperandSpec& operand);
// The operand's shape with another size in one dim.
std::vector<Dim> shape_with(const OperandSpec& operand, int64_t dim, Dim size);
// Throws unless the operand has the dtype.
void expect_dtype(const SpecCheck& check, const OperandSpec& operand, DType dtype, const char* name);

// Largest size of a dim in any step.
inline int64_t max_size(const KernelSpec& spec, const Dim& d) {
  return d.eval(spec.max_tokens, spec.max_rows);
}

// Calls f with a null pointer of the element type that stands for a dtype: float, int64_t or uint8_t.
template <class F>
void dispatch_dtype(DType t, F&& f) {
  if (t == DType::kI64)
    f(static_cast<int64_t*>(nullptr));
  else if (t == DType::kBool)
    f(static_cast<uint8_t*>(nullptr));
  else
    f(static_cast<float*>(nullptr));
}
// The same for copying: uint32_t, uint64_t or uint8_t by size.
template <class F>
void dispatch_width(DType t, F&& f) {
  if (dtype_size(t) == 8)
    f(static_cast<uint64_t*>(nullptr));
  else if (dtype_size(t) == 4)
    f(static_cast<uint32_t*>(nullptr));
  else if (dtype_size(t) == 2)
    f(static_cast<uint16_t*>(nullptr));
  else
    f(static_cast<uint8_t*>(nullptr));
}

// A kernel whose work is a function of the call and what was learnt from the spec.
template <class State>
class StatedKernel : public Kernel {
 public:
  using Fn = void (*)(const State&, const KernelCall&);
  StatedKernel(const char* name, State state, Fn fn, int64_t workspace = 0)
      : name_(name), state_(state), fn_(fn), workspace_(workspace) {}
  const char* name() const override { return name_; }
  int64_t workspace_bytes() const override { return workspace_; }
  void run(const KernelCall& call) const override { fn_(state_, call); }

 private:
  const char* name_;
  State state_;
  Fn fn_;
  int64_t workspace_;
};

}  // namespace autodeploy
