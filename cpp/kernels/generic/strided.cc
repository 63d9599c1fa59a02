#include "kernels/generic/strided.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace autodeploy {

AxisLines::AxisLines(const TensorView& view, int64_t dim) {
  len_ = view.shape[static_cast<size_t>(dim)];
  stride_ = view.stride[static_cast<size_t>(dim)];
  for (int d = 0; d < view.ndim; ++d) {
    if (d == dim) continue;
    const size_t from = static_cast<size_t>(d);
    count_ *= view.shape[from];
    outer_shape_[static_cast<size_t>(outer_)] = view.shape[from];
    outer_stride_[static_cast<size_t>(outer_++)] = view.stride[from];
  }
}

namespace {

constexpr int64_t kBlock = 16;  // of a transposition, in elements each way

// A copy with dims joined, sizes of 1 dropped, and the destination's smallest stride last.
struct CopyPlan {
  int ndim = 0;
  std::array<int64_t, kMaxDims> shape{}, to{}, from{};
};

CopyPlan plan_copy(const TensorView& dst, const TensorView& src) {
  std::array<int, kMaxDims> order{};
  int count = 0;
  for (int d = 0; d < dst.ndim; ++d) {
    if (dst.shape[static_cast<size_t>(d)] != 1) order[static_cast<size_t>(count++)] = d;
  }
  // By descending stride of the destination; insertion keeps equal ones in order.
  for (int i = 1; i < count; ++i) {
    const int d = order[static_cast<size_t>(i)];
    int at = i;
    for (; at > 0 && dst.stride[static_cast<size_t>(order[static_cast<size_t>(at - 1)])] <
                         dst.stride[static_cast<size_t>(d)];
         --at) {
      order[static_cast<size_t>(at)] = order[static_cast<size_t>(at - 1)];
    }
    order[static_cast<size_t>(at)] = d;
  }
  CopyPlan p;
  for (int i = 0; i < count; ++i) {
    const size_t d = static_cast<size_t>(order[static_cast<size_t>(i)]);
    const size_t last = static_cast<size_t>(p.ndim - 1);
    if (p.ndim > 0 && p.to[last] == dst.stride[d] * dst.shape[d] &&
        p.from[last] == src.stride[d] * dst.shape[d]) {
      p.shape[last] *= dst.shape[d];
      p.to[last] = dst.stride[d];
      p.from[last] = src.stride[d];
    } else {
      const size_t next = static_cast<size_t>(p.ndim++);
      p.shape[next] = dst.shape[d];
      p.to[next] = dst.stride[d];
      p.from[next] = src.stride[d];
    }
  }
  if (p.ndim == 0) {
    p.ndim = 1;
    p.shape[0] = 1;
    p.to[0] = p.from[0] = 1;
  }
  return p;
}

template <class T>
void copy_line(T* dst, int64_t to, const T* src, int64_t from, int64_t n) {
  if (to == 1 && from == 1) {
    std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(T));
  } else if (from == 0) {
    for (int64_t i = 0; i < n; ++i) dst[i * to] = *src;
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i * to] = src[i * from];
  }
}

// Rows x columns where the source runs along the rows: block by block, so that both sides use whole cache
// lines.
template <class T>
void copy_transposed(T* dst, int64_t to_row, int64_t to_column, const T* src, int64_t from_row,
                     int64_t from_column, int64_t rows, int64_t columns) {
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = std::min(rows, r0 + kBlock);
    for (int64_t c0 = 0; c0 < columns; c0 += kBlock) {
      const int64_t c1 = std::min(columns, c0 + kBlock);
      for (int64_t r = r0; r < r1; ++r) {
        for (int64_t c = c0; c < c1; ++c)
          dst[r * to_row + c * to_column] = src[r * from_row + c * from_column];
      }
    }
  }
}

// Positions of the `index`-th combination of dims [0, dims).
std::pair<int64_t, int64_t> position(const CopyPlan& p, int dims, int64_t index) {
  int64_t to = 0, from = 0;
  for (int d = dims; d-- > 0;) {
    const size_t k = static_cast<size_t>(d);
    const int64_t i = d == 0 ? index : index % p.shape[k];
    index /= p.shape[k];
    to += i * p.to[k];
    from += i * p.from[k];
  }
  return {to, from};
}

template <class T>
void copy_typed(const TensorView& dst, const TensorView& src, ThreadPool& pool) {
  CopyPlan p = plan_copy(dst, src);
  T* out = dst.as<T>();
  const T* in = src.as<const T>();
  const size_t last = static_cast<size_t>(p.ndim - 1);
  // The dim along which the source is contiguous, moved next to the last one.
  if (p.ndim >= 2 && p.from[last] != 1) {
    size_t best = last;
    for (size_t d = 0; d < last; ++d) {
      if (p.from[d] == 1) best = d;
    }
    if (best != last) {
      std::swap(p.shape[best], p.shape[last - 1]);
      std::swap(p.to[best], p.to[last - 1]);
      std::swap(p.from[best], p.from[last - 1]);
      const int64_t rows = p.shape[last - 1], columns = p.shape[last];
      const int64_t bands = (rows + kBlock - 1) / kBlock;
      int64_t outer = 1;
      for (size_t d = 0; d + 1 < last; ++d) outer *= p.shape[d];
      pool.parallel_for(outer * bands, grain_of(columns * kBlock * 2), [&](int64_t begin, int64_t end, int) {
        for (int64_t i = begin; i < end; ++i) {
          const auto [to, from] = position(p, p.ndim - 2, i / bands);
          const int64_t r = i % bands * kBlock;
          copy_transposed(out + to + r * p.to[last - 1], p.to[last - 1], p.to[last],
                          in + from + r * p.from[last - 1], p.from[last - 1], p.from[last],
                          std::min(kBlock, rows - r), columns);
        }
      });
      return;
    }
  }
  // Long lines are cut, so that one of them is shared by threads.
  constexpr int64_t kPiece = 16384;
  const int64_t len = p.shape[last], pieces = (len + kPiece - 1) / kPiece;
  int64_t lines = 1;
  for (size_t d = 0; d < last; ++d) lines *= p.shape[d];
  pool.parallel_for(lines * pieces, grain_of(std::min(len, kPiece) / 4 + 8),
                    [&](int64_t begin, int64_t end, int) {
                      for (int64_t i = begin; i < end; ++i) {
                        const auto [to, from] = position(p, p.ndim - 1, i / pieces);
                        const int64_t at = i % pieces * kPiece;
                        copy_line(out + to + at * p.to[last], p.to[last], in + from + at * p.from[last],
                                  p.from[last], std::min(kPiece, len - at));
                      }
                    });
}

}  // namespace

void copy_strided(const TensorView& dst, const TensorView& src, ThreadPool& pool) {
  if (dst.numel() == 0) return;
  dispatch_width(dst.dtype, [&](auto* t) { copy_typed<std::remove_pointer_t<decltype(t)>>(dst, src, pool); });
}

bool serves_plain(const KernelSpec& spec, std::string* why) {
  const auto served = [](const OperandSpec& o) {
    return !o.present || o.dtype == DType::kF32 || o.dtype == DType::kI64 || o.dtype == DType::kBool;
  };
  if (std::all_of(spec.in.begin(), spec.in.end(), served) &&
      std::all_of(spec.out.begin(), spec.out.end(), served))
    return true;
  if (why) *why = "computes float32, i64 and bool only";
  return false;
}

int64_t axis_attr(const SpecCheck& check, const OperandSpec& operand) {
  return check.integer("dim", 0, static_cast<int64_t>(operand.shape.size()) - 1);
}

std::vector<Dim> shape_with(const OperandSpec& operand, int64_t dim, Dim size) {
  std::vector<Dim> shape = operand.shape;
  shape[static_cast<size_t>(dim)] = size;
  return shape;
}

void expect_dtype(const SpecCheck& check, const OperandSpec& operand, DType dtype, const char* name) {
  check.that(operand.dtype == dtype, std::string(name) + " of dtype " + std::string(dtype_name(dtype)),
             std::string(dtype_name(operand.dtype)));
}

}  // namespace autodeploy
