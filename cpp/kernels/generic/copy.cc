// copy: a view made contiguous. cat: views joined along a dim.
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

struct NoState {};
struct CatState {
  int64_t dim;
};

void run_copy(const NoState&, const KernelCall& call) { copy_strided(call.out[0], call.in[0], *call.pool); }

void run_cat(const CatState& s, const KernelCall& call) {
  const size_t dim = static_cast<size_t>(s.dim);
  TensorView part = call.out[0];
  int64_t at = 0;
  for (const TensorView& in : call.in) {
    part.data = call.out[0].as<uint8_t>() + at * part.stride[dim] * dtype_size(part.dtype);
    part.shape[dim] = in.shape[dim];
    copy_strided(part, in, *call.pool);
    at += in.shape[dim];
  }
}

}  // namespace

std::unique_ptr<Kernel> make_copy(const KernelSpec& spec, std::string*) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "x", 0, 0, true);
  const OperandSpec& y = check.output(0, "y", 0, 0, true);
  check.shape(y, "y", x.shape);
  expect_dtype(check, y, x.dtype, "y");
  return std::make_unique<StatedKernel<NoState>>("copy", NoState{}, run_copy);
}

std::unique_ptr<Kernel> make_cat(const KernelSpec& spec, std::string*) {
  const SpecCheck check(spec);
  check.that(!spec.in.empty(), "at least one operand", "none");
  check.arity(spec.in.size(), 1);
  const OperandSpec& first = check.input(0, "x", 1, 0, true);
  const int64_t dim = axis_attr(check, first);
  Dim total;
  for (size_t i = 0; i < spec.in.size(); ++i) {
    const OperandSpec& x = check.input(i, "x", 1, 0, true);
    expect_dtype(check, x, first.dtype, "operands");
    check.that(x.shape.size() == first.shape.size(), "operands of one rank", shape_text(x.shape));
    const Dim d = x.shape[static_cast<size_t>(dim)];
    check.shape(x, "operands that differ along `dim` alone", shape_with(first, dim, d));
    total = Dim{total.constant + d.constant, total.t + d.t, total.r + d.r, total.tr + d.tr};
  }
  const OperandSpec& y = check.output(0, "y", 1, 0, true);
  check.shape(y, "y", shape_with(first, dim, total));
  expect_dtype(check, y, first.dtype, "y");
  return std::make_unique<StatedKernel<CatState>>("cat", CatState{dim}, run_cat);
}

}  // namespace autodeploy
