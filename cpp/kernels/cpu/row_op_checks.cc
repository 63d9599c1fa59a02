#include "kernels/cpu/row_op_checks.h"

#include <string>
#include <vector>

#include "kernels/cpu/spec_check.h"

namespace autodeploy {

void check_select_rows(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "x [T, H]", 2, 1);
  check.that(x.shape[0] == Dim{0, 1, 0}, "x [T, H]", shape_text(x.shape));
  check.shape(check.output(0, "the result [R, H]", 2, 1), "the result", {Dim{0, 0, 1}, x.shape[1]});
  check.that(spec.out[0].dtype == x.dtype, "a result of x's dtype",
             std::string(dtype_name(spec.out[0].dtype)));
}

void check_known_length(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "at [T]", 1, 0);
  check.that(x.shape[0] == Dim{0, 1, 0}, "positions [T]", shape_text(x.shape));
  check.that(x.dtype == DType::kI64, "positions of i64", std::string(dtype_name(x.dtype)));
  check.shape(check.output(0, "the result [T]", 1, 0), "the result", {Dim{0, 1, 0}});
  check.that(spec.out[0].dtype == DType::kI64, "a result of i64", std::string(dtype_name(spec.out[0].dtype)));
}

int64_t check_rope(const KernelSpec& spec) {
  const SpecCheck check(spec);
  check.arity(3, 1);
  const OperandSpec& x = check.input(0, "x [N, Hn, D]", 3, 1);
  const int64_t width = check.static_dim(x, "x", 2);
  check.static_dim(x, "x", 1);
  for (size_t i : {1, 2}) {
    const char* label = i == 1 ? "cos" : "sin";
    const OperandSpec& table = check.input(i, label, 2, 1, true);
    const Dim half = table.shape.back();
    check.shape(table, label,
                table.shape.size() == 3 ? std::vector<Dim>{x.shape[0], x.shape[1], half}
                                        : std::vector<Dim>{x.shape[0], half});
  }
  const int64_t half = check.static_dim(spec.in[1], "cos", spec.in[1].shape.size() - 1);
  check.that(spec.in[2].shape.back() == fixed(half) && 2 * half <= width,
             "cos and sin of the same width, at most half of x's",
             shape_text(spec.in[1].shape) + " and " + shape_text(spec.in[2].shape));
  check.shape(check.output(0, "the result [N, Hn, D]", 3, 1), "the result", x.shape);
  return half;
}

}  // namespace autodeploy
