#include "kernels/generic/region_compile.h"

#include <algorithm>

#include "core/error.h"
#include "kernels/cpu/half.h"

namespace autodeploy {
namespace {

enum class Class : uint8_t { kBool, kI64, kF32 };

Class class_of(DType t) {
  return t == DType::kBool ? Class::kBool : t == DType::kI64 ? Class::kI64 : Class::kF32;
}
DType dtype_of(Class c) {
  return c == Class::kBool ? DType::kBool : c == Class::kI64 ? DType::kI64 : DType::kF32;
}

// What an operation is called in each class; kCount where that class does not have it.
struct Names {
  RegionOp op;
  TileOp f32, i64, boolean;
};
constexpr TileOp kNone = TileOp::kCount;
constexpr Names kNames[] = {
    {RegionOp::kAdd, TileOp::f32_add, TileOp::i64_add, TileOp::bool_or},
    {RegionOp::kSub, TileOp::f32_sub, TileOp::i64_sub, kNone},
    {RegionOp::kMul, TileOp::f32_mul, TileOp::i64_mul, TileOp::bool_and},
    {RegionOp::kDiv, TileOp::f32_div, kNone, kNone},
    {RegionOp::kPow, TileOp::f32_pow, TileOp::i64_pow, kNone},
    {RegionOp::kMin, TileOp::f32_min, TileOp::i64_min, TileOp::bool_and},
    {RegionOp::kMax, TileOp::f32_max, TileOp::i64_max, TileOp::bool_or},
    {RegionOp::kNeg, TileOp::f32_neg, TileOp::i64_neg, kNone},
    {RegionOp::kAbs, TileOp::f32_abs, TileOp::i64_abs, kNone},
    {RegionOp::kExp, TileOp::f32_exp, kNone, kNone},
    {RegionOp::kLog, TileOp::f32_log, kNone, kNone},
    {RegionOp::kLog1p, TileOp::f32_log1p, kNone, kNone},
    {RegionOp::kExpm1, TileOp::f32_expm1, kNone, kNone},
    {RegionOp::kSqrt, TileOp::f32_sqrt, kNone, kNone},
    {RegionOp::kRsqrt, TileOp::f32_rsqrt, kNone, kNone},
    {RegionOp::kReciprocal, TileOp::f32_reciprocal, kNone, kNone},
    {RegionOp::kSin, TileOp::f32_sin, kNone, kNone},
    {RegionOp::kCos, TileOp::f32_cos, kNone, kNone},
    {RegionOp::kTanh, TileOp::f32_tanh, kNone, kNone},
    {RegionOp::kSigmoid, TileOp::f32_sigmoid, kNone, kNone},
    {RegionOp::kSilu, TileOp::f32_silu, kNone, kNone},
    {RegionOp::kRelu, TileOp::f32_relu, TileOp::i64_relu, kNone},
    {RegionOp::kGelu, TileOp::f32_gelu, kNone, kNone},
    {RegionOp::kGeluTanh, TileOp::f32_gelu_tanh, kNone, kNone},
    {RegionOp::kSoftplus, TileOp::f32_softplus, kNone, kNone},
    {RegionOp::kErf, TileOp::f32_erf, kNone, kNone},
    {RegionOp::kFloor, TileOp::f32_floor, kNone, kNone},
    {RegionOp::kCeil, TileOp::f32_ceil, kNone, kNone},
    {RegionOp::kRound, TileOp::f32_round, kNone, kNone},
    {RegionOp::kTrunc, TileOp::f32_trunc, kNone, kNone},
    {RegionOp::kSign, TileOp::f32_sign, TileOp::i64_sign, kNone},
    {RegionOp::kSquare, TileOp::f32_square, TileOp::i64_square, kNone},
    {RegionOp::kFmod, TileOp::f32_fmod, TileOp::i64_fmod, kNone},
    {RegionOp::kFloorDiv, TileOp::f32_floor_div, TileOp::i64_floor_div, kNone},
    {RegionOp::kEq, TileOp::f32_eq, TileOp::i64_eq, kNone},
    {RegionOp::kNe, TileOp::f32_ne, TileOp::i64_ne, TileOp::bool_xor},
    {RegionOp::kLt, TileOp::f32_lt, TileOp::i64_lt, kNone},
    {RegionOp::kLe, TileOp::f32_le, TileOp::i64_le, kNone},
    {RegionOp::kGt, TileOp::f32_gt, TileOp::i64_gt, kNone},
    {RegionOp::kGe, TileOp::f32_ge, TileOp::i64_ge, kNone},
    {RegionOp::kAnd, kNone, kNone, TileOp::bool_and},
    {RegionOp::kOr, kNone, kNone, TileOp::bool_or},
    {RegionOp::kNot, kNone, kNone, TileOp::bool_not},
    {RegionOp::kBitAnd, kNone, TileOp::i64_bit_and, TileOp::bool_and},
    {RegionOp::kBitOr, kNone, TileOp::i64_bit_or, TileOp::bool_or},
    {RegionOp::kBitXor, kNone, TileOp::i64_bit_xor, TileOp::bool_xor},
};

bool is_narrow(DType t) { return t == DType::kF16 || t == DType::kBF16; }
double rounded_to(DType t, double v) {
  const float f = static_cast<float>(v);
  return t == DType::kF16 ? half_to_float(float_to_half(f)) : bf16_to_float(float_to_bf16(f));
}

const Names& names_of(RegionOp op) {
  for (const Names& n : kNames) {
    if (n.op == op) return n;
  }
  throw Error(ErrorKind::kInvalidArtifact,
              detail::concat("[region] expected a pointwise op, found number ", static_cast<int>(op)));
}

bool is_compare(RegionOp op) { return op >= RegionOp::kEq && op <= RegionOp::kGe; }

// Rough price of one element next to a float addition.
int32_t cost_of(TileOp op) {
  switch (op) {
    case TileOp::f32_exp:
    case TileOp::f32_expm1:
    case TileOp::f32_sigmoid:
    case TileOp::f32_silu:
    case TileOp::f32_silu_mul:
      return 12;
    case TileOp::f32_log:
    case TileOp::f32_log1p:
    case TileOp::f32_tanh:
    case TileOp::f32_gelu:
    case TileOp::f32_gelu_tanh:
    case TileOp::f32_erf:
    case TileOp::f32_softplus:
    case TileOp::f32_sin:
    case TileOp::f32_cos:
      return 30;
    case TileOp::f32_pow:
    case TileOp::f32_fmod:
    case TileOp::f32_floor_div:
    case TileOp::i64_pow:
    case TileOp::i64_fmod:
    case TileOp::i64_floor_div:
      return 100;
    case TileOp::f32_div:
    case TileOp::f32_sqrt:
    case TileOp::f32_rsqrt:
    case TileOp::f32_reciprocal:
      return 4;
    default:
      return 2;
  }
}

class Compiler {
 public:
  explicit Compiler(const RegionProgram& region) : region_(region) {}

  TileProgram compile() {
    for (DType t : region_.inputs) map_.push_back(add_register(t));
    p_.num_inputs = static_cast<int32_t>(map_.size());
    for (const RegionNode& n : region_.nodes) {
      const int32_t first_new = static_cast<int32_t>(p_.registers.size());
      map_.push_back(rounded(lower(n), n.dtype, first_new));
    }
    for (int32_t r : region_.outputs) p_.outputs.push_back(output(map_[static_cast<size_t>(r)]));
    drop_unused();
    fuse_gates();
    assign_slots();
    for (const TileNode& n : p_.nodes) p_.cost += cost_of(n.op);
    return std::move(p_);
  }

 private:
  TileRegister& reg(int32_t r) { return p_.registers[static_cast<size_t>(r)]; }
  Class class_of_reg(int32_t r) { return class_of(reg(r).dtype); }

  int32_t add_register(DType t) {
    p_.registers.push_back({});
    p_.registers.back().dtype = t;
    return static_cast<int32_t>(p_.registers.size()) - 1;
  }

  int32_t emit(TileOp op, DType result, std::initializer_list<int32_t> args) {
    TileNode node;
    node.op = op;
    for (int32_t a : args) node.args[static_cast<size_t>(node.num_args++)] = a;
    node.result = add_register(result);
    p_.nodes.push_back(node);
    return node.result;
  }

  int32_t convert(int32_t r, Class to) {
    const Class from = class_of_reg(r);
    if (from == to) return r;
    if (reg(r).constant) {
      const double v = reg(r).value;
      const int32_t c = add_register(dtype_of(to));
      reg(c).constant = true;
      reg(c).value = to == Class::kBool  ? v != 0
                     : to == Class::kI64 ? static_cast<double>(static_cast<int64_t>(v))
                                         : v;
      if (to != Class::kI64 || (v >= -0x1p53 && v <= 0x1p53)) return c;
    }
    constexpr TileOp kCasts[3][3] = {{kNone, TileOp::cast_bool_i64, TileOp::cast_bool_f32},
                                     {TileOp::cast_i64_bool, kNone, TileOp::cast_i64_f32},
                                     {TileOp::cast_f32_bool, TileOp::cast_f32_i64, kNone}};
    return emit(kCasts[static_cast<int>(from)][static_cast<int>(to)], dtype_of(to), {r});
  }

  // An input that is given back goes through a copy, so that no output's memory is written while an input's
  // is still to be read.
  int32_t output(int32_t r) {
    if (r >= p_.num_inputs) return r;
    const Class c = class_of_reg(r);
    const TileOp copy = c == Class::kF32   ? TileOp::cast_f32_f32
                        : c == Class::kI64 ? TileOp::cast_i64_i64
                                           : TileOp::cast_bool_bool;
    return emit(copy, reg(r).dtype, {r});
  }

  // The value rounded to a narrow float type. Registers from `first_new` on belong to the node that asks.
  int32_t rounded(int32_t r, DType t, int32_t first_new) {
    if (!is_narrow(t)) return r;
    if (reg(r).constant) {
      const double value = rounded_to(t, reg(r).value);
      if (r < first_new) r = add_register(t), reg(r).constant = true;
      reg(r).dtype = t;
      reg(r).value = value;
      return r;
    }
    if (reg(r).dtype == t) return r;
    if (r < first_new) return emit(TileOp::cast_f32_f32, t, {r});
    reg(r).dtype = t;
    return r;
  }

  int32_t lower(const RegionNode& n) {
    const Class want = class_of(n.dtype);
    std::vector<int32_t> args;
    for (int32_t a : n.args) {
      if (a >= 0) args.push_back(map_[static_cast<size_t>(a)]);
    }
    if (n.op == RegionOp::kConst) {
      const int32_t r = add_register(n.dtype);
      reg(r).constant = true;
      reg(r).value = n.value;
      return r;
    }
    if (n.op == RegionOp::kCast) return convert(args.at(0), want);
    if (n.op == RegionOp::kWhere) return lower_where(args, want);
    const Names& names = names_of(n.op);
    Class c = Class::kBool;
    for (int32_t a : args) c = std::max(c, class_of_reg(a));
    if (n.op == RegionOp::kAnd || n.op == RegionOp::kOr || n.op == RegionOp::kNot) c = Class::kBool;
    // The next wider class that has the operation.
    const auto in_class = [&](Class k) {
      return k == Class::kBool ? names.boolean : k == Class::kI64 ? names.i64 : names.f32;
    };
    while (c != Class::kF32 && in_class(c) == kNone) c = static_cast<Class>(static_cast<int>(c) + 1);
    const bool rounds = n.op == RegionOp::kFloor || n.op == RegionOp::kCeil || n.op == RegionOp::kRound ||
                        n.op == RegionOp::kTrunc;
    if (rounds && class_of_reg(args.at(0)) != Class::kF32) return convert(args[0], want);
    AD_CHECK(in_class(c) != kNone, ErrorKind::kInvalidArtifact,
             "[region] expected integers or booleans for a bit operation, found floats");
    for (int32_t& a : args) a = convert(a, c);
    const DType result = is_compare(n.op) ? DType::kBool : dtype_of(c);
    const int32_t r = args.size() == 1 ? emit(in_class(c), result, {args[0]})
                                       : emit(in_class(c), result, {args.at(0), args.at(1)});
    return convert(r, want);
  }

  int32_t lower_where(const std::vector<int32_t>& args, Class want) {
    const int32_t condition = convert(args.at(0), Class::kBool);
    const Class c = std::max(class_of_reg(args.at(1)), class_of_reg(args.at(2)));
    const TileOp op = c == Class::kF32   ? TileOp::where_f32
                      : c == Class::kI64 ? TileOp::where_i64
                                         : TileOp::where_bool;
    const int32_t a = convert(args[1], c), b = convert(args[2], c);
    return convert(emit(op, dtype_of(c), {condition, a, b}), want);
  }

  void drop_unused() {
    std::vector<bool> used(p_.registers.size(), false);
    for (int32_t r : p_.outputs) used[static_cast<size_t>(r)] = true;
    std::vector<TileNode> kept;
    for (size_t i = p_.nodes.size(); i-- > 0;) {
      const TileNode& n = p_.nodes[i];
      if (!used[static_cast<size_t>(n.result)]) continue;
      for (int a = 0; a < n.num_args; ++a) used[static_cast<size_t>(n.args[static_cast<size_t>(a)])] = true;
      kept.push_back(n);
    }
    std::reverse(kept.begin(), kept.end());
    p_.nodes = std::move(kept);
  }

  // silu(a) read once, by a multiplication: one pass over the tile less.
  void fuse_gates() {
    std::vector<int> reads(p_.registers.size(), 0);
    std::vector<int32_t> writer(p_.registers.size(), -1);
    for (size_t i = 0; i < p_.nodes.size(); ++i) {
      for (int a = 0; a < p_.nodes[i].num_args; ++a)
        ++reads[static_cast<size_t>(p_.nodes[i].args[static_cast<size_t>(a)])];
      writer[static_cast<size_t>(p_.nodes[i].result)] = static_cast<int32_t>(i);
    }
    for (int32_t r : p_.outputs) reads[static_cast<size_t>(r)] += 2;
    std::vector<bool> gone(p_.nodes.size(), false);
    for (TileNode& n : p_.nodes) {
      if (n.op != TileOp::f32_mul) continue;
      for (size_t a = 0; a < 2; ++a) {
        const int32_t w = writer[static_cast<size_t>(n.args[a])];
        if (w < 0 || p_.nodes[static_cast<size_t>(w)].op != TileOp::f32_silu ||
            reads[static_cast<size_t>(n.args[a])] != 1 || is_narrow(reg(n.args[a]).dtype))
          continue;
        n.op = TileOp::f32_silu_mul;
        n.args = {p_.nodes[static_cast<size_t>(w)].args[0], n.args[1 - a], -1};
        gone[static_cast<size_t>(w)] = true;
        break;
      }
    }
    std::vector<TileNode> kept;
    for (size_t i = 0; i < p_.nodes.size(); ++i) {
      if (!gone[i]) kept.push_back(p_.nodes[i]);
    }
    p_.nodes = std::move(kept);
  }

  void assign_slots() {
    const int32_t end = static_cast<int32_t>(p_.nodes.size());
    for (int32_t i = 0; i < end; ++i) {
      const TileNode& n = p_.nodes[static_cast<size_t>(i)];
      for (int a = 0; a < n.num_args; ++a) reg(n.args[static_cast<size_t>(a)]).last_use = i;
    }
    for (int32_t r : p_.outputs) reg(r).last_use = end;
    const auto new_slot = [&](DType t) {
      p_.slot_width.push_back(static_cast<int32_t>(dtype_size(t)));
      return static_cast<int32_t>(p_.slot_width.size()) - 1;
    };
    for (int32_t r = 0; r < p_.num_inputs; ++r) reg(r).slot = new_slot(reg(r).dtype);
    std::vector<std::pair<int32_t, int32_t>> free;  // (width, slot)
    for (int32_t i = 0; i < end; ++i) {
      const TileNode& n = p_.nodes[static_cast<size_t>(i)];
      TileRegister& result = reg(n.result);
      const int32_t width = static_cast<int32_t>(dtype_size(result.dtype));
      const auto it = std::find_if(free.begin(), free.end(), [&](const auto& f) { return f.first == width; });
      result.slot = it != free.end() ? it->second : new_slot(result.dtype);
      if (it != free.end()) free.erase(it);
      if (result.last_use < 0) result.last_use = i;
      // Arguments are given back after the result has its place: a node never writes over what it reads.
      for (int a = 0; a < n.num_args; ++a) {
        const int32_t r = n.args[static_cast<size_t>(a)];
        const bool again = std::find(n.args.begin(), n.args.begin() + a, r) != n.args.begin() + a;
        if (r >= p_.num_inputs && !reg(r).constant && reg(r).last_use == i && !again) {
          free.emplace_back(static_cast<int32_t>(dtype_size(reg(r).dtype)), reg(r).slot);
        }
      }
    }
  }

  const RegionProgram& region_;
  TileProgram p_;
  std::vector<int32_t> map_;  // region register -> tile register
};

}  // namespace

TileProgram compile_region(const RegionProgram& region) { return Compiler(region).compile(); }

}  // namespace autodeploy
