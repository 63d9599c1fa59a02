#include "runtime/weight_eval.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/tensor_view.h"
#include "kernels/cpu/dummy_rows.h"
#include "runtime/weight_convert.h"

namespace autodeploy {
namespace {

using Op = WeightExpr::Op;
using Fn = WeightExpr::Fn;

int64_t row_len_of(const WeightExpr& e) { return e.shape.empty() ? 1 : e.shape.back(); }
int64_t rows_of(const WeightExpr& e) { return row_len_of(e) == 0 ? 0 : e.numel() / row_len_of(e); }
int64_t row_bytes_of(const WeightExpr& e) { return format_row_bytes(e.format, row_len_of(e)); }
int64_t last_dim(const WeightExpr& e) { return static_cast<int64_t>(e.shape.size()) - 1; }
int64_t element_bytes(const WeightExpr& e) { return format_info(e.format).block_bytes; }
bool is_leaf(const WeightExpr& e) { return e.op == Op::kTensor || e.op == Op::kData; }

// Whether the result cannot be had row by row from rows of the operands.
bool cuts_rows(const WeightExpr& e) {
  switch (e.op) {
    case Op::kSlice:
    case Op::kTake:
    case Op::kCat:
      return e.dim == last_dim(e);
    case Op::kStack:
      return e.dim == last_dim(e);
    case Op::kPermute:
      return e.dims.empty() || e.dims.back() != last_dim(e);
    case Op::kReshape:
      return row_len_of(e) != row_len_of(*e.xs[0]);
    case Op::kBinary:
      return e.xs.size() == 2 && (e.xs[0]->shape != e.shape || e.xs[1]->shape != e.shape);
    default:
      return false;
  }
}

float apply(Fn fn, float x, float y) {
  switch (fn) {
    case Fn::kNeg:
      return -x;
    case Fn::kExp:
      return std::exp(x);
    case Fn::kLog:
      return std::log(x);
    case Fn::kLog1p:
      return std::log1p(x);
    case Fn::kExpm1:
      return std::expm1(x);
    case Fn::kSqrt:
      return std::sqrt(x);
    case Fn::kReciprocal:
      return 1.0f / x;
    case Fn::kAbs:
      return std::abs(x);
    case Fn::kSquare:
      return x * x;
    case Fn::kAdd:
      return x + y;
    case Fn::kSub:
      return x - y;
    case Fn::kRsub:
      return y - x;
    case Fn::kMul:
      return x * y;
    case Fn::kDiv:
      return x / y;
    case Fn::kRdiv:
      return y / x;
    case Fn::kPow:
      return std::pow(x, y);
    case Fn::kNone:
      return x;
  }
  return x;
}

}  // namespace

struct WeightEvaluator::Node {
  const WeightExpr* e = nullptr;
  std::vector<std::unique_ptr<Node>> xs;
  const uint8_t* contiguous = nullptr;  // all rows one after another
  std::unique_ptr<uint8_t[]> owned;

  int64_t bytes() const { return rows_of(*e) * row_bytes_of(*e); }

  // The operand and its row that row r is, for operations that move whole rows.
  std::pair<const Node*, int64_t> source(int64_t r) const {
    if (e->op == Op::kReshape) return {xs[0].get(), r};
    std::array<int64_t, kMaxDims> index{};
    const int64_t last = last_dim(*e);
    for (int64_t d = last - 1; d >= 0; --d) {
      index[static_cast<size_t>(d)] = r % e->shape[static_cast<size_t>(d)];
      r /= e->shape[static_cast<size_t>(d)];
    }
    const Node* from = xs[0].get();
    const size_t dim = static_cast<size_t>(e->dim);
    std::array<int64_t, kMaxDims> inner = index;
    if (e->op == Op::kSlice) {
      inner[dim] = e->start + index[dim] * e->step;
    } else if (e->op == Op::kTake) {
      inner[dim] = e->index[static_cast<size_t>(index[dim])];
    } else if (e->op == Op::kCat) {
      size_t part = 0;
      while (inner[dim] >= xs[part]->e->shape[dim]) inner[dim] -= xs[part++]->e->shape[dim];
      from = xs[part].get();
    } else if (e->op == Op::kStack) {
      from = xs[static_cast<size_t>(index[dim])].get();
      for (size_t d = dim; d + 1 < index.size(); ++d) inner[d] = index[d + 1];
    } else {
      for (int64_t d = 0; d < last; ++d)
        inner[static_cast<size_t>(e->dims[static_cast<size_t>(d)])] = index[static_cast<size_t>(d)];
    }
    int64_t row = 0;
    for (int64_t d = 0; d < last_dim(*from->e); ++d)
      row = row * from->e->shape[static_cast<size_t>(d)] + inner[static_cast<size_t>(d)];
    return {from, row};
  }

  bool moves_rows() const {
    return e->op == Op::kSlice || e->op == Op::kTake || e->op == Op::kCat || e->op == Op::kStack ||
           e->op == Op::kPermute || e->op == Op::kReshape;
  }

  // Where row r lies, or nullptr when it has to be computed.
  const uint8_t* row(int64_t r) const {
    const Node* n = this;
    while (!n->contiguous) {
      if (!n->moves_rows()) return nullptr;
      std::tie(n, r) = n->source(r);
    }
    return n->contiguous + r * row_bytes_of(*n->e);
  }

  void read_row(int64_t r, uint8_t* dst) const {
    if (const uint8_t* p = row(r)) {
      std::memcpy(dst, p, static_cast<size_t>(row_bytes_of(*e)));
      return;
    }
    if (moves_rows()) {
      const auto [from, inner] = source(r);
      return from->read_row(inner, dst);
    }
    const int64_t n = row_len_of(*e);
    if (e->op == Op::kDummy) return write_dummy(e->fill, e->format, e->first + r * n, n, dst);
    if (e->op == Op::kCast) {
      std::vector<uint8_t> in(static_cast<size_t>(row_bytes_of(*xs[0]->e)));
      xs[0]->read_row(r, in.data());
      return convert_row(xs[0]->e->format, in.data(), e->format, dst, n);
    }
    std::vector<float> x(static_cast<size_t>(n)), y(static_cast<size_t>(n), static_cast<float>(e->number));
    xs[0]->read_floats(r, x.data());
    if (xs.size() == 2) xs[1]->read_floats(r, y.data());
    for (size_t i = 0; i < x.size(); ++i) x[i] = apply(e->fn, x[i], y[i]);
    std::memcpy(dst, x.data(), x.size() * sizeof(float));
  }

  void read_floats(int64_t r, float* dst) const {
    std::vector<uint8_t> in(static_cast<size_t>(row_bytes_of(*e)));
    read_row(r, in.data());
    convert_row(e->format, in.data(), Format::kF32, reinterpret_cast<uint8_t*>(dst), row_len_of(*e));
  }

  void own() {
    owned = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(std::max<int64_t>(bytes(), 1)));
  }

  // Puts all rows one after another in memory, if they are not yet.
  void gather(ThreadPool& pool) {
    if (contiguous) return;
    own();
    uint8_t* out = owned.get();
    const int64_t size = row_bytes_of(*e);
    pool.parallel_for(rows_of(*e), 1 + 65536 / (size + 1), [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) read_row(r, out + r * size);
    });
    contiguous = out;
  }

  // Operations that cut rows, element by element.
  void make(ThreadPool& pool) {
    if (e->op == Op::kReshape) {
      xs[0]->gather(pool);
      contiguous = xs[0]->contiguous;
      return;
    }
    if (e->op != Op::kCat) {
      for (auto& x : xs) x->gather(pool);
    }
    own();
    uint8_t* out = owned.get();
    const int64_t n = row_len_of(*e), rows = rows_of(*e), size = element_bytes(*e);
    pool.parallel_for(rows, 1 + 16384 / (n + 1), [&](int64_t begin, int64_t end, int) {
      if (e->op == Op::kPermute) return permute(begin, end, out);
      for (int64_t r = begin; r < end; ++r) {
        uint8_t* dst = out + r * n * size;
        if (e->op == Op::kCat) {
          for (const auto& x : xs) {
            x->read_row(r, dst);
            dst += row_bytes_of(*x->e);
          }
        } else if (e->op == Op::kStack) {
          for (int64_t j = 0; j < n; ++j)
            std::memcpy(dst + j * size, xs[static_cast<size_t>(j)]->contiguous + r * size,
                        static_cast<size_t>(size));
        } else if (e->op == Op::kBinary) {
          broadcast(r, reinterpret_cast<float*>(dst));
        } else {
          const uint8_t* src = xs[0]->contiguous + r * row_bytes_of(*xs[0]->e);
          for (int64_t j = 0; j < n; ++j) {
            const int64_t from =
                e->op == Op::kSlice ? e->start + j * e->step : e->index[static_cast<size_t>(j)];
            std::memcpy(dst + j * size, src + from * size, static_cast<size_t>(size));
          }
        }
      }
    });
    contiguous = out;
    for (auto& x : xs) x.reset();
    xs.clear();
  }

  // Rows [begin, end) of a permutation that moves the last dimension.
  void permute(int64_t begin, int64_t end, uint8_t* out) const {
    const WeightExpr& x = *xs[0]->e;
    const size_t rank = e->shape.size();
    const int64_t size = element_bytes(*e), n = row_len_of(*e);
    std::array<int64_t, kMaxDims> stride{};  // of the operand, by dimension of the result
    for (size_t d = 0; d < rank; ++d) {
      int64_t s = 1;
      for (size_t i = static_cast<size_t>(e->dims[d]) + 1; i < rank; ++i) s *= x.shape[i];
      stride[d] = s;
    }
    for (int64_t r = begin; r < end; ++r) {
      int64_t offset = 0, rest = r;
      for (size_t d = rank - 1; d-- > 0;) {
        offset += rest % e->shape[d] * stride[d];
        rest /= e->shape[d];
      }
      const uint8_t* src = xs[0]->contiguous + offset * size;
      const int64_t step = stride[rank - 1] * size;
      uint8_t* dst = out + r * n * size;
      switch (size) {
        case 2:
          for (int64_t j = 0; j < n; ++j) std::memcpy(dst + 2 * j, src + j * step, 2);
          break;
        case 4:
          for (int64_t j = 0; j < n; ++j) std::memcpy(dst + 4 * j, src + j * step, 4);
          break;
        default:
          for (int64_t j = 0; j < n; ++j)
            std::memcpy(dst + size * j, src + j * step, static_cast<size_t>(size));
      }
    }
  }

  // Row r of an elementwise function whose operands broadcast.
  void broadcast(int64_t r, float* dst) const {
    std::array<std::array<int64_t, kMaxDims>, 2> stride{};
    const size_t rank = e->shape.size();
    for (size_t k = 0; k < 2; ++k) {
      const auto& shape = xs[k]->e->shape;
      int64_t s = 1;
      for (size_t i = 0; i < shape.size(); ++i) {
        const size_t from = shape.size() - 1 - i;
        if (shape[from] != 1) stride[k][rank - 1 - i] = s;
        s *= shape[from];
      }
    }
    std::array<int64_t, 2> offset{};
    int64_t rest = r;
    for (size_t d = rank > 0 ? rank - 1 : 0; d-- > 0;) {
      for (size_t k = 0; k < 2; ++k) offset[k] += rest % e->shape[d] * stride[k][d];
      rest /= e->shape[d];
    }
    const auto value = [&](size_t k, int64_t i) {
      float v;
      const int64_t at = offset[k] + (rank > 0 ? i * stride[k][rank - 1] : 0),
                    size = element_bytes(*xs[k]->e);
      convert_row(xs[k]->e->format, xs[k]->contiguous + at * size, Format::kF32,
                  reinterpret_cast<uint8_t*>(&v), 1);
      return v;
    };
    for (int64_t i = 0; i < row_len_of(*e); ++i) dst[i] = apply(e->fn, value(0, i), value(1, i));
  }
};

namespace {

std::unique_ptr<WeightEvaluator::Node> build(const WeightExpr& e, const WeightProgram& program,
                                             std::span<const MappedFile> files, ThreadPool& pool) {
  auto node = std::make_unique<WeightEvaluator::Node>();
  node->e = &e;
  if (e.op == Op::kTensor) {
    const StoredTensor& t = program.tensors[static_cast<size_t>(e.tensor)];
    static constexpr uint8_t kNothing[1] = {};
    node->contiguous = t.nbytes > 0 ? files[static_cast<size_t>(t.source)].data() + t.offset : kNothing;
    return node;
  }
  if (e.op == Op::kData) {
    node->contiguous = e.data.data();
    return node;
  }
  if (e.op == Op::kDummy) return node;
  for (const auto& x : e.xs) node->xs.push_back(build(*x, program, files, pool));
  const auto& first = *node->xs[0];
  if (e.op == Op::kReshape && first.contiguous) {
    node->contiguous = first.contiguous;
  } else if (e.op == Op::kSlice && e.dim == 0 && e.step == 1 && first.contiguous) {
    const int64_t rows = first.e->shape[0], bytes = rows_of(*first.e) * row_bytes_of(*first.e);
    node->contiguous = first.contiguous + (rows > 0 ? bytes / rows * e.start : 0);
  } else if (cuts_rows(e)) {
    node->make(pool);
  }
  return node;
}

}  // namespace

WeightEvaluator::WeightEvaluator(const WeightExpr& expr, const WeightProgram& program,
                                 std::span<const MappedFile> files, ThreadPool& pool)
    : root_(build(expr, program, files, pool)) {}
WeightEvaluator::~WeightEvaluator() = default;

Format WeightEvaluator::format() const { return root_->e->format; }
int64_t WeightEvaluator::rows() const { return rows_of(*root_->e); }
int64_t WeightEvaluator::row_len() const { return row_len_of(*root_->e); }
int64_t WeightEvaluator::row_bytes() const { return row_bytes_of(*root_->e); }

const uint8_t* WeightEvaluator::read(int64_t begin, int64_t n, uint8_t* buffer) const {
  const int64_t size = row_bytes();
  const uint8_t* first = root_->row(begin);
  bool together = first != nullptr;
  for (int64_t i = 1; i < n && together && !root_->contiguous; ++i)
    together = root_->row(begin + i) == first + i * size;
  if (together) return first;
  for (int64_t i = 0; i < n; ++i) root_->read_row(begin + i, buffer + i * size);
  return buffer;
}

int64_t WeightEvaluator::scratch_bytes(const WeightExpr& e) {
  int64_t bytes = 0;
  for (const auto& x : e.xs) bytes += scratch_bytes(*x);
  if (!cuts_rows(e)) return bytes;
  bytes += rows_of(e) * row_bytes_of(e);
  for (const auto& x : e.xs) {
    if (!is_leaf(*x)) bytes += rows_of(*x) * row_bytes_of(*x);
  }
  return bytes;
}

void collect_tensors(const WeightExpr& e, std::vector<int32_t>& out) {
  if (e.op == Op::kTensor) out.push_back(e.tensor);
  for (const auto& x : e.xs) collect_tensors(*x, out);
}

}  // namespace autodeploy
