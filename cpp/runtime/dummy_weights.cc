#include "runtime/dummy_weights.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace autodeploy {
namespace {

using Op = WeightExpr::Op;
using ExprPtr = std::shared_ptr<const WeightExpr>;

constexpr int64_t kMaxComputed = int64_t{1} << 22;  // elements of a param that is still computed
constexpr std::string_view kConstants = "constants/", kConstantsFile = "constants.bin";

// FNV-1a, whose offset and prime are what its name stands for.
uint64_t hash_of(std::string_view name) {
  uint64_t h = 0xcbf29ce484222325;
  for (char c : name) h = (h ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return h;
}

// Bits of a quant of a block format.
int quant_bits(Format f) {
  switch (f) {
    case Format::kQ8_0:
      return 8;
    case Format::kQ5_0:
    case Format::kQ5_1:
      return 5;
    default:
      return 4;
  }
}

DummyFill fill_of(std::string_view name, const std::vector<int64_t>& shape, Format format, uint64_t seed) {
  DummyFill fill;
  const uint64_t stream = hash_of(name);
  fill.seed[0] = static_cast<uint32_t>(seed), fill.seed[1] = static_cast<uint32_t>(seed >> 32);
  fill.stream[0] = static_cast<uint32_t>(stream), fill.stream[1] = static_cast<uint32_t>(stream >> 32);
  const bool is_float = format == Format::kF64 || format == Format::kF32 || format == Format::kF16 ||
                        format == Format::kBF16 || is_quantized(format);
  if (!is_float) {
    fill.center = format == Format::kBool ? 1.0f : 0.0f;
    return fill;
  }
  std::vector<int64_t> dims;  // those that are more than one
  std::copy_if(shape.begin(), shape.end(), std::back_inserter(dims), [](int64_t d) { return d != 1; });
  if (dims.size() < 2 && !is_quantized(format)) {
    fill.center = 1;  // from 0.75 to 1.24
    fill.shift = 2, fill.factor = 1, fill.zero = 32;
    fill.step = 0x1p-7f;
    return fill;
  }
  // Uniform in (-h, h) has the deviation h / sqrt(3); h is a power of two.
  const double row = static_cast<double>(std::max<int64_t>(dims.empty() ? 1 : dims.back(), 1));
  const int exponent = static_cast<int>(std::floor(std::log2(std::sqrt(3.0 / row))));
  if (is_quantized(format)) {
    const int bits = quant_bits(format);
    fill.shift = 8 - bits, fill.factor = 1, fill.zero = 1 << (bits - 1);
    fill.step = std::ldexp(1.0f, exponent - (bits - 1));
  } else {
    fill.factor = 2, fill.zero = 255;  // odd numbers: symmetric, and never 0
    fill.step = std::ldexp(1.0f, exponent - 8);
  }
  return fill;
}

ExprPtr dummy(std::string_view name, const std::vector<int64_t>& whole, Format format, uint64_t seed,
              std::vector<int64_t> shape, int64_t first) {
  auto e = std::make_shared<WeightExpr>();
  e->op = Op::kDummy;
  e->format = format;
  e->fill = fill_of(name, whole, format, seed);
  e->shape = std::move(shape);
  e->first = first;
  return e;
}

class Replacement {
 public:
  Replacement(const WeightProgram& weights, uint64_t seed) : weights_(weights), seed_(seed) {}

  // The same expression over made-up tensors.
  ExprPtr over_dummies(const ExprPtr& e) const {
    if (e->op == Op::kTensor) {
      if (is_constant(e->tensor)) return e;
      return dummy(tensor(e->tensor).name, e->shape, e->format, seed_, e->shape, 0);
    }
    if (e->xs.empty()) return e;
    auto copy = std::make_shared<WeightExpr>(*e);
    for (ExprPtr& x : copy->xs) x = over_dummies(x);
    return copy;
  }

  bool only_constants(const WeightExpr& e) const {
    std::vector<int32_t> tensors;
    collect(e, tensors);
    return std::all_of(tensors.begin(), tensors.end(), [this](int32_t t) { return is_constant(t); });
  }

  // Whether the values depend on arithmetic that is little work.
  bool is_computed(const WeightExpr& e) const {
    std::vector<int32_t> tensors;
    if (!collect(e, tensors)) return false;
    int64_t n = e.numel();
    for (int32_t t : tensors) {
      int64_t size = 1;
      for (int64_t d : tensor(t).shape) size *= d;
      n = std::max(n, size);
    }
    return n <= kMaxComputed;
  }

 private:
  const StoredTensor& tensor(int32_t t) const { return weights_.tensors[static_cast<size_t>(t)]; }

  bool is_constant(int32_t t) const {
    const StoredTensor& stored = tensor(t);
    if (stored.source < 0) return false;
    return stored.name.starts_with(kConstants) ||
           weights_.sources[static_cast<size_t>(stored.source)].path == kConstantsFile;
  }

  // Adds the tensors read; returns whether there is arithmetic.
  static bool collect(const WeightExpr& e, std::vector<int32_t>& tensors) {
    if (e.op == Op::kTensor) tensors.push_back(e.tensor);
    bool arithmetic = e.op == Op::kUnary || e.op == Op::kBinary;
    for (const ExprPtr& x : e.xs) arithmetic = collect(*x, tensors) || arithmetic;
    return arithmetic;
  }

  const WeightProgram& weights_;
  uint64_t seed_;
};

// Leaves out sources that no param reads.
void drop_sources(WeightProgram& weights) {
  std::vector<bool> read(weights.tensors.size());
  const auto mark = [&](const auto& self, const WeightExpr& e) -> void {
    if (e.op == Op::kTensor) read[static_cast<size_t>(e.tensor)] = true;
    for (const ExprPtr& x : e.xs) self(self, *x);
  };
  for (const WeightParam& p : weights.params) {
    for (const WeightSegment& s : p.segments) mark(mark, *s.expr);
  }
  std::vector<WeightSource> kept;
  std::vector<int32_t> place(weights.sources.size(), -1);
  for (size_t i = 0; i < weights.tensors.size(); ++i) {
    int32_t& source = weights.tensors[i].source;
    if (source < 0) continue;
    int32_t& at = place[static_cast<size_t>(source)];
    if (read[i] && at < 0) {
      at = static_cast<int32_t>(kept.size());
      kept.push_back(weights.sources[static_cast<size_t>(source)]);
    }
    source = read[i] ? at : -1;
  }
  weights.sources = std::move(kept);
}

}  // namespace

WeightProgram with_dummy_weights(WeightProgram weights, uint64_t seed) {
  const Replacement replacement(weights, seed);
  for (WeightParam& p : weights.params) {
    int64_t row = 1, first = 0;
    for (size_t d = 1; d < p.shape.size(); ++d) row *= p.shape[d];
    for (WeightSegment& s : p.segments) {
      if (!replacement.only_constants(*s.expr))
        s.expr = replacement.is_computed(*s.expr)
                     ? replacement.over_dummies(s.expr)
                     : dummy(p.name, p.shape, s.format, seed, s.expr->shape, first);
      first += s.rows * row;
    }
  }
  drop_sources(weights);
  return weights;
}

}  // namespace autodeploy
