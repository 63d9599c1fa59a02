// What a linear's products become where a region follows it at once: evaluated for each output by the kernels
// of linear_small_kernel.h, in place of a pass over memory.
#pragma once

#include <string>
#include <vector>

#include "kernels/cuda/float_view.h"
#include "kernels/cuda/linear_small_kernel.h"
#include "kernels/cuda/region_math.h"
#include "kernels/generic/region.h"

namespace autodeploy::cuda {

// act(a) * b, where a and b are slices 0 and 1: the gate of most MLPs.
struct GateStore {
  static constexpr int kSlices = 2;
  RegionOp act = RegionOp::kSilu;
  bool rounded = true;  // act(a) is rounded before it is multiplied

  // Of one pair; a and b as the linear's result holds them.
  template <class T>
  AD_DEVICE float gate(float a, float b) const {
    float x = act == RegionOp::kSilu       ? f32_silu(a)
              : act == RegionOp::kGelu     ? f32_gelu(a)
              : act == RegionOp::kGeluTanh ? f32_gelu_tanh(a)
                                           : f32_relu(a);
    if (rounded) x = to_float(from_float<T>(x));
    return x * b;
  }
  template <class T>
  AD_DEVICE T value(const float (&values)[2]) const {
    return from_float<T>(gate<T>(to_float(from_float<T>(values[0])), to_float(from_float<T>(values[1]))));
  }
  template <class T>
  AD_DEVICE void store(const SmallLinearArgs& a, int m, int j, const float (&values)[2]) const {
    a.y.row<T>(a.first_row + m)[j] = value<T>(values);
  }
};

constexpr int kMaxEpilogueInputs = 6, kMaxEpilogueNodes = 20, kMaxEpilogueOthers = 4;

// An input of the region that is no slice, at output j of row m.
struct OtherInput {
  DeviceRows rows, inner;
  DType dtype = DType::kF32;

  AD_DEVICE float at(int64_t m, int64_t j) const {
    const int64_t i = rows.offset(m) + inner.offset(j);
    if (dtype == DType::kBool) return static_cast<const uint8_t*>(rows.data)[i] ? 1.0f : 0.0f;
    return load_float(rows.data, dtype, i);
  }
};

// A region of floats and truth values (0 and 1), interpreted.
struct EpilogueCode {
  struct Node {
    RegionOp op = RegionOp::kConst;
    bool rounded = false;  // to the linear's type
    uint8_t args[3] = {};  // registers: the inputs, then one for each node
    float value = 0;       // of kConst
  };
  int32_t inputs = 0, nodes = 0, output = 0;
  DType out_dtype = DType::kF32;
  int8_t source[kMaxEpilogueInputs] = {};  // a slice, or kMaxSlices + a number of `others`
  Node node[kMaxEpilogueNodes];
  OtherInput others[kMaxEpilogueOthers];
};

template <int kCount>
struct RegionStore {
  static constexpr int kSlices = kCount;
  EpilogueCode code;

  template <class T>
  AD_DEVICE void store(const SmallLinearArgs& a, int m, int j, const float (&values)[kCount]) const {
    float r[kMaxEpilogueInputs + kMaxEpilogueNodes];
    const int64_t row = a.first_row + m;
    for (int i = 0; i < code.inputs; ++i) {
      float v = 0;
      if (code.source[i] >= kMaxSlices) {
        v = code.others[code.source[i] - kMaxSlices].at(row, j);
      } else {
#pragma unroll
        for (int s = 0; s < kCount; ++s) {
          if (s == code.source[i]) v = to_float(from_float<T>(values[s]));
        }
      }
      r[i] = v;
    }
    for (int i = 0; i < code.nodes; ++i) {
      const EpilogueCode::Node& n = code.node[i];
      float v = apply(n.op, n.value, r[n.args[0]], r[n.args[1]], r[n.args[2]]);
      if (n.rounded) v = to_float(from_float<T>(v));
      r[code.inputs + i] = v;
    }
    store_float(a.y.data, code.out_dtype, a.y.offset(row) + j, r[code.output]);
  }

  static AD_DEVICE float apply(RegionOp op, float value, float a, float b, float c) {
    switch (op) {
      case RegionOp::kConst:
        return value;
      case RegionOp::kCast:
        return a;
      case RegionOp::kAdd:
        return a + b;
      case RegionOp::kSub:
        return a - b;
      case RegionOp::kMul:
        return a * b;
      case RegionOp::kDiv:
        return a / b;
      case RegionOp::kMin:
        return f32_min(a, b);
      case RegionOp::kMax:
        return f32_max(a, b);
      case RegionOp::kNeg:
        return -a;
      case RegionOp::kAbs:
        return f32_abs(a);
      case RegionOp::kExp:
        return f32_exp(a);
      case RegionOp::kLog:
        return f32_log(a);
      case RegionOp::kSqrt:
        return f32_sqrt(a);
      case RegionOp::kRsqrt:
        return f32_rsqrt(a);
      case RegionOp::kReciprocal:
        return f32_reciprocal(a);
      case RegionOp::kTanh:
        return f32_tanh(a);
      case RegionOp::kSigmoid:
        return f32_sigmoid(a);
      case RegionOp::kSilu:
        return f32_silu(a);
      case RegionOp::kRelu:
        return f32_relu(a);
      case RegionOp::kGelu:
        return f32_gelu(a);
      case RegionOp::kGeluTanh:
        return f32_gelu_tanh(a);
      case RegionOp::kSoftplus:
        return f32_softplus(a);
      case RegionOp::kErf:
        return f32_erf(a);
      case RegionOp::kSquare:
        return a * a;
      case RegionOp::kWhere:
        return a != 0 ? b : c;
      case RegionOp::kEq:
        return a == b;
      case RegionOp::kNe:
        return a != b;
      case RegionOp::kLt:
        return a < b;
      case RegionOp::kLe:
        return a <= b;
      case RegionOp::kGt:
        return a > b;
      case RegionOp::kGe:
        return a >= b;
      case RegionOp::kAnd:
        return a != 0 && b != 0;
      case RegionOp::kOr:
        return a != 0 || b != 0;
      case RegionOp::kNot:
        return a == 0;
      default:
        return 0;  // compile_epilogue() lets no other op pass
    }
  }
};

// Number of arguments that RegionStore gives the op; -1 where it does not have it.
int epilogue_args(RegionOp op);

// A region as RegionStore runs it; `slices` are those of linear_fused.h, the others' views are for each run
// to fill in. False, with the reason in *why, where it holds more or other things than an epilogue can.
bool compile_epilogue(const RegionProgram& region, const std::vector<int64_t>& slices, DType act,
                      EpilogueCode* code, std::string* why);

// Whether the region is act(a) * b of its two inputs: then also which input is a.
bool is_gate(const RegionProgram& region, DType act, GateStore* gate, int* gated_input);

}  // namespace autodeploy::cuda
