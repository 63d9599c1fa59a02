#include "runtime/program_shapes.h"

#include "core/error.h"
#include "runtime/program_fields.h"

namespace autodeploy {
namespace program_format {
namespace {

// A dim as a product: factor * T^tokens * R^rows.
struct Product {
  int64_t factor = 0;
  int tokens = 0, rows = 0;

  explicit Product(const Dim& d)
      : factor(d.constant + d.t + d.r + d.tr), tokens(d.t != 0 || d.tr != 0), rows(d.r != 0 || d.tr != 0) {}
};

}  // namespace

std::string dim_text(const Dim& d, const DimScope& scope) {
  std::string s = dim_text(d);
  if (!scope.in_body) return s;
  for (char& c : s) c = c == 'T' ? 'N' : c == 'R' ? 'S' : c;
  return s;
}

std::string shape_text(const std::vector<Dim>& shape, const DimScope& scope) {
  std::string s = "[";
  for (const Dim& d : shape) s += (s.size() > 1 ? ", " : "") + dim_text(d, scope);
  return s + "]";
}

Dim shape_numel(const std::vector<Dim>& shape, const DimScope& scope, const std::string& where) {
  int64_t factor = 1;
  int tokens = 0, rows = 0;
  bool empty = false;
  for (const Dim& d : shape) {
    const Product p(d);
    tokens += p.tokens;
    rows += p.rows;
    if (p.factor == 0) {
      empty = true;
    } else if (__builtin_mul_overflow(factor, p.factor, &factor) || factor > kMaxInteger) {
      fail(where, "at most 2^53 elements", "more");
    }
  }
  if (!scope.in_body && tokens + rows > 1) fail(where, "at most one dim that depends on T or R", "more");
  if (tokens > 1 || rows > 1)
    fail(where, "at most one dim that depends on N, and one on S", shape_text(shape, scope));
  __int128 largest = factor;
  if (tokens) largest *= scope.max_tokens();
  if (rows) largest *= scope.max_rows();
  if (largest > kMaxInteger) {
    fail(where, detail::concat("at most 2^53 elements for ", kMaxProgramTokens, " tokens"), "more");
  }
  if (empty) factor = 0;
  Dim n;
  (tokens ? rows ? n.tr : n.t : rows ? n.r : n.constant) = factor;
  return n;
}

// Proves offset + sum((shape - 1) * stride) < numel of the storage. Where no symbol stands in a dim and its
// stride alike, the sum is linear in each symbol, so the corners of what they can be decide.
void check_bounds(const OperandRef& o, const Dim& storage, const DimScope& scope, const std::string& where) {
  for (size_t i = 0; i < o.shape.size(); ++i) {
    const Product size(o.shape[i]), stride(o.stride[i]);
    const bool both = !o.shape[i].is_static() && !o.stride[i].is_static();
    if (both && (!scope.in_body || (size.tokens && stride.tokens) || (size.rows && stride.rows))) {
      fail(where, "a static stride for a dim that depends on the step",
           detail::concat(dim_text(o.shape[i], scope), " with stride ", dim_text(o.stride[i], scope)));
    }
  }
  // A program's are the corners of a triangle: R is at most T.
  const int64_t T = scope.max_tokens(), R = scope.max_rows(), least = scope.least_rows;
  const int64_t corners[][2] = {{1, least}, {T, least}, {1, scope.in_body ? R : 1}, {T, 1}, {T, R}};
  for (const auto& [t, r] : corners) {
    if (r < least) continue;
    __int128 last = o.offset.eval(t, r);
    bool empty = false;
    for (size_t i = 0; i < o.shape.size(); ++i) {
      const int64_t size = o.shape[i].eval(t, r);
      if (size == 0) empty = true;
      last += static_cast<__int128>(size - 1) * o.stride[i].eval(t, r);
    }
    if (!empty && last >= storage.eval(t, r)) {
      const char *tokens = scope.in_body ? " elements (N = " : " elements (T = ",
                 *rows = scope.in_body ? ", S = " : ", R = ";
      fail(where, "a view within its storage",
           detail::concat("shape ", shape_text(o.shape, scope), " strides ", shape_text(o.stride, scope),
                          " offset ", dim_text(o.offset, scope), " in ", dim_text(storage, scope), tokens, t,
                          rows, r, ")"));
    }
  }
}

}  // namespace program_format

std::vector<Dim> contiguous_strides(const std::vector<Dim>& shape) {
  std::vector<Dim> strides(shape.size());
  Dim next{1, 0, 0};
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = next;
    // Both are multiples of 1, T, R or T*R; shape_numel has bounded their products, and the powers of
    // symbols.
    const Dim& d = shape[i];
    next = Dim{next.constant * d.constant, next.constant * d.t + next.t * d.constant,
               next.constant * d.r + next.r * d.constant,
               next.constant * d.tr + next.t * d.r + next.r * d.t + next.tr * d.constant};
  }
  return strides;
}

}  // namespace autodeploy
