#include "runtime/program_reader.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

#include "core/error.h"
#include "runtime/plugins.h"
#include "runtime/program_checks.h"
#include "runtime/program_fields.h"
#include "runtime/program_regions.h"
#include "runtime/program_schema.h"
#include "runtime/program_shapes.h"

namespace autodeploy {
namespace {

using namespace program_format;

constexpr int64_t kMajor = 1, kMinor = 0;
constexpr size_t kMaxParams = 1 << 20, kMaxValues = 1 << 20, kMaxInstructions = 1 << 20, kMaxStates = 1 << 16,
                 kMaxRegions = 1 << 16, kMaxBodies = 1 << 16;
constexpr size_t kMaxOperands = 256, kMaxNamedValues = 256, kMaxMetadata = 4096, kMaxComponents = 16,
                 kMaxAttrs = 64, kMaxPrefix = 1 << 16;
constexpr int kMaxPartsDepth = 4;

class Reader {
 public:
  Reader(const Json& doc, DType act, std::shared_ptr<const PluginSet> plugins, bool compiled_kernels)
      : doc_(doc), act_(act), compiled_kernels_(compiled_kernels), regions_(program_.regions) {
    program_.plugins = std::move(plugins);
  }

  ProgramSpec read() {
    check_version();
    Fields top(doc_, "document", lenient_);
    top.get("format");
    top.get("version");
    read_metadata(top);
    read_params(top);
    read_values(top);
    read_states(top);
    for (const Json& r : top.array("regions", kMaxRegions)) {
      program_.regions.push_back(
          read_region(r, detail::concat("region ", program_.regions.size()), act_, lenient_));
    }
    if (top.has("bodies")) {
      for (const Json& b : top.array("bodies", kMaxBodies)) {
        program_.bodies.push_back(
            Reader(*this, 0).read_body(b, detail::concat("body ", program_.bodies.size())));
      }
    }
    read_inputs(top);
    read_instructions(top);
    read_outputs(top);
    top.finish();
    return std::move(program_);
  }

 private:
  // For a body of the outer reader's program.
  explicit Reader(const Reader& outer, int)
      : doc_(outer.doc_), act_(outer.act_), regions_(outer.regions_), lenient_(outer.lenient_) {}

  void check_version() {
    Fields top(doc_, "document", true);
    const std::string format = top.text("format");
    if (format != "autodeploy.program") fail("document", "format \"autodeploy.program\"", show(Json(format)));
    Fields version(top.get("version"), "version", true);
    const int64_t major = version.integer("major", 0, 1 << 20), minor = version.integer("minor", 0, 1 << 20);
    AD_CHECK(major == kMajor, ErrorKind::kUnsupported, "[program.json: version] expected ", kMajor,
             ".x, found ", major, ".", minor, ": compile the model again with this version");
    lenient_ = minor > kMinor;
  }

  void read_metadata(Fields& top) {
    const Json& metadata = top.object("metadata", kMaxMetadata);
    const auto number = [&](const char* name, int64_t* out) {
      const auto it = metadata.find(name);
      if (it != metadata.end() && !it->is_null())
        *out = to_integer(*it, detail::concat("metadata .", name), 0, int64_t{1} << 40);
    };
    number("vocab_size", &program_.vocab_size);
    number("max_positions", &program_.max_positions);
    const auto prefix = metadata.find("prefix_tokens");
    if (prefix != metadata.end()) {
      if (!prefix->is_array() || prefix->size() > kMaxPrefix)
        fail("metadata .prefix_tokens", detail::concat("at most ", kMaxPrefix, " token ids"), show(*prefix));
      for (const Json& id : *prefix)
        program_.prefix_tokens.push_back(to_integer(id, "metadata .prefix_tokens", 0, int64_t{1} << 40));
    }
    check_plugins(metadata);
    program_.metadata_json = metadata.dump(-1, ' ', false, Json::error_handler_t::replace);
  }

  // A library that the artifact was compiled with has to be the same one.
  void check_plugins(const Json& metadata) const {
    const auto named = metadata.find("plugins");
    if (named == metadata.end() || !program_.plugins) return;
    if (!named->is_object()) fail("metadata .plugins", "an object", show(*named));
    for (const auto& item : named->items()) {
      if (!item.value().is_string()) fail("metadata .plugins", "digests", show(item.value()));
      for (const PluginSet::Library& library : program_.plugins->libraries()) {
        if (library.file != item.key()) continue;
        AD_CHECK(library.sha256 == item.value().get<std::string>(), ErrorKind::kUnsupported,
                 "[program.json: metadata .plugins] expected ", library.file, " with the sha256 ",
                 item.value().get<std::string>().substr(0, 64), ", found ", library.sha256, " at ",
                 library.path,
                 ": compile the model again with this library, or give the one that it was compiled with");
      }
    }
  }

  void read_params(Fields& top) {
    std::set<std::string> names;
    for (const Json& j : top.array("params", kMaxParams)) {
      const std::string where = detail::concat("param ", program_.params.size());
      Fields f(j, where, lenient_);
      ParamSpec p;
      p.name = f.text("name");
      p.dtype = to_dtype(f.get("dtype"), where, act_);
      std::vector<Dim> shape;
      for (int64_t d : p.shape = f.integers("shape", 0, kMaxInteger, kMaxDims)) shape.push_back(Dim{d, 0, 0});
      param_numel_.push_back(shape_numel(shape, scope_, where));
      param_shape_.push_back(std::move(shape));
      f.finish();
      if (!names.insert(p.name).second) fail(where, "a name of its own", show(Json(p.name)));
      program_.params.push_back(std::move(p));
    }
  }

  void read_values(Fields& top, const std::string& prefix = "") {
    for (const Json& j : top.array("values", kMaxValues)) {
      const std::string where = detail::concat(prefix, "value ", program_.values.size());
      Fields f(j, where, lenient_);
      ValueSpec v;
      v.name = f.text("name");
      v.dtype = to_dtype(f.get("dtype"), where, act_);
      v.shape = f.dims("shape", scope_.in_body);
      v.numel = shape_numel(v.shape, scope_, where);
      f.finish();
      program_.values.push_back(std::move(v));
    }
    written_.assign(program_.values.size(), Written::kNo);
  }

  void read_states(Fields& top) {
    std::set<std::string> names;
    for (const Json& j : top.array("states", kMaxStates)) {
      const std::string where = detail::concat("state ", program_.states.size());
      Fields f(j, where, lenient_);
      StateSpec s;
      s.name = f.text("name");
      if (!names.insert(s.name).second) fail(where, "a name of its own", show(Json(s.name)));
      const std::string kind = f.text("kind");
      if (kind == "paged")
        s.kind = StateSpec::Kind::kPaged;
      else if (kind == "slot")
        s.kind = StateSpec::Kind::kSlot;
      else if (kind == "conv")
        s.kind = StateSpec::Kind::kConv;
      else
        fail(where, "the kind paged, slot or conv", show(Json(kind)));
      if (s.kind == StateSpec::Kind::kPaged) {
        s.window = f.integer("window", 0, kMaxInteger);
        s.chunk = f.integer("chunk", 0, kMaxInteger);
      }
      std::set<std::string> components;
      for (const Json& c : f.array("components", kMaxComponents)) {
        const std::string here = detail::concat(where, " component ", s.components.size());
        Fields cf(c, here, lenient_);
        StateComponentSpec component;
        component.name = cf.text("name");
        component.dtype = to_dtype(cf.get("dtype"), here, act_);
        component.shape = cf.integers("shape", 1, int64_t{1} << 32, kMaxDims);
        std::vector<Dim> dims;
        for (int64_t d : component.shape) dims.push_back(Dim{d, 0, 0});
        if (shape_numel(dims, scope_, here).constant > (int64_t{1} << 40))
          fail(here, "at most 2^40 elements", shape_text(dims, scope_));
        cf.finish();
        if (!components.insert(component.name).second)
          fail(here, "a name of its own", show(Json(component.name)));
        s.components.push_back(std::move(component));
      }
      if (s.components.empty()) fail(where, "at least one component", "none");
      if (s.kind == StateSpec::Kind::kConv &&
          (s.components.size() != 1 || s.components[0].shape.size() != 2)) {
        fail(where, "one component [width, channels]", detail::concat(s.components.size(), " components"));
      }
      f.finish();
      program_.states.push_back(std::move(s));
    }
  }

  std::vector<NamedValue> read_named(const Json& map, const char* what) {
    std::vector<NamedValue> out;
    for (const auto& item : map.items()) {
      if (item.key().empty() || item.key().size() > kMaxNameLength)
        fail(what, "names of 1 to 4096 bytes", detail::concat(item.key().size()));
      const std::string where = detail::concat(what, " ", item.key());
      out.push_back(
          {item.key(), static_cast<int32_t>(to_integer(item.value(), where, 0,
                                                       static_cast<int64_t>(program_.values.size()) - 1))});
    }
    return out;
  }

  void read_inputs(Fields& top) {
    program_.inputs = read_named(top.object("inputs", kMaxNamedValues), "input");
    for (const NamedValue& n : program_.inputs) {
      if (written(n.value) != Written::kNo)
        fail("input " + n.name, "a value of its own", "one that another input fills");
      written(n.value) = Written::kYes;
      if (n.name == "token_ids" || n.name == "positions")
        expect_value(program_, scope_, "input " + n.name, n.value, DType::kI64, {Dim{0, 1, 0}});
    }
  }

  void read_outputs(Fields& top) {
    program_.outputs = read_named(top.object("outputs", kMaxNamedValues), "output");
    for (const NamedValue& n : program_.outputs) {
      const ValueSpec& v = program_.values[static_cast<size_t>(n.value)];
      const std::string where = "output " + n.name;
      if (written(n.value) != Written::kYes)
        fail(where, "a value that an instruction writes", "one that none does");
      if (n.name != "logits") continue;
      const bool ok = (v.dtype == DType::kF32 || v.dtype == act_) && v.shape.size() == 2 &&
                      v.shape[0] == Dim{0, 0, 1} && v.shape[1].is_static();
      if (!ok)
        fail(where, "act or f32 [R, vocab]",
             detail::concat(dtype_name(v.dtype), " ", shape_text(v.shape, scope_)));
      if (program_.vocab_size > 0 && v.shape[1].constant < program_.vocab_size) {
        fail(where, detail::concat("at least vocab_size = ", program_.vocab_size, " columns"),
             dim_text(v.shape[1]));
      }
    }
  }

  void read_instructions(Fields& top) {
    for (const Json& j : top.array("instructions", kMaxInstructions)) {
      program_.instructions.push_back(
          read_instruction(j, detail::concat("instruction ", program_.instructions.size()), 0));
    }
  }

  OperandRef read_operand(const Json& j, const std::string& where) {
    OperandRef o;
    if (j.is_null()) return o;
    Fields f(j, where, lenient_);
    if (f.has("v") == f.has("p")) fail(where, "one of the fields v and p", f.has("v") ? "both" : "neither");
    Dim storage;
    const std::vector<Dim>* whole;
    if (f.has("v")) {
      o.kind = OperandRef::Kind::kValue;
      o.index = static_cast<int32_t>(f.integer("v", 0, static_cast<int64_t>(program_.values.size()) - 1));
      const ValueSpec& v = program_.values[static_cast<size_t>(o.index)];
      if (written(o.index) != Written::kYes) {
        fail(where, "a value that is written before", detail::concat("value ", o.index, " (", v.name, ")"));
      }
      storage = v.numel;
      whole = &v.shape;
    } else {
      o.kind = OperandRef::Kind::kParam;
      o.index = static_cast<int32_t>(f.integer("p", 0, static_cast<int64_t>(program_.params.size()) - 1));
      storage = param_numel_[static_cast<size_t>(o.index)];
      whole = &param_shape_[static_cast<size_t>(o.index)];
    }
    if (f.has("shape") || f.has("strides") || f.has("offset")) {
      o.shape = f.dims("shape", scope_.in_body);
      o.stride = f.dims("strides", scope_.in_body);
      o.offset = to_dim(f.get("offset"), where, scope_.in_body);
      if (o.shape.size() != o.stride.size()) {
        fail(where, detail::concat(o.shape.size(), " strides"), detail::concat(o.stride.size()));
      }
      shape_numel(o.shape, scope_, where);
      check_bounds(o, storage, scope_, where);
      o.whole = o.offset == Dim{} && o.shape == *whole && o.stride == contiguous_strides(*whole);
    } else {
      o.whole = true;
      o.shape = *whole;
      o.stride = contiguous_strides(*whole);
    }
    f.finish();
    return o;
  }

  InstructionSpec read_instruction(const Json& j, const std::string& prefix, int depth) {
    InstructionSpec ins;
    Fields head(j, prefix, true);
    ins.op = head.text("op");
    ins.where = detail::concat(prefix, " (", ins.op.substr(0, 60), ")");
    Fields f(j, ins.where, lenient_);
    f.get("op");
    const bool has_parts = f.has("parts");
    if (scope_.in_body && (has_parts || !is_body_op(ins.op)))
      fail(ins.where, "an op that a body may hold, without parts", show(Json(ins.op)));
    if (is_author_op(ins.op)) check_author_op(ins);
    AD_CHECK(has_parts || is_author_op(ins.op) || find_op_schema(ins.op), ErrorKind::kInvalidArtifact,
             "[program.json: ", ins.where, "] expected an op of this version, found ", show(Json(ins.op)),
             ": compile the model again, or use the newer runtime that it was compiled for");
    for (const Json& o : f.array("in", kMaxOperands)) {
      ins.in.push_back(read_operand(o, detail::concat(ins.where, " operand ", ins.in.size())));
    }
    const int64_t last_value = static_cast<int64_t>(program_.values.size()) - 1;
    for (int64_t v : f.integers("out", 0, last_value, kMaxOperands))
      ins.out.push_back(static_cast<int32_t>(v));
    ins.attrs.set_owner(ins.op);
    if (f.has("attrs")) {
      for (const auto& item : f.object("attrs", kMaxAttrs).items()) {
        ins.attrs.set(item.key(), to_attr(item.value(), detail::concat(ins.where, " attribute ",
                                                                       item.key().substr(0, 60))));
      }
    }
    if (f.has("states")) {
      const int64_t last_state = static_cast<int64_t>(program_.states.size()) - 1;
      for (int64_t s : f.integers("states", 0, last_state, 16)) ins.states.push_back(static_cast<int32_t>(s));
    }
    if (f.has("source")) ins.source = f.text("source");
    check_schema(&ins, has_parts);
    if (f.has("alias")) read_alias(f, &ins);
    if (has_parts) read_parts(f, &ins, depth);
    for (int32_t v : ins.out) {
      if (written(v) != Written::kNo) fail(ins.where, "results that nothing else writes", value_text(v));
      written(v) = Written::kYes;
      write_log_.push_back(v);
    }
    f.finish();
    return ins;
  }

  // An operator of an author's own needs a library that provides it, and the one that the artifact names
  // where it names one.
  void check_author_op(const InstructionSpec& ins) const {
    const Json& metadata = doc_.at("metadata");
    const auto ops = metadata.find("author_ops");
    std::string hint;
    if (ops != metadata.end() && ops->is_object() && ops->contains(ins.op)) {
      const Json& facts = ops->at(ins.op);
      if (facts.is_object() && facts.contains("library") && facts.at("library").is_string())
        hint = ", such as " + facts.at("library").get<std::string>().substr(0, 200);
    }
    const bool known = compiled_kernels_ || (program_.plugins && program_.plugins->find(ins.op));
    AD_CHECK(known, ErrorKind::kUnsupported, "[program.json: ", ins.where,
             "] expected a plug-in that provides ", show(Json(ins.op)),
             ", an operator of the model's author, found ",
             program_.plugins ? program_.plugins->names() : "none",
             ": give its library by --plugin, LLM(plugins=...) or AUTODEPLOY_PLUGINS", hint);
  }

  std::string value_text(int32_t v) const {
    return detail::concat("value ", v, " (", program_.values[static_cast<size_t>(v)].name.substr(0, 60), ")");
  }

  void read_alias(Fields& f, InstructionSpec* ins) {
    for (const Json& pair : f.array("alias", kMaxOperands)) {
      if (!pair.is_array() || pair.size() != 2)
        fail(ins->where + " .alias", "pairs [out position, in position]", show(pair));
      const auto at = [&](size_t i, size_t count) {
        return static_cast<int32_t>(
            to_integer(pair[i], ins->where + " .alias", 0, static_cast<int64_t>(count) - 1));
      };
      const std::pair<int32_t, int32_t> alias{at(0, ins->out.size()), at(1, ins->in.size())};
      if (ins->in[static_cast<size_t>(alias.second)].kind != OperandRef::Kind::kValue) {
        fail(ins->where + " .alias", "an operand that is a value", "a param or nothing");
      }
      ins->alias.push_back(alias);
    }
  }

  // The parts write the composite's results; what else they write is not seen outside, nor written by anybody
  // else.
  void read_parts(Fields& f, InstructionSpec* ins, int depth) {
    if (depth >= kMaxPartsDepth)
      fail(ins->where, detail::concat("at most ", kMaxPartsDepth, " levels of parts"), "more");
    const size_t mark = write_log_.size();
    for (const Json& part : f.array("parts", 4096)) {
      ins->parts.push_back(
          read_instruction(part, detail::concat(ins->where, " part ", ins->parts.size()), depth + 1));
    }
    if (ins->parts.empty()) {
      if (!find_op_schema(ins->op)) fail(ins->where, "parts", "an empty list");
      return;
    }
    for (size_t i = mark; i < write_log_.size(); ++i) written(write_log_[i]) = Written::kInParts;
    for (int32_t v : ins->out) {
      const auto wrote = std::find(write_log_.begin() + static_cast<ptrdiff_t>(mark), write_log_.end(), v);
      if (wrote == write_log_.end())
        fail(ins->where, "parts that write its results", detail::concat("none for ", value_text(v)));
      written(v) = Written::kNo;  // the composite itself counts as the writer
    }
    write_log_.resize(mark);
    for (const InstructionSpec& part : ins->parts) {
      for (int32_t s : part.states) {
        if (std::find(ins->states.begin(), ins->states.end(), s) == ins->states.end()) {
          fail(ins->where, "parts that use its own states", program_.states[static_cast<size_t>(s)].name);
        }
      }
    }
  }

  void check_schema(InstructionSpec* ins, bool has_parts) {
    const OpSchema* schema = find_op_schema(ins->op);
    if (scope_.in_body) bind_body_operands(ins);
    for (size_t i = 0; i < ins->in.size(); ++i) {
      OperandRef& o = ins->in[i];
      // An op without a schema that carries parts: the parts say how its params are read.
      if (o.kind != OperandRef::Kind::kParam || (!schema && has_parts) || ins->op == "over_keys") continue;
      const bool weight = schema && !schema->variadic && i < schema->in.size() && schema->in[i].weight;
      ParamSpec& p = program_.params[static_cast<size_t>(o.index)];
      o.weight = weight && o.whole;
      (o.weight ? p.used_as_weight : p.used_as_plain) = true;
    }
    for (size_t i = 0; i < ins->out.size(); ++i) {
      if (std::count(ins->out.begin(), ins->out.end(), ins->out[i]) > 1)
        fail(ins->where, "different results", value_text(ins->out[i]));
    }
    if (is_author_op(ins->op)) {
      if (!ins->states.empty() || !ins->alias.empty() || has_parts)
        fail(ins->where, "an operator of an author's own without states, aliases and parts", "some");
      if (ins->out.empty()) fail(ins->where, "at least one result", "none");
    }
    if (!schema) return;
    if (schema->variadic) {
      if (schema->num_out >= 0 && ins->in.empty()) fail(ins->where, "at least one operand", "none");
    } else if (!add_absent_operands(*schema, ins)) {
      fail(ins->where, detail::concat(schema->in.size(), " operands (null where absent)"),
           detail::concat(ins->in.size()));
    }
    for (size_t i = 0; i < ins->in.size(); ++i) {
      const bool optional = !schema->variadic && schema->in[i].optional;
      if (ins->in[i].kind == OperandRef::Kind::kAbsent && !optional)
        fail(ins->where, detail::concat("operand ", i), "null");
    }
    if (schema->num_out >= 0 && static_cast<int>(ins->out.size()) != schema->num_out) {
      fail(ins->where, detail::concat(schema->num_out, " results"), detail::concat(ins->out.size()));
    }
    check_attrs(*schema, *ins);
    if (ins->states.size() != schema->states.size() && !(schema->may_lack_state && ins->states.empty())) {
      fail(ins->where, detail::concat(schema->states.size(), " states"), detail::concat(ins->states.size()));
    }
    for (size_t i = 0; i < ins->states.size(); ++i) {
      const StateSpec& s = program_.states[static_cast<size_t>(ins->states[i])];
      if (s.kind != schema->states[i]) fail(ins->where, "a state of the op's kind", s.name);
    }
    if (ins->op == "region") check_region(program_, regions_, scope_, ins);
    if (ins->op == "over_keys") check_over_keys(program_, scope_, ins);
  }

  // A body is read like a program; its inputs stand in the first values.
  BodySpec read_body(const Json& j, const std::string& where) {
    Fields f(j, where, lenient_);
    BodySpec body;
    body.block = f.integer("block", 1, kMaxProgramTokens);
    body.min_keys = f.integer("min_keys", 0, kMaxProgramTokens);
    scope_ = {true, body.min_blocks()};
    body_ = &body;
    read_values(f, where + " ");
    for (const Json& input : f.array("inputs", kMaxOperands)) {
      body.inputs.push_back(read_body_input(input, detail::concat(where, " input ", body.inputs.size()),
                                            body.inputs.size(), body.block));
    }
    for (const Json& instruction : f.array("instructions", kMaxInstructions)) {
      program_.instructions.push_back(read_instruction(
          instruction, detail::concat(where, " instruction ", program_.instructions.size()), 0));
    }
    const int64_t last_value = static_cast<int64_t>(program_.values.size()) - 1;
    for (int64_t v : f.integers("outputs", 0, last_value, kMaxOperands)) {
      const int32_t value = static_cast<int32_t>(v);
      const std::string here = detail::concat(where, " output ", body.outputs.size());
      if (written(value) != Written::kYes)
        fail(here, "a value that an instruction writes", value_text(value));
      const std::vector<Dim>& shape = program_.values[static_cast<size_t>(v)].shape;
      if (!is_token_rows(shape)) fail(here, "the shape [N, ...]", shape_text(shape, scope_));
      program_.outputs.push_back({std::to_string(body.outputs.size()), value});
      body.outputs.push_back(value);
    }
    if (body.outputs.empty()) fail(where, "at least one output", "none");
    f.finish();
    body.program = std::move(program_);
    return body;
  }

  // [c*N, ...] with the other dims fixed.
  static bool is_token_rows(const std::vector<Dim>& shape) {
    return !shape.empty() && shape[0] == Dim{0, shape[0].t, 0} && shape[0].t > 0 &&
           std::all_of(shape.begin() + 1, shape.end(), [](const Dim& d) { return d.is_static(); });
  }

  BodyInputSpec read_body_input(const Json& j, const std::string& where, size_t index, int64_t block) {
    Fields f(j, where, lenient_);
    BodyInputSpec input;
    const std::string role = f.text("role");
    input.dtype = to_dtype(f.get("dtype"), where, act_);
    input.outer = f.dims("shape", true);
    if (index >= program_.values.size()) fail(where, "a value for each input", "none");
    expect_value(program_, scope_, where, static_cast<int32_t>(index), input.dtype, input.outer);
    std::vector<Dim>& shape = input.outer;
    const bool fixed_rest = std::all_of(shape.begin() + (shape.empty() ? 0 : 1), shape.end(),
                                        [](const Dim& d) { return d.is_static() && d.constant > 0; });
    if (role == "query" && is_token_rows(shape) && fixed_rest) {
      input.role = BodyInputSpec::Role::kQuery;
    } else if (role == "key" && fixed_rest && !shape.empty() && shape[0] == Dim{0, 0, block}) {
      input.role = BodyInputSpec::Role::kKey;
      shape[0] = Dim{0, 1, 0};
    } else if (role != "fixed" || !fixed_rest || (!shape.empty() && !shape[0].is_static())) {
      fail(where, "query [N, ...], key [block*S, ...] or fixed [...] of positive dims",
           show(Json(role)) + " " + shape_text(shape, scope_));
    }
    input.token_numel = 1;
    for (const Dim& d : shape) input.token_numel *= d.constant + d.t;
    program_.inputs.push_back({std::to_string(index), static_cast<int32_t>(index)});
    written(static_cast<int32_t>(index)) = Written::kYes;
    f.finish();
    return input;
  }

  // A weight operand of a body's instruction is a fixed input, whole: it becomes a param.
  void bind_body_operands(InstructionSpec* ins) {
    const OpSchema* schema = find_op_schema(ins->op);
    for (size_t i = 0; i < ins->in.size(); ++i) {
      OperandRef& o = ins->in[i];
      if (o.kind == OperandRef::Kind::kAbsent) continue;
      const bool weight = schema && !schema->variadic && i < schema->in.size() && schema->in[i].weight;
      const bool is_input = static_cast<size_t>(o.index) < body_->inputs.size();
      BodyInputSpec* input = is_input ? &body_->inputs[static_cast<size_t>(o.index)] : nullptr;
      if (!weight) {
        if (input) input->read_as_value = true;
        continue;
      }
      if (!input || input->role != BodyInputSpec::Role::kFixed || !o.whole)
        fail(ins->where, "a whole fixed input for a weight", "another operand");
      if (input->param < 0) {
        input->param = static_cast<int32_t>(program_.params.size());
        ParamSpec p;
        p.name = program_.values[static_cast<size_t>(o.index)].name;
        p.dtype = input->dtype;
        for (const Dim& d : input->outer) p.shape.push_back(d.constant);
        program_.params.push_back(std::move(p));
      }
      o.kind = OperandRef::Kind::kParam;
      o.index = input->param;
    }
  }

  // Who writes a value: nobody yet, the caller or an instruction, or an instruction inside a composite that
  // is closed.
  enum class Written : uint8_t { kNo, kYes, kInParts };
  Written& written(int32_t v) { return written_[static_cast<size_t>(v)]; }

  const Json& doc_;
  const DType act_;
  const bool compiled_kernels_ = false;  // may serve operators of an author's own
  ProgramSpec program_;
  const std::vector<RegionProgram>& regions_;  // of the program, for its bodies too
  bool lenient_ = false;
  DimScope scope_;
  BodySpec* body_ = nullptr;  // the one that is being read
  std::vector<Dim> param_numel_;
  std::vector<std::vector<Dim>> param_shape_;
  std::vector<Written> written_;
  std::vector<int32_t> write_log_;  // of instructions, in order; that of closed parts is taken back
};

}  // namespace

ProgramSpec read_program(std::string_view json, DType act, std::shared_ptr<const PluginSet> plugins,
                         bool compiled_kernels) {
  const Json doc = parse_document(json);
  return Reader(doc, act, std::move(plugins), compiled_kernels).read();
}

ProgramSpec load_program(const std::string& artifact_dir, DType act, std::shared_ptr<const PluginSet> plugins,
                         bool compiled_kernels) {
  const std::string path = artifact_dir + "/program.json";
  std::ifstream in(path, std::ios::binary);
  AD_CHECK(in.good(), ErrorKind::kIo, "[program.json] expected a readable file, found none at ", path,
           ": is this the folder of an artifact?");
  std::ostringstream text;
  text << in.rdbuf();
  AD_CHECK(!in.bad() && !text.fail(), ErrorKind::kIo, "[program.json] expected to read ", path,
           ", found an input error");
  return read_program(text.str(), act, std::move(plugins), compiled_kernels);
}

}  // namespace autodeploy
