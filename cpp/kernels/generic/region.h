// Pointwise programs over tiles: the fused leftovers of a graph.
#pragma once

#include <cstdint>
#include <vector>

#include "core/dtype.h"

namespace autodeploy {

enum class RegionOp : uint8_t {
  kConst,
  kCast,
  kAdd,
  kSub,
  kMul,
  kDiv,
  kPow,
  kMin,
  kMax,
  kNeg,
  kAbs,
  kExp,
  kLog,
  kLog1p,
  kExpm1,
  kSqrt,
  kRsqrt,
  kReciprocal,
  kSin,
  kCos,
  kTanh,
  kSigmoid,
  kSilu,
  kRelu,
  kGelu,
  kGeluTanh,
  kSoftplus,
  kErf,
  kFloor,
  kCeil,
  kRound,
  kTrunc,
  kSign,
  kSquare,
  kFmod,
  kFloorDiv,
  kWhere,
  kEq,
  kNe,
  kLt,
  kLe,
  kGt,
  kGe,
  kAnd,
  kOr,
  kNot,
  kBitAnd,
  kBitOr,
  kBitXor,
};

struct RegionNode {
  RegionOp op;
  DType dtype;
  int32_t args[3] = {-1, -1, -1};  // registers
  double value = 0;                // of kConst
};

// Registers 0..inputs.size()-1 are the inputs, then one per node. Checked by the program reader.
struct RegionProgram {
  std::vector<DType> inputs;
  std::vector<RegionNode> nodes;
  std::vector<int32_t> outputs;
};

}  // namespace autodeploy
