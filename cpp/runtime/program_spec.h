// A checked Program: what docs/program.md describes, with every index, bound and type already verified.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/attrs.h"
#include "core/dtype.h"
#include "core/state.h"
#include "kernels/generic/region.h"
#include "kernels/kernel.h"

namespace autodeploy {

class PluginSet;  // runtime/plugins.h

// Largest T of any program: bounds of views are proved for every T up to it.
constexpr int64_t kMaxProgramTokens = int64_t{1} << 24;
// Most queries that a body is given at once; S of a body is at most kMaxProgramTokens.
constexpr int64_t kMaxTileQueries = 32;

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
  std::vector<Dim> shape;  // at most one dim depends on T or R (in a body: one on N, one on S)
  Dim numel;
};

// Row-major strides of a shape whose dims are as in ValueSpec.
std::vector<Dim> contiguous_strides(const std::vector<Dim>& shape);

// A view of a value or a param, always with shape and strides written out.
struct OperandRef {
  enum class Kind : uint8_t { kAbsent, kValue, kParam };
  Kind kind = Kind::kAbsent;
  int32_t index = -1;
  bool whole = false;   // the whole storage, contiguous
  bool weight = false;  // a param that the op reads in packed form alone
  std::vector<Dim> shape, stride;
  Dim offset;
  bool operator==(const OperandRef&) const = default;
};

struct InstructionSpec {
  std::string op;
  std::vector<OperandRef> in;
  std::vector<int32_t> out;
  Attrs attrs;
  std::vector<int32_t> states;
  std::vector<std::pair<int32_t, int32_t>> alias;  // (out position, in position)
  std::vector<InstructionSpec> parts;              // of a composite
  int32_t origin = -1;                             // place in the Program, where a backend moved it
  int32_t region = -1;                             // of op "region"
  int32_t body = -1;                               // of op "over_keys"
  std::string source;
  std::string where;  // "instruction 12 (linear)", for messages
};

struct NamedValue {
  std::string name;
  int32_t value = -1;
};

struct BodySpec;

struct ProgramSpec {
  int64_t vocab_size = 0, max_positions = 0;  // of the metadata; 0 where it does not say
  std::vector<int64_t> prefix_tokens;         // of the metadata: what stands before every request's prompt
  std::string metadata_json;                  // the whole object
  std::vector<ParamSpec> params;
  std::vector<ValueSpec> values;
  std::vector<NamedValue> inputs, outputs;
  std::vector<StateSpec> states;
  std::vector<RegionProgram> regions;
  std::vector<BodySpec> bodies;
  std::vector<InstructionSpec> instructions;
  std::shared_ptr<const PluginSet> plugins;  // of operators of an author's own; nullptr: none

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

// An operand of an `over_keys` instruction as its body sees it.
struct BodyInputSpec {
  enum class Role : uint8_t { kQuery, kKey, kFixed };
  Role role = Role::kFixed;
  DType dtype = DType::kF32;
  std::vector<Dim> outer;   // shape outside the body: [T, ...], or the same for a fixed one
  int64_t token_numel = 0;  // elements of one token; of all of it for a fixed one
  int32_t param = -1;       // index into program.params where instructions read it as a weight
  bool read_as_value = false;
};

// The body of an `over_keys` instruction: a program of its own, whose T is N and whose R is S. Its inputs are
// the operands, by number as name; those that are weights are params as well. Regions are those of the outer
// program.
struct BodySpec {
  ProgramSpec program;
  std::vector<BodyInputSpec> inputs;
  std::vector<int32_t> outputs;  // value per result
  int64_t block = 1, min_keys = 0;

  int64_t num_blocks(int64_t num_keys) const {
    const int64_t rows = num_keys > min_keys ? num_keys : min_keys;
    return rows / block + (rows % block != 0);
  }
  int64_t min_blocks() const { return num_blocks(1); }
};

}  // namespace autodeploy
