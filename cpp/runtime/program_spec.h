// A checked Program: what docs/program.md describes, with every index, bound and type already verified.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/attrs.h"
#include "core/dtype.h"
#include "core/state.h"
#include "kernels/generic/region.h"
#include "kernels/kernel.h"

namespace autodeploy {

// Largest T of any program: bounds of views are proved for every T up to it.
constexpr int64_t kMaxProgramTokens = int64_t{1} << 24;

struct ParamSpec {
  std::string name;
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;  // `act` is bound already
  // How instructions (parts included) read it. A weight operand may be quantized and comes as a PackedWeight;
  // everything else needs plain row-major memory of `dtype`.
  bool used_as_weight = false, used_as_plain = false;

  int64_t numel() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
};

struct ValueSpec {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<Dim> shape;  // at most one dim depends on T or R
  Dim numel;
};

// Row-major strides of a shape of which at most one dim depends on T or R.
std::vector<Dim> contiguous_strides(const std::vector<Dim>& shape);

// A view of a value or a param, always with shape and strides written out.
struct OperandRef {
  enum class Kind : uint8_t { kAbsent, kValue, kParam };
  Kind kind = Kind::kAbsent;
  int32_t index = -1;
  bool whole = false;  // the whole storage, contiguous
  std::vector<Dim> shape, stride;
  Dim offset;
};

struct InstructionSpec {
  std::string op;
  std::vector<OperandRef> in;
  std::vector<int32_t> out;
  Attrs attrs;
  std::vector<int32_t> states;
  std::vector<std::pair<int32_t, int32_t>> alias;  // (out position, in position)
  std::vector<InstructionSpec> parts;              // of a composite
  int32_t region = -1;                             // of op "region"
  std::string source;
  std::string where;  // "instruction 12 (linear)", for messages
};

struct NamedValue {
  std::string name;
  int32_t value = -1;
};

struct ProgramSpec {
  int64_t vocab_size = 0, max_positions = 0;  // of the metadata; 0 where it does not say
  std::string metadata_json;                  // the whole object
  std::vector<ParamSpec> params;
  std::vector<ValueSpec> values;
  std::vector<NamedValue> inputs, outputs;
  std::vector<StateSpec> states;
  std::vector<RegionProgram> regions;
  std::vector<InstructionSpec> instructions;

  // Value index of an input or output, -1 where there is none of that name.
  int32_t input(const std::string& name) const { return find(inputs, name); }
  int32_t output(const std::string& name) const { return find(outputs, name); }

 private:
  static int32_t find(const std::vector<NamedValue>& list, const std::string& name) {
    for (const NamedValue& n : list) {
      if (n.name == name) return n.value;
    }
    return -1;
  }
};

}  // namespace autodeploy
