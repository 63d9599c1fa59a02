// The ops of docs/program.md as data: operands, attributes, states.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>
#include <vector>

#include "core/attrs.h"
#include "core/state.h"

namespace autodeploy {

enum class AttrType : uint8_t { kBool, kInteger, kNumber, kString, kIntegers };

struct OperandSchema {
  const char* name;
  bool optional = false;
  bool weight = false;  // may be a quantized param
};

struct AttrSchema {
  const char* name;
  AttrType type;
};

struct OpSchema {
  const char* name;
  std::vector<OperandSchema> in;
  int num_out = 1;
  std::vector<AttrSchema> attrs;
  std::vector<StateSpec::Kind> states;
  bool variadic = false;  // any number of operands and, for regions, of results
  bool may_lack_state = false;
  bool in_place = false;  // kernels read each element before they write it: alias permissions may be used
};

// nullptr for an op that docs/program.md does not list.
const OpSchema* find_op_schema(std::string_view op);
const std::vector<OpSchema>& op_schemas();
// Whether a body may hold the op: the generic tail and ops of single rows.
bool is_body_op(std::string_view op);

bool attr_has_type(const AttrValue& value, AttrType type);
const char* attr_type_name(AttrType type);

}  // namespace autodeploy
