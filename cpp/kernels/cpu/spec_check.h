// Checks that factories make on a KernelSpec, and rows of strided views.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "core/error.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernel.h"

namespace autodeploy {

// "[T, 9, 64]"
std::string shape_text(const std::vector<Dim>& shape);

// Wraps the checks of one instruction; each throws Error(kInvalidArtifact) "[op] expected ..., found ...
// (source)".
class SpecCheck {
 public:
  explicit SpecCheck(const KernelSpec& spec) : spec_(spec) {}

  [[noreturn]] void fail(const std::string& expected, const std::string& found) const;
  // Operand counts; optional operands are part of the count and may be absent.
  void arity(size_t inputs, size_t outputs, size_t states = 0) const;
  // Present, with `rank` dimensions (at least `rank` if at_least), contiguous in the inner `inner`
  // dimensions.
  const OperandSpec& input(size_t i, const char* name, size_t rank, size_t inner,
                           bool at_least = false) const;
  // Like input(), or nullptr when it is absent.
  const OperandSpec* optional_input(size_t i, const char* name, size_t rank, size_t inner) const;
  const OperandSpec& output(size_t i, const char* name, size_t rank, size_t inner,
                            bool at_least = false) const;
  // A present weight operand of the given rank whose segments agree with its shape.
  const PackedWeight& weight(size_t i, const char* name, size_t rank) const;
  void shape(const OperandSpec& operand, const char* name, const std::vector<Dim>& expected) const;
  // A dimension that must not depend on the step, and is at least 1.
  int64_t static_dim(const OperandSpec& operand, const char* name, size_t dim) const;
  void that(bool condition, const std::string& expected, const std::string& found) const {
    if (!condition) fail(expected, found);
  }
  double finite(const char* attr) const;
  int64_t integer(const char* attr, int64_t low, int64_t high) const;

  // Largest number of rows of an operand: product of its dims but the last `inner`, at the largest step.
  int64_t max_rows(const OperandSpec& operand, size_t inner) const;

 private:
  const OperandSpec& inner_contiguous(const OperandSpec& operand, const std::string& name, size_t rank,
                                      size_t inner, bool at_least) const;
  const KernelSpec& spec_;
};

// True when all present non-weight operands have `dtype` in the given list of inputs and all outputs; else
// says so in *why.
bool serves_float32(const KernelSpec& spec, std::initializer_list<size_t> inputs, std::string* why);

inline Dim fixed(int64_t n) { return {n, 0, 0}; }

// The rows of a view: everything but its last `inner` dimensions, flattened in order.
class RowView {
 public:
  RowView(const TensorView& view, int inner);
  int64_t rows() const { return rows_; }
  float* row(int64_t i) const {
    if (dims_ <= 1) return base_ + i * stride_[0];
    return base_ + offset(i);
  }

 private:
  int64_t offset(int64_t i) const;
  float* base_;
  int64_t rows_ = 1;
  int dims_ = 0;  // after joining dimensions that lie in one stride
  std::array<int64_t, kMaxDims> shape_{}, stride_{};
};

}  // namespace autodeploy

// Factories make_<op>_{portable,avx2,avx512} over make_<op>(spec, why, isa).
#define AD_CPU_FACTORY(op, suffix, isa)                                                    \
  std::unique_ptr<Kernel> make_##op##_##suffix(const KernelSpec& spec, std::string* why) { \
    return make_##op(spec, why, isa);                                                      \
  }
#define AD_CPU_FACTORIES(op)                   \
  AD_CPU_FACTORY(op, portable, Isa::kPortable) \
  AD_CPU_FACTORY(op, avx2, Isa::kAvx2)         \
  AD_CPU_FACTORY(op, avx512, Isa::kAvx512)
#define AD_CPU_VNNI_FACTORIES(op)            \
  AD_CPU_FACTORY(op, avxvnni, Isa::kAvxVnni) \
  AD_CPU_FACTORY(op, avx512vnni, Isa::kAvx512Vnni)
