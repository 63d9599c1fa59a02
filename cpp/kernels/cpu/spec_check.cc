#include "kernels/cpu/spec_check.h"

#include <cmath>

#include "kernels/cpu/packed_weight.h"

namespace autodeploy {
namespace {

std::string dim_text(const Dim& d) {
  std::string text;
  const auto term = [&](int64_t factor, const char* symbol) {
    if (factor == 0) return;
    if (!text.empty()) text += "+";
    text += factor == 1 ? symbol : std::to_string(factor) + "*" + symbol;
  };
  term(d.t, "T");
  term(d.r, "R");
  term(d.tr, "T*R");
  // Appended piece by piece: GCC 12 warns wrongly about `literal + string` under -O3.
  if (d.constant != 0 || text.empty()) {
    if (!text.empty()) text += '+';
    text += std::to_string(d.constant);
  }
  return text;
}

}  // namespace

std::string shape_text(const std::vector<Dim>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) text += ", ";
    text += dim_text(shape[i]);
  }
  return text + "]";
}

void SpecCheck::fail(const std::string& expected, const std::string& found) const {
  std::string message = "[" + spec_.op + "] expected " + expected + ", found " + found;
  if (!spec_.source.empty()) message += " (" + spec_.source + ")";
  throw Error(ErrorKind::kInvalidArtifact, message);
}

void SpecCheck::arity(size_t inputs, size_t outputs, size_t states) const {
  that(spec_.in.size() == inputs, std::to_string(inputs) + " operands", std::to_string(spec_.in.size()));
  that(spec_.out.size() == outputs, std::to_string(outputs) + " results", std::to_string(spec_.out.size()));
  that(spec_.states.size() == states, std::to_string(states) + " states",
       std::to_string(spec_.states.size()));
}

const OperandSpec& SpecCheck::inner_contiguous(const OperandSpec& o, const std::string& name, size_t rank,
                                               size_t inner, bool at_least) const {
  that(o.present, name, "none");
  that(o.weight == nullptr || !o.shape.empty(), name + " as a plain operand", "a weight");
  that(o.shape.size() == o.stride.size() && o.shape.size() <= kMaxDims,
       name + " of at most 8 dimensions with a stride each", shape_text(o.shape));
  that(o.shape.size() == rank || (at_least && o.shape.size() > rank),
       name + " of " + (at_least ? "at least " : "") + std::to_string(rank) + " dimensions",
       shape_text(o.shape));
  Dim stride = fixed(1);
  for (size_t i = o.shape.size(); i-- > o.shape.size() - inner;) {
    const bool one = o.shape[i] == fixed(1);  // its stride says nothing
    that(one || o.stride[i] == stride,
         name + " contiguous in its inner " + std::to_string(inner) + " dimensions",
         "strides " + shape_text(o.stride));
    that(o.shape[i].is_static(), name + " with inner dimensions that do not depend on the step",
         shape_text(o.shape));
    stride.constant *= o.shape[i].constant;
  }
  return o;
}

const OperandSpec& SpecCheck::input(size_t i, const char* name, size_t rank, size_t inner,
                                    bool at_least) const {
  return inner_contiguous(spec_.in.at(i), name, rank, inner, at_least);
}

const OperandSpec* SpecCheck::optional_input(size_t i, const char* name, size_t rank, size_t inner) const {
  if (!spec_.in.at(i).present) return nullptr;
  return &inner_contiguous(spec_.in.at(i), name, rank, inner, false);
}

const OperandSpec& SpecCheck::output(size_t i, const char* name, size_t rank, size_t inner,
                                     bool at_least) const {
  return inner_contiguous(spec_.out.at(i), name, rank, inner, at_least);
}

const PackedWeight& SpecCheck::weight(size_t i, const char* name, size_t rank) const {
  const OperandSpec& o = spec_.in.at(i);
  that(o.present && o.weight != nullptr, std::string(name) + " as a weight operand",
       o.present ? "a plain operand" : "none");
  const PackedWeight& w = *o.weight;
  const auto bad = [&](const std::string& expected) {
    std::string found = "[";
    for (size_t d = 0; d < w.shape.size(); ++d) found += (d ? ", " : "") + std::to_string(w.shape[d]);
    fail(expected + " for weight '" + w.name + "'",
         found + "] in " + std::to_string(w.segments.size()) + " segments");
  };
  if (w.shape.size() != rank || w.segments.empty()) bad(std::to_string(rank) + " dimensions and a segment");
  int64_t rows = 0;
  for (const PackedSegment& s : w.segments) {
    if (s.cols != w.shape.back() || s.cols < 1 || s.rows < 1) bad("segments of all columns");
    if (s.data == nullptr || s.group_rows != (rank == 3 ? w.shape[1] : s.rows)) bad("packed segments");
    rows += s.rows;
  }
  if (rows != (rank == 3 ? w.shape[0] * w.shape[1] : w.shape[0])) bad("segments that make up all rows");
  if (rank == 3 && w.segments.size() != 1) bad("one segment");
  return w;
}

void SpecCheck::shape(const OperandSpec& operand, const char* name, const std::vector<Dim>& expected) const {
  that(operand.shape == expected, std::string(name) + " " + shape_text(expected), shape_text(operand.shape));
}

int64_t SpecCheck::static_dim(const OperandSpec& operand, const char* name, size_t dim) const {
  const Dim& d = operand.shape.at(dim);
  that(d.is_static() && d.constant >= 1, std::string(name) + " with a fixed dimension " + std::to_string(dim),
       shape_text(operand.shape));
  return d.constant;
}

double SpecCheck::finite(const char* attr) const {
  const double value = spec_.attrs.number(attr);
  that(std::isfinite(value), std::string("a finite '") + attr + "'", std::to_string(value));
  return value;
}

int64_t SpecCheck::integer(const char* attr, int64_t low, int64_t high) const {
  const int64_t value = spec_.attrs.integer(attr);
  that(value >= low && value <= high,
       std::string("'") + attr + "' in [" + std::to_string(low) + ", " + std::to_string(high) + "]",
       std::to_string(value));
  return value;
}

int64_t SpecCheck::max_rows(const OperandSpec& operand, size_t inner) const {
  int64_t rows = 1;
  for (size_t i = 0; i + inner < operand.shape.size(); ++i)
    rows *= operand.shape[i].eval(spec_.max_tokens, spec_.max_rows);
  return rows;
}

bool serves_float32(const KernelSpec& spec, std::initializer_list<size_t> inputs, std::string* why) {
  const auto is_float32 = [&](const OperandSpec& o) {
    if (!o.present || o.weight || o.dtype == DType::kF32) return true;
    if (why) *why = "serves float32 only, found " + std::string(dtype_name(o.dtype));
    return false;
  };
  for (size_t i : inputs) {
    if (i < spec.in.size() && !is_float32(spec.in[i])) return false;
  }
  for (const OperandSpec& o : spec.out) {
    if (!is_float32(o)) return false;
  }
  return true;
}

RowView::RowView(const TensorView& view, int inner) : base_(view.as<float>()) {
  for (int i = 0; i < view.ndim - inner; ++i) {
    rows_ *= view.shape[i];
    if (view.shape[i] == 1) continue;
    if (dims_ > 0 && stride_[dims_ - 1] == view.stride[i] * view.shape[i]) {
      shape_[dims_ - 1] *= view.shape[i];
      stride_[dims_ - 1] = view.stride[i];
    } else {
      shape_[dims_] = view.shape[i];
      stride_[dims_++] = view.stride[i];
    }
  }
}

int64_t RowView::offset(int64_t i) const {
  int64_t at = 0;
  for (int d = dims_ - 1; d >= 0; --d) {
    at += i % shape_[d] * stride_[d];
    i /= shape_[d];
  }
  return at;
}

}  // namespace autodeploy
