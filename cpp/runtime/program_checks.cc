#include "runtime/program_checks.h"

#include <algorithm>

#include "core/error.h"
#include "runtime/program_fields.h"

namespace autodeploy::program_format {
namespace {

// How an over_keys instruction writes a state's component for a key input, whose shape per token may be
// empty.
std::vector<int64_t> component_shape(const std::vector<Dim>& outer) {
  std::vector<int64_t> shape;
  for (size_t i = 1; i < outer.size(); ++i) shape.push_back(outer[i].constant);
  if (shape.empty()) shape.push_back(1);
  return shape;
}

}  // namespace

void expect_value(const ProgramSpec& program, const DimScope& scope, const std::string& where, int32_t v,
                  DType dtype, const std::vector<Dim>& shape) {
  const ValueSpec& spec = program.values[static_cast<size_t>(v)];
  if (spec.dtype != dtype || spec.shape != shape) {
    fail(where, detail::concat(dtype_name(dtype), " ", shape_text(shape, scope)),
         detail::concat(dtype_name(spec.dtype), " ", shape_text(spec.shape, scope)));
  }
}

bool add_absent_operands(const OpSchema& schema, InstructionSpec* ins) {
  if (ins->in.size() > schema.in.size()) return false;
  for (size_t i = ins->in.size(); i < schema.in.size(); ++i) {
    if (!schema.in[i].optional) return false;
  }
  ins->in.resize(schema.in.size());
  return true;
}

void check_attrs(const OpSchema& schema, const InstructionSpec& ins) {
  for (const auto& [name, value] : ins.attrs.all()) {
    const auto it = std::find_if(schema.attrs.begin(), schema.attrs.end(),
                                 [&](const AttrSchema& a) { return name == a.name; });
    if (it == schema.attrs.end())
      fail(ins.where, "attributes of this version", "the unknown attribute " + show(Json(name)));
    if (!attr_has_type(value, it->type))
      fail(ins.where, detail::concat(attr_type_name(it->type), " for attribute ", name), "another type");
  }
  for (const AttrSchema& a : schema.attrs) {
    if (!ins.attrs.all().count(a.name)) fail(ins.where, detail::concat("the attribute ", a.name), "none");
  }
}

void check_region(const ProgramSpec& program, const std::vector<RegionProgram>& regions,
                  const DimScope& scope, InstructionSpec* ins) {
  const int64_t index = ins->attrs.integer("region");
  if (index < 0 || index >= static_cast<int64_t>(regions.size())) {
    fail(ins->where, detail::concat("a region below ", regions.size()), detail::concat(index));
  }
  ins->region = static_cast<int32_t>(index);
  const RegionProgram& region = regions[static_cast<size_t>(index)];
  if (ins->in.size() != region.inputs.size() || ins->out.size() != region.outputs.size()) {
    fail(ins->where,
         detail::concat(region.inputs.size(), " operands and ", region.outputs.size(), " results"),
         detail::concat(ins->in.size(), " and ", ins->out.size()));
  }
  const std::vector<Dim>& shape = program.values[static_cast<size_t>(ins->out[0])].shape;
  const auto same = [&](const std::vector<Dim>& found, DType dtype, DType expected, const std::string& what) {
    if (found != shape)
      fail(ins->where, detail::concat("the iteration shape ", shape_text(shape, scope)),
           detail::concat(shape_text(found, scope), " of ", what));
    if (dtype != expected)
      fail(ins->where, std::string(dtype_name(expected)), detail::concat(dtype_name(dtype), " of ", what));
  };
  for (size_t i = 0; i < ins->in.size(); ++i) {
    const OperandRef& o = ins->in[i];
    const DType dtype = o.kind == OperandRef::Kind::kValue
                            ? program.values[static_cast<size_t>(o.index)].dtype
                            : program.params[static_cast<size_t>(o.index)].dtype;
    same(o.shape, dtype, region.inputs[i], detail::concat("operand ", i));
  }
  for (size_t i = 0; i < ins->out.size(); ++i) {
    const size_t r = static_cast<size_t>(region.outputs[i]);
    const DType dtype =
        r < region.inputs.size() ? region.inputs[r] : region.nodes[r - region.inputs.size()].dtype;
    const ValueSpec& v = program.values[static_cast<size_t>(ins->out[i])];
    same(v.shape, v.dtype, dtype, detail::concat("result ", i));
  }
}

void check_over_keys(ProgramSpec& program, const DimScope& scope, InstructionSpec* ins) {
  const int64_t index = ins->attrs.integer("body");
  if (index < 0 || index >= static_cast<int64_t>(program.bodies.size()))
    fail(ins->where, detail::concat("a body below ", program.bodies.size()), detail::concat(index));
  ins->body = static_cast<int32_t>(index);
  const BodySpec& body = program.bodies[static_cast<size_t>(index)];
  if (ins->in.size() != body.inputs.size() || ins->out.size() != body.outputs.size()) {
    fail(ins->where, detail::concat(body.inputs.size(), " operands and ", body.outputs.size(), " results"),
         detail::concat(ins->in.size(), " and ", ins->out.size()));
  }
  std::vector<StateComponentSpec> keys;
  for (size_t i = 0; i < ins->in.size(); ++i) {
    OperandRef& o = ins->in[i];
    const BodyInputSpec& input = body.inputs[i];
    const std::string here = detail::concat(ins->where, " operand ", i);
    const bool is_param = o.kind == OperandRef::Kind::kParam;
    const DType dtype = is_param ? program.params[static_cast<size_t>(o.index)].dtype
                                 : program.values[static_cast<size_t>(o.index)].dtype;
    if (o.shape != input.outer || dtype != input.dtype) {
      fail(here, detail::concat(dtype_name(input.dtype), " ", shape_text(input.outer, scope)),
           detail::concat(dtype_name(dtype), " ", shape_text(o.shape, scope)));
    }
    if (input.role == BodyInputSpec::Role::kKey) keys.push_back({"", component_shape(input.outer), dtype});
    if (input.param >= 0 && !(is_param && o.whole))
      fail(here, "a whole param for a weight", "another operand");
    if (!is_param) continue;
    ParamSpec& p = program.params[static_cast<size_t>(o.index)];
    o.weight = input.param >= 0 && !input.read_as_value;
    if (input.param >= 0) p.used_as_weight = true;
    if (!o.weight) p.used_as_plain = true;
  }
  for (size_t i = 0; i < ins->out.size(); ++i) {
    const ValueSpec& inner = body.program.values[static_cast<size_t>(body.outputs[i])];
    expect_value(program, scope, detail::concat(ins->where, " result ", i), ins->out[i], inner.dtype,
                 inner.shape);
  }
  std::vector<StateComponentSpec> found;
  for (int32_t s : ins->states) {
    const StateSpec& state = program.states[static_cast<size_t>(s)];
    if (state.window != 0 || state.chunk != 0) fail(ins->where, "a state without window", state.name);
    found = state.components;
  }
  const bool same =
      std::equal(keys.begin(), keys.end(), found.begin(), found.end(),
                 [](const auto& a, const auto& b) { return a.shape == b.shape && a.dtype == b.dtype; });
  if (!same) fail(ins->where, "a state with one component per key input, of its shape and dtype", "another");
}

}  // namespace autodeploy::program_format
