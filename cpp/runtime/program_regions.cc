#include "runtime/program_regions.h"

#include <array>
#include <cmath>
#include <string_view>

namespace autodeploy::program_format {
namespace {

constexpr size_t kMaxRegionInputs = 64;
constexpr size_t kMaxRegionNodes = 4096;

// What a node may read and give. kFloat: a float result from floats or integers; kArith: any result from
// numbers;.
enum class NodeKind : uint8_t { kConst, kCast, kFloat, kArith, kCompare, kLogic, kBits, kWhere };

struct NodeSchema {
  std::string_view name;
  RegionOp op;
  int arity;
  NodeKind kind;
};

constexpr auto kF = NodeKind::kFloat, kA = NodeKind::kArith, kC = NodeKind::kCompare, kL = NodeKind::kLogic,
               kBit = NodeKind::kBits;
constexpr std::array<NodeSchema, 49> kNodes = {{
    {"const", RegionOp::kConst, 0, NodeKind::kConst},
    {"cast", RegionOp::kCast, 1, NodeKind::kCast},
    {"add", RegionOp::kAdd, 2, kA},
    {"sub", RegionOp::kSub, 2, kA},
    {"mul", RegionOp::kMul, 2, kA},
    {"div", RegionOp::kDiv, 2, kF},
    {"pow", RegionOp::kPow, 2, kA},
    {"min", RegionOp::kMin, 2, kA},
    {"max", RegionOp::kMax, 2, kA},
    {"neg", RegionOp::kNeg, 1, kA},
    {"abs", RegionOp::kAbs, 1, kA},
    {"exp", RegionOp::kExp, 1, kF},
    {"log", RegionOp::kLog, 1, kF},
    {"log1p", RegionOp::kLog1p, 1, kF},
    {"expm1", RegionOp::kExpm1, 1, kF},
    {"sqrt", RegionOp::kSqrt, 1, kF},
    {"rsqrt", RegionOp::kRsqrt, 1, kF},
    {"reciprocal", RegionOp::kReciprocal, 1, kF},
    {"sin", RegionOp::kSin, 1, kF},
    {"cos", RegionOp::kCos, 1, kF},
    {"tanh", RegionOp::kTanh, 1, kF},
    {"sigmoid", RegionOp::kSigmoid, 1, kF},
    {"silu", RegionOp::kSilu, 1, kF},
    {"relu", RegionOp::kRelu, 1, kA},
    {"gelu", RegionOp::kGelu, 1, kF},
    {"gelu_tanh", RegionOp::kGeluTanh, 1, kF},
    {"softplus", RegionOp::kSoftplus, 1, kF},
    {"erf", RegionOp::kErf, 1, kF},
    {"floor", RegionOp::kFloor, 1, kA},
    {"ceil", RegionOp::kCeil, 1, kA},
    {"round", RegionOp::kRound, 1, kA},
    {"trunc", RegionOp::kTrunc, 1, kA},
    {"sign", RegionOp::kSign, 1, kA},
    {"square", RegionOp::kSquare, 1, kA},
    {"fmod", RegionOp::kFmod, 2, kA},
    {"floor_div", RegionOp::kFloorDiv, 2, kA},
    {"where", RegionOp::kWhere, 3, NodeKind::kWhere},
    {"eq", RegionOp::kEq, 2, kC},
    {"ne", RegionOp::kNe, 2, kC},
    {"lt", RegionOp::kLt, 2, kC},
    {"le", RegionOp::kLe, 2, kC},
    {"gt", RegionOp::kGt, 2, kC},
    {"ge", RegionOp::kGe, 2, kC},
    {"and", RegionOp::kAnd, 2, kL},
    {"or", RegionOp::kOr, 2, kL},
    {"not", RegionOp::kNot, 1, kL},
    {"bit_and", RegionOp::kBitAnd, 2, kBit},
    {"bit_or", RegionOp::kBitOr, 2, kBit},
    {"bit_xor", RegionOp::kBitXor, 2, kBit},
}};

const NodeSchema* find_node(std::string_view name) {
  for (const NodeSchema& s : kNodes) {
    if (!s.name.empty() && s.name == name) return &s;
  }
  return nullptr;
}

bool is_float(DType t) { return t != DType::kI64 && t != DType::kBool; }

double read_constant(const Json& j, DType dtype, const std::string& where) {
  if (j.is_boolean()) return j.get<bool>() ? 1 : 0;
  const double v = to_number(j, where);
  if (dtype == DType::kBool && v != 0 && v != 1) fail(where, "0, 1 or a boolean for a bool", show(j));
  if (dtype == DType::kI64 && (std::trunc(v) != v || std::abs(v) > static_cast<double>(kMaxInteger))) {
    fail(where, "an integer within 2^53 for an i64", show(j));
  }
  return v;
}

void check_types(const NodeSchema& schema, const RegionNode& node, const std::vector<DType>& types,
                 const std::string& where) {
  const auto arg = [&](int i) { return types[static_cast<size_t>(node.args[i])]; };
  const std::string dtype(dtype_name(node.dtype));
  switch (schema.kind) {
    case NodeKind::kConst:
    case NodeKind::kCast:
      break;
    case NodeKind::kFloat:
      if (!is_float(node.dtype)) fail(where, "a float dtype", dtype);
      break;
    case NodeKind::kArith:
      break;
    case NodeKind::kCompare:
    case NodeKind::kLogic:
      if (node.dtype != DType::kBool) fail(where, "the dtype bool", dtype);
      break;
    case NodeKind::kBits:
      for (int i = 0; i < schema.arity; ++i) {
        if (is_float(arg(i))) fail(where, "i64 or bool arguments", std::string(dtype_name(arg(i))));
      }
      break;
    case NodeKind::kWhere:
      if (arg(0) != DType::kBool) fail(where, "a bool condition", std::string(dtype_name(arg(0))));
      break;
  }
}

}  // namespace

RegionProgram read_region(const Json& j, const std::string& where, DType act, bool lenient) {
  Fields f(j, where, lenient);
  RegionProgram region;
  std::vector<DType> types;
  for (const Json& t : f.array("inputs", kMaxRegionInputs))
    types.push_back(to_dtype(t, where + " .inputs", act));
  region.inputs = types;
  for (const Json& n : f.array("nodes", kMaxRegionNodes)) {
    const std::string here = detail::concat(where, " node ", region.nodes.size());
    Fields node_fields(n, here, lenient);
    const std::string name = node_fields.text("op");
    const NodeSchema* schema = find_node(name);
    if (!schema) fail(here, "a pointwise op of this version", show(Json(name)));
    RegionNode node{schema->op, to_dtype(node_fields.get("dtype"), here, act)};
    if (schema->kind == NodeKind::kConst) {
      node.value = read_constant(node_fields.get("value"), node.dtype, here);
    } else {
      const std::vector<int64_t> args =
          node_fields.integers("args", 0, static_cast<int64_t>(types.size()) - 1, 3);
      if (static_cast<int>(args.size()) != schema->arity) {
        fail(here, detail::concat(schema->arity, " arguments of ", name), detail::concat(args.size()));
      }
      for (size_t i = 0; i < args.size(); ++i) node.args[i] = static_cast<int32_t>(args[i]);
      check_types(*schema, node, types, detail::concat(here, " (", name, ")"));
    }
    node_fields.finish();
    types.push_back(node.dtype);
    region.nodes.push_back(node);
  }
  const int64_t last = static_cast<int64_t>(types.size()) - 1;
  for (int64_t r : f.integers("outputs", 0, last, kMaxRegionInputs))
    region.outputs.push_back(static_cast<int32_t>(r));
  if (region.outputs.empty()) fail(where, "at least one output", "none");
  f.finish();
  return region;
}

}  // namespace autodeploy::program_format
