#include "runtime/program_schema.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <string>

namespace autodeploy {
namespace {

constexpr AttrType kB = AttrType::kBool, kI = AttrType::kInteger, kN = AttrType::kNumber,
                   kS = AttrType::kString, kL = AttrType::kIntegers;
constexpr StateSpec::Kind kPaged = StateSpec::Kind::kPaged, kSlot = StateSpec::Kind::kSlot,
                          kConv = StateSpec::Kind::kConv;

OperandSchema req(const char* name) { return {name}; }
OperandSchema opt(const char* name) { return {name, true}; }
OperandSchema weight(const char* name) { return {name, false, true}; }

std::vector<OpSchema> make_schemas() {
  std::vector<OpSchema> s;
  // Canonical, token-wise.
  s.push_back({.name = "embedding", .in = {req("ids"), weight("weight")}, .attrs = {}, .states = {}});
  s.push_back({.name = "linear", .in = {req("x"), weight("weight"), opt("bias")}, .attrs = {}, .states = {}});
  s.push_back({.name = "rms_norm",
               .in = {req("x"), opt("weight")},
               .attrs = {{"eps", kN}, {"offset", kN}},
               .states = {},
               .in_place = true});
  s.push_back({.name = "layer_norm",
               .in = {req("x"), opt("weight"), opt("bias")},
               .attrs = {{"eps", kN}},
               .states = {},
               .in_place = true});
  s.push_back({.name = "add_rms_norm",
               .in = {req("x"), req("residual"), opt("weight")},
               .num_out = 2,
               .attrs = {{"eps", kN}, {"offset", kN}},
               .states = {},
               .in_place = true});
  s.push_back({.name = "add_layer_norm",
               .in = {req("x"), req("residual"), opt("weight"), opt("bias")},
               .num_out = 2,
               .attrs = {{"eps", kN}},
               .states = {},
               .in_place = true});
  s.push_back({.name = "rope",
               .in = {req("x"), req("cos"), req("sin")},
               .attrs = {{"interleaved", kB}},
               .states = {},
               .in_place = true});
  s.push_back({.name = "expert_linear",
               .in = {req("x"), weight("weight"), req("ids"), opt("bias")},
               .attrs = {{"x_repeat", kI}},
               .states = {}});
  s.push_back({.name = "select_rows", .in = {req("x")}, .attrs = {}, .states = {}});
  // Canonical, token mixers.
  s.push_back({.name = "known_length", .in = {req("at")}, .attrs = {}, .states = {}});
  s.push_back(
      {.name = "attention",
       .in = {req("q"), opt("k"), opt("v"), opt("sinks"), opt("slopes"), opt("bias_table"), opt("indices")},
       .attrs = {{"scale", kN}, {"causal", kB}, {"window", kI}, {"chunk", kI}, {"softcap", kN}},
       .states = {kPaged}});
  s.push_back({.name = "causal_conv1d",
               .in = {req("x"), req("weight"), opt("bias")},
               .attrs = {{"activation", kS}},
               .states = {kConv}});
  s.push_back({.name = "ssd",
               .in = {req("x"), req("dt"), req("a"), req("b"), req("c"), opt("d"), opt("dt_bias")},
               .attrs = {{"softplus", kB}, {"dt_min", kN}, {"dt_max", kN}},
               .states = {kSlot}});
  s.push_back({.name = "window", .in = {req("x"), opt("fill")}, .attrs = {{"back", kL}}, .states = {kConv}});
  s.push_back({.name = "linear_attention",
               .in = {req("q"), req("k"), req("v"), opt("gate"), opt("decay")},
               .attrs = {{"scale", kN}},
               .states = {kSlot}});
  s.push_back({.name = "linear_scan", .in = {req("x"), req("a")}, .attrs = {}, .states = {kSlot}});
  s.push_back({.name = "wkv",
               .in = {req("k"), req("v"), req("decay"), req("bonus")},
               .attrs = {},
               .states = {kSlot}});
  s.push_back({.name = "mlstm",
               .in = {req("q"), req("k"), req("v"), req("input_gate"), req("forget_gate")},
               .attrs = {{"scale", kN}, {"eps", kN}},
               .states = {kSlot}});
  s.push_back({.name = "selective_scan",
               .in = {req("x"), req("dt"), req("a"), req("b"), req("c"), opt("d"), opt("dt_bias")},
               .attrs = {{"softplus", kB}},
               .states = {kSlot}});
  s.push_back({.name = "gated_delta_rule",
               .in = {req("q"), req("k"), req("v"), opt("g"), req("beta")},
               .attrs = {{"scale", kN}, {"l2norm", kB}, {"eps", kN}},
               .states = {kSlot}});
  s.push_back({.name = "over_keys",
               .in = {},
               .num_out = -1,
               .attrs = {{"body", kI}},
               .states = {kPaged},
               .variadic = true,
               .may_lack_state = true});
  // Generic tail.
  s.push_back({.name = "region",
               .in = {},
               .num_out = -1,
               .attrs = {{"region", kI}},
               .states = {},
               .variadic = true,
               .in_place = true});
  s.push_back({.name = "copy", .in = {req("x")}, .attrs = {}, .states = {}});
  s.push_back({.name = "cat", .in = {}, .attrs = {{"dim", kI}}, .states = {}, .variadic = true});
  s.push_back({.name = "reduce",
               .in = {req("x")},
               .attrs = {{"kind", kS}, {"dims", kL}, {"keepdim", kB}},
               .states = {}});
  s.push_back({.name = "softmax", .in = {req("x")}, .attrs = {{"dim", kI}}, .states = {}, .in_place = true});
  s.push_back(
      {.name = "log_softmax", .in = {req("x")}, .attrs = {{"dim", kI}}, .states = {}, .in_place = true});
  s.push_back({.name = "topk",
               .in = {req("x")},
               .num_out = 2,
               .attrs = {{"k", kI}, {"dim", kI}, {"largest", kB}},
               .states = {}});
  s.push_back({.name = "sort",
               .in = {req("x")},
               .num_out = 2,
               .attrs = {{"dim", kI}, {"descending", kB}},
               .states = {}});
  s.push_back({.name = "cumsum", .in = {req("x")}, .attrs = {{"dim", kI}}, .states = {}, .in_place = true});
  s.push_back({.name = "matmul", .in = {req("a"), req("b")}, .attrs = {}, .states = {}});
  s.push_back({.name = "gather", .in = {req("x"), req("index")}, .attrs = {{"dim", kI}}, .states = {}});
  s.push_back({.name = "scatter",
               .in = {req("self"), req("index"), req("src")},
               .attrs = {{"dim", kI}, {"reduce", kS}},
               .states = {}});
  s.push_back({.name = "index_select", .in = {req("x"), req("index")}, .attrs = {{"dim", kI}}, .states = {}});
  s.push_back({.name = "arange", .in = {}, .attrs = {{"start", kN}, {"step", kN}}, .states = {}});
  s.push_back({.name = "full", .in = {}, .attrs = {{"value", kN}}, .states = {}});
  return s;
}

}  // namespace

const std::vector<OpSchema>& op_schemas() {
  static const std::vector<OpSchema> schemas = make_schemas();
  return schemas;
}

const OpSchema* find_op_schema(std::string_view op) {
  static const std::map<std::string_view, const OpSchema*> index = [] {
    std::map<std::string_view, const OpSchema*> m;
    for (const OpSchema& s : op_schemas()) m[s.name] = &s;
    return m;
  }();
  const auto it = index.find(op);
  return it == index.end() ? nullptr : it->second;
}

bool is_body_op(std::string_view op) {
  static constexpr std::string_view kOps[] = {
      "embedding", "linear", "rms_norm", "layer_norm",   "rope",   "region", "copy",
      "cat",       "reduce", "softmax",  "log_softmax",  "topk",   "sort",   "cumsum",
      "matmul",    "gather", "scatter",  "index_select", "arange", "full"};
  return std::find(std::begin(kOps), std::end(kOps), op) != std::end(kOps);
}

bool attr_has_type(const AttrValue& value, AttrType type) {
  switch (type) {
    case AttrType::kBool:
      return std::holds_alternative<bool>(value);
    case AttrType::kInteger:
      return std::holds_alternative<int64_t>(value);
    case AttrType::kNumber:
      return std::holds_alternative<double>(value) || std::holds_alternative<int64_t>(value);
    case AttrType::kString:
      return std::holds_alternative<std::string>(value);
    case AttrType::kIntegers:
      return std::holds_alternative<std::vector<int64_t>>(value);
  }
  return false;
}

const char* attr_type_name(AttrType type) {
  switch (type) {
    case AttrType::kBool:
      return "a boolean";
    case AttrType::kInteger:
      return "an integer";
    case AttrType::kNumber:
      return "a number";
    case AttrType::kString:
      return "a string";
    case AttrType::kIntegers:
      return "a list of integers";
  }
  return "?";
}

}  // namespace autodeploy
