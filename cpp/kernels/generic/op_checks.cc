#include "kernels/generic/op_checks.h"

#include <cmath>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/generic/region.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

bool is_small_integer(double v) { return std::trunc(v) == v && std::abs(v) <= 0x1p53; }

SortForm check_order(const KernelSpec& spec, bool top) {
  const SpecCheck check(spec);
  check.arity(1, 2);
  const OperandSpec& x = check.input(0, "x", 1, 0, true);
  SortForm form{axis_attr(check, x), 0, spec.attrs.boolean(top ? "largest" : "descending")};
  const Dim size = x.shape[static_cast<size_t>(form.dim)];
  const int64_t least = !top           ? 0
                        : spec.in_body ? size.eval(1, spec.min_rows)
                                       : check.static_dim(x, "x", static_cast<size_t>(form.dim));
  form.k = top ? check.integer("k", 1, least) : int64_t{1} << 62;
  const std::vector<Dim> shape = shape_with(x, form.dim, top ? fixed(form.k) : size);
  check.shape(check.output(0, "values", 1, 0, true), "values", shape);
  check.shape(check.output(1, "indices", 1, 0, true), "indices", shape);
  expect_dtype(check, spec.out[0], x.dtype, "values");
  expect_dtype(check, spec.out[1], DType::kI64, "indices");
  return form;
}

}  // namespace

void check_copy(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "x", 0, 0, true);
  const OperandSpec& y = check.output(0, "y", 0, 0, true);
  check.shape(y, "y", x.shape);
  expect_dtype(check, y, x.dtype, "y");
}

int64_t check_cat(const KernelSpec& spec) {
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
  return dim;
}

std::array<bool, kMaxDims> check_reduce(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "x", 1, 0, true);
  const OperandSpec& y = check.output(0, "y", 0, 0, true);
  const std::string& kind = spec.attrs.string("kind");
  const std::vector<int64_t>& dims = spec.attrs.integers("dims");
  const int64_t rank = static_cast<int64_t>(x.shape.size());
  std::array<bool, kMaxDims> reduced{};
  for (int64_t d : dims) {
    check.that(d >= 0 && d < rank && !reduced[static_cast<size_t>(d)],
               "different dims below the rank " + std::to_string(rank), std::to_string(d));
    reduced[static_cast<size_t>(d)] = true;
    if (!spec.in_body) check.static_dim(x, "x", static_cast<size_t>(d));
  }
  check.that(!dims.empty(), "at least one dim", "none");
  const bool index = kind == "argmax" || kind == "argmin", logic = kind == "any" || kind == "all";
  check.that(!index || dims.size() == 1, "one dim for " + kind, std::to_string(dims.size()));
  std::vector<Dim> shape;
  for (size_t d = 0; d < x.shape.size(); ++d) {
    if (!reduced[d])
      shape.push_back(x.shape[d]);
    else if (spec.attrs.boolean("keepdim"))
      shape.push_back(fixed(1));
  }
  check.shape(y, "y", shape);
  const bool counts = x.dtype == DType::kBool && (kind == "sum" || kind == "prod");
  expect_dtype(check, y, index || counts ? DType::kI64 : logic ? DType::kBool : x.dtype, "y");
  return reduced;
}

int64_t check_softmax(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "x", 1, 0, true);
  check.shape(check.output(0, "y", 1, 0, true), "y", x.shape);
  return axis_attr(check, x);
}

int64_t check_cumsum(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "x", 1, 0, true);
  const OperandSpec& y = check.output(0, "y", 1, 0, true);
  check.shape(y, "y", x.shape);
  expect_dtype(check, y, x.dtype == DType::kBool ? DType::kI64 : x.dtype, "y");
  return axis_attr(check, x);
}

SortForm check_sort(const KernelSpec& spec) { return check_order(spec, false); }
SortForm check_topk(const KernelSpec& spec) { return check_order(spec, true); }

void check_matmul(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(2, 1);
  const OperandSpec& a = check.input(0, "a", 2, 0, true);
  const size_t rank = a.shape.size();
  const OperandSpec& b = check.input(1, "b", rank, 0);
  const OperandSpec& c = check.output(0, "y", rank, 0);
  std::vector<Dim> shape = a.shape;
  shape[rank - 2] = a.shape[rank - 1];
  shape[rank - 1] = b.shape[rank - 1];
  check.shape(b, "b", shape);
  shape[rank - 2] = a.shape[rank - 2];
  check.shape(c, "y", shape);
}

int64_t check_gather(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(2, 1);
  const OperandSpec& x = check.input(0, "x", 1, 0, true);
  const OperandSpec& index = check.input(1, "index", x.shape.size(), 0);
  const int64_t dim = axis_attr(check, x);
  check.shape(index, "index", shape_with(x, dim, index.shape[static_cast<size_t>(dim)]));
  check.shape(check.output(0, "y", 1, 0, true), "y", index.shape);
  expect_dtype(check, index, DType::kI64, "index");
  expect_dtype(check, spec.out[0], x.dtype, "y");
  return dim;
}

ScatterForm check_scatter(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(3, 1);
  const OperandSpec& x = check.input(0, "self", 1, 0, true);
  const OperandSpec& index = check.input(1, "index", x.shape.size(), 0);
  const OperandSpec& src = check.input(2, "src", x.shape.size(), 0);
  const int64_t dim = axis_attr(check, x);
  check.shape(index, "index", shape_with(x, dim, index.shape[static_cast<size_t>(dim)]));
  check.shape(src, "src", index.shape);
  check.shape(check.output(0, "y", 1, 0, true), "y", x.shape);
  expect_dtype(check, index, DType::kI64, "index");
  expect_dtype(check, src, x.dtype, "src");
  expect_dtype(check, spec.out[0], x.dtype, "y");
  const std::string& reduce = spec.attrs.string("reduce");
  check.that(reduce.empty() || reduce == "add", "reduce \"\" or \"add\"", "\"" + reduce + "\"");
  return {dim, reduce == "add"};
}

int64_t check_index_select(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(2, 1);
  const OperandSpec& x = check.input(0, "x", 1, 0, true);
  const OperandSpec& index = check.input(1, "index", 1, 0);
  const int64_t dim = axis_attr(check, x);
  check.shape(check.output(0, "y", 1, 0, true), "y", shape_with(x, dim, index.shape[0]));
  expect_dtype(check, index, DType::kI64, "index");
  expect_dtype(check, spec.out[0], x.dtype, "y");
  return dim;
}

ArangeForm check_arange(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(0, 1);
  const OperandSpec& y = check.output(0, "y", 1, 0);
  const ArangeForm form{check.finite("start"), check.finite("step")};
  check.that(y.dtype != DType::kBool, "numbers", "bool");
  // Together with the largest size of a dim this keeps every element within 64 bits.
  check.that(y.dtype != DType::kI64 ||
                 (is_small_integer(form.start) && is_small_integer(form.step) && std::abs(form.step) < 1024),
             "a whole start within 2^53 and a whole step below 1024",
             std::to_string(form.start) + " and " + std::to_string(form.step));
  return form;
}

double check_full(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(0, 1);
  const OperandSpec& y = check.output(0, "y", 0, 0, true);
  const double value = spec.attrs.number("value");
  check.that(y.dtype != DType::kI64 || is_small_integer(value), "a whole value within 2^53",
             std::to_string(value));
  return value;
}

std::vector<DType> check_region(const KernelSpec& spec) {
  const auto check = [&](bool ok, const char* expected) {
    AD_CHECK(ok, ErrorKind::kInvalidArtifact, "[region] expected ", expected, ", found otherwise (",
             spec.source, ")");
  };
  check(spec.region != nullptr, "a region");
  check(spec.in.size() == spec.region->inputs.size() && spec.out.size() == spec.region->outputs.size() &&
            !spec.out.empty(),
        "as many operands and results as the region has");
  for (size_t i = 0; i < spec.in.size(); ++i) {
    check(spec.in[i].present && spec.in[i].shape == spec.out[0].shape, "operands of the results' shape");
    check(spec.in[i].dtype == spec.region->inputs[i], "operands of the region's dtypes");
  }
  std::vector<DType> types = spec.region->inputs;
  for (const RegionNode& n : spec.region->nodes) types.push_back(n.dtype);
  for (size_t i = 0; i < spec.out.size(); ++i) {
    check(spec.out[i].shape == spec.out[0].shape, "results of one shape");
    check(spec.out[i].dtype == types.at(static_cast<size_t>(spec.region->outputs[i])),
          "results of the region's dtypes");
  }
  return types;
}

}  // namespace autodeploy
