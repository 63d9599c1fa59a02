#include "kernels/cuda/linear_epilogue.h"

#include <algorithm>

namespace autodeploy::cuda {
namespace {

bool is_comparison(RegionOp op) { return op >= RegionOp::kEq && op <= RegionOp::kGe; }
bool is_logic(RegionOp op) { return op == RegionOp::kAnd || op == RegionOp::kOr || op == RegionOp::kNot; }

}  // namespace

int epilogue_args(RegionOp op) {
  switch (op) {
    case RegionOp::kConst:
      return 0;
    case RegionOp::kCast:
    case RegionOp::kNeg:
    case RegionOp::kAbs:
    case RegionOp::kExp:
    case RegionOp::kLog:
    case RegionOp::kSqrt:
    case RegionOp::kRsqrt:
    case RegionOp::kReciprocal:
    case RegionOp::kTanh:
    case RegionOp::kSigmoid:
    case RegionOp::kSilu:
    case RegionOp::kRelu:
    case RegionOp::kGelu:
    case RegionOp::kGeluTanh:
    case RegionOp::kSoftplus:
    case RegionOp::kErf:
    case RegionOp::kSquare:
    case RegionOp::kNot:
      return 1;
    case RegionOp::kWhere:
      return 3;
    case RegionOp::kAdd:
    case RegionOp::kSub:
    case RegionOp::kMul:
    case RegionOp::kDiv:
    case RegionOp::kMin:
    case RegionOp::kMax:
    case RegionOp::kEq:
    case RegionOp::kNe:
    case RegionOp::kLt:
    case RegionOp::kLe:
    case RegionOp::kGt:
    case RegionOp::kGe:
    case RegionOp::kAnd:
    case RegionOp::kOr:
      return 2;
    default:
      return -1;
  }
}

bool compile_epilogue(const RegionProgram& region, const std::vector<int64_t>& slices, DType act,
                      EpilogueCode* code, std::string* why) {
  const auto no = [&](const char* reason) {
    *why = std::string("the region ") + reason;
    return false;
  };
  if (region.outputs.size() != 1) return no("has several results");
  if (region.inputs.size() > kMaxEpilogueInputs || region.nodes.size() > kMaxEpilogueNodes)
    return no("is too long for an epilogue");
  *code = EpilogueCode{};
  code->inputs = static_cast<int32_t>(region.inputs.size());
  code->nodes = static_cast<int32_t>(region.nodes.size());
  code->output = region.outputs[0];
  std::vector<DType> types = region.inputs;
  int slice = 0, other = 0;
  for (size_t i = 0; i < region.inputs.size(); ++i) {
    if (region.inputs[i] == DType::kI64) return no("reads integers");
    code->source[i] = static_cast<int8_t>(slices[i] >= 0 ? slice++ : kMaxSlices + other++);
    if (slices[i] >= 0 && region.inputs[i] != act) return no("reads the product in another type");
  }
  if (other > kMaxEpilogueOthers) return no("reads too much else");
  for (size_t i = 0; i < region.nodes.size(); ++i) {
    const RegionNode& n = region.nodes[i];
    const int args = epilogue_args(n.op);
    if (args < 0) return no("has an operation that epilogues don't");
    // Truth values are 0 and 1, for which the logic of floats holds, but not their arithmetic.
    const bool truth = is_comparison(n.op) || is_logic(n.op);
    if (n.dtype == DType::kI64 ||
        (n.dtype == DType::kBool && !truth && n.op != RegionOp::kWhere && n.op != RegionOp::kConst) ||
        (n.dtype != DType::kBool && truth))
      return no("computes with integers or truth values");
    EpilogueCode::Node& made = code->node[i];
    made.op = n.op;
    made.rounded = n.dtype == act;
    made.value = static_cast<float>(n.value);
    for (int k = 0; k < args; ++k) {
      made.args[k] = static_cast<uint8_t>(n.args[k]);
      const bool takes_truth = is_logic(n.op) || n.op == RegionOp::kCast ||
                               (n.op == RegionOp::kWhere && (k == 0 || n.dtype == DType::kBool));
      if (types[made.args[k]] == DType::kBool && !takes_truth) return no("computes with truth values");
      if (is_logic(n.op) && types[made.args[k]] != DType::kBool) return no("takes floats for truth values");
    }
    types.push_back(n.dtype);
  }
  code->out_dtype = types[static_cast<size_t>(code->output)];
  return is_float(code->out_dtype) ? true : no("gives no floats");
}

bool is_gate(const RegionProgram& region, DType act, GateStore* gate, int* gated_input) {
  if (region.inputs.size() != 2 || region.outputs.size() != 1) return false;
  // What a register holds: an input as it is, act(input), or the product.
  enum class Kind { kInput, kAct, kProduct };
  struct Held {
    Kind kind;
    int input;
    RegionOp op;
    bool rounded;
  };
  std::vector<Held> held;
  for (int i = 0; i < 2; ++i) {
    if (region.inputs[static_cast<size_t>(i)] != act) return false;
    held.push_back({Kind::kInput, i, RegionOp::kCast, true});
  }
  for (const RegionNode& n : region.nodes) {
    if (n.dtype != act && n.dtype != DType::kF32) return false;
    const bool rounds = n.dtype == act;
    if (n.op == RegionOp::kCast) {
      Held h = held[static_cast<size_t>(n.args[0])];
      h.rounded = h.rounded || rounds;
      held.push_back(h);
    } else if (n.op == RegionOp::kSilu || n.op == RegionOp::kGelu || n.op == RegionOp::kGeluTanh ||
               n.op == RegionOp::kRelu) {
      const Held& h = held[static_cast<size_t>(n.args[0])];
      if (h.kind != Kind::kInput) return false;
      held.push_back({Kind::kAct, h.input, n.op, rounds});
    } else if (n.op == RegionOp::kMul) {
      const Held &x = held[static_cast<size_t>(n.args[0])], &y = held[static_cast<size_t>(n.args[1])];
      const Held &a = x.kind == Kind::kAct ? x : y, &b = x.kind == Kind::kAct ? y : x;
      if (a.kind != Kind::kAct || b.kind != Kind::kInput || a.input == b.input) return false;
      gate->act = a.op;
      gate->rounded = a.rounded;
      *gated_input = a.input;
      held.push_back({Kind::kProduct, 0, RegionOp::kMul, rounds});
    } else {
      return false;
    }
  }
  const size_t out = static_cast<size_t>(region.outputs[0]);
  return held[out].kind == Kind::kProduct && held[out].rounded;
}

}  // namespace autodeploy::cuda
