// The reader takes the golden Program as it is, and refuses every damaged one with a message that says where
// and why.
#include "runtime/program_reader.h"

#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "runtime/program_schema.h"

namespace autodeploy {
namespace {

using Json = nlohmann::json;

Json golden() {
  std::ifstream in(std::string(AUTODEPLOY_TEST_DATA) + "/golden/tiny/program.json");
  return Json::parse(in);
}

std::string message_of(const std::string& text, ErrorKind kind = ErrorKind::kInvalidArtifact) {
  try {
    read_program(text);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  return "accepted";
}

TEST(ProgramReader, ReadsTheGoldenProgram) {
  const ProgramSpec p = read_program(golden().dump());
  EXPECT_EQ(p.vocab_size, 40);
  EXPECT_EQ(p.max_positions, 64);
  EXPECT_EQ(p.values.size(), 21u);
  EXPECT_EQ(p.instructions.size(), 16u);
  EXPECT_EQ(p.input("positions"), 1);
  EXPECT_EQ(p.output("logits"), 20);
  EXPECT_EQ(p.output("nothing"), -1);

  EXPECT_EQ(p.values[16].numel, (Dim{0, 64, 0}));
  EXPECT_EQ(p.values[20].numel, (Dim{0, 0, 40}));
  EXPECT_EQ(p.values[2].dtype, DType::kF32);

  const InstructionSpec& rope = p.instructions[5];
  EXPECT_EQ(rope.where, "instruction 5 (rope)");
  EXPECT_FALSE(rope.in[0].whole);
  EXPECT_EQ(rope.in[0].offset, (Dim{32, 0, 0}));
  EXPECT_EQ(rope.in[0].stride[0], (Dim{64, 0, 0}));
  EXPECT_TRUE(rope.in[1].whole);
  EXPECT_EQ(rope.in[1].stride[0], (Dim{8, 0, 0}));
  EXPECT_FALSE(rope.attrs.boolean("interleaved"));

  EXPECT_EQ(p.instructions[8].parts.size(), 2u);
  EXPECT_EQ(p.instructions[8].alias.at(0), (std::pair<int32_t, int32_t>{1, 1}));
  EXPECT_EQ(p.instructions[3].in[2].kind, OperandRef::Kind::kAbsent);
  EXPECT_FALSE(p.instructions[12].in[1].whole);

  EXPECT_TRUE(p.params[0].used_as_weight) << "embedding and head";
  EXPECT_FALSE(p.params[0].used_as_plain);
  EXPECT_TRUE(p.params[3].used_as_plain) << "norm weight";
  EXPECT_TRUE(p.params[4].used_as_plain);

  EXPECT_EQ(p.states[0].kind, StateSpec::Kind::kPaged);
  EXPECT_EQ(p.states[0].components[1].shape, (std::vector<int64_t>{1, 16}));
  EXPECT_EQ(p.regions[3].nodes[1].value, -INFINITY);
  EXPECT_EQ(p.regions[3].nodes[3].args[1], 4);
}

TEST(ProgramReader, BindsTheActivationType) {
  const ProgramSpec p = read_program(golden().dump(), DType::kBF16);
  EXPECT_EQ(p.values[2].dtype, DType::kBF16);
  EXPECT_EQ(p.values[3].dtype, DType::kF32);
}

struct Damage {
  const char* title;
  std::function<void(Json&)> apply;
  const char* expected;  // part of the message
  ErrorKind kind = ErrorKind::kInvalidArtifact;
};

TEST(ProgramReader, RefusesDamage) {
  const std::vector<Damage> cases = {
      {"wrong format", [](Json& j) { j["format"] = "autodeploy.weights"; },
       "expected format \"autodeploy.program\""},
      {"another major", [](Json& j) { j["version"]["major"] = 2; }, "expected 1.x, found 2.0",
       ErrorKind::kUnsupported},
      {"missing field", [](Json& j) { j.erase("values"); }, "expected the field 'values', found none"},
      {"unknown field", [](Json& j) { j["extra"] = 1; }, "found the unknown field \"extra\""},
      {"top level array", [](Json& j) { j = Json::array({1, 2}); }, "expected an object, found [1, 2]"},
      {"twice the same param", [](Json& j) { j["params"][1]["name"] = "embed"; },
       "param 1] expected a name of its own"},
      {"param with T", [](Json& j) { j["params"][1]["shape"][0] = "T"; },
       "param 1 .shape] expected an integer"},
      {"negative dim", [](Json& j) { j["values"][2]["shape"][1] = -1; }, "value 2 .shape]"},
      {"bad dim", [](Json& j) { j["values"][2]["shape"][0] = "T*8"; }, "\"n*T\" or \"n*R\", found \"T*8\""},
      {"leading zero", [](Json& j) { j["values"][2]["shape"][0] = "08*T"; }, "found \"08*T\""},
      {"huge factor", [](Json& j) { j["values"][2]["shape"][0] = "999999999999*T"; }, "a factor of at most"},
      {"two symbols", [](Json& j) { j["values"][2]["shape"] = {"T", "R"}; }, "at most one dim that depends"},
      {"too many elements", [](Json& j) { j["values"][2]["shape"] = {9007199254740992, 4, 0}; },
       "at most 2^53 elements"},
      {"too many dims", [](Json& j) { j["values"][2]["shape"] = Json::array({1, 1, 1, 1, 1, 1, 1, 1, 1}); },
       "at most 8 elements"},
      {"fraction", [](Json& j) { j["values"][2]["shape"][1] = 3.5; }, "found 3.5"},
      {"beyond 64 bits", [](Json& j) { j["instructions"][0]["out"][0] = 18446744073709551615u; },
       "found 18446744073709551615"},
      {"bad dtype", [](Json& j) { j["values"][2]["dtype"] = "f16"; },
       "value 2] expected one of act f32 i64 bool, found \"f16\""},
      {"input out of range", [](Json& j) { j["inputs"]["token_ids"] = 21; },
       "input token_ids] expected an integer from 0 to 20"},
      {"two inputs, one value", [](Json& j) { j["inputs"]["x"] = 0; }, "a value of its own"},
      {"token_ids of another shape", [](Json& j) { j["values"][0]["shape"] = {4}; },
       "input token_ids] expected i64 [T], found i64 [4]"},
      {"output never written",
       [](Json& j) {
         j["values"].push_back(j["values"][20]);
         j["outputs"]["logits"] = 21;
       },
       "output logits] expected a value that an instruction writes"},
      {"logits of another shape", [](Json& j) { j["outputs"]["logits"] = 18; },
       "output logits] expected act or f32 [R, vocab]"},
      {"unknown op", [](Json& j) { j["instructions"][3]["op"] = "linearer"; },
       "instruction 3 (linearer)] expected an op of this version, found \"linearer\": compile"},
      {"op of forced routing", [](Json& j) { j["instructions"][3]["op"] = "topk.uniform"; },
       "expected an op of this version, found \"topk.uniform\": compile"},
      {"unknown attribute", [](Json& j) { j["instructions"][3]["attrs"]["groups"] = 2; },
       "the unknown attribute \"groups\""},
      {"missing attribute", [](Json& j) { j["instructions"][6]["attrs"].erase("scale"); },
       "instruction 6 (attention)] expected the attribute scale"},
      {"attribute of another type", [](Json& j) { j["instructions"][6]["attrs"]["causal"] = 1; },
       "expected a boolean for attribute causal"},
      {"attribute object", [](Json& j) { j["instructions"][6]["attrs"]["scale"] = {{"number", "infinite"}}; },
       "expected a number or {\"number\""},
      {"too few operands",
       [](Json& j) { j["instructions"][3]["in"].erase(2), j["instructions"][3]["in"].erase(1); },
       "expected 3 operands (null where absent), found 1"},
      {"required operand", [](Json& j) { j["instructions"][3]["in"][0] = nullptr; },
       "expected operand 0, found null"},
      {"operand of both kinds", [](Json& j) { j["instructions"][3]["in"][0]["p"] = 0; },
       "expected one of the fields v and p, found both"},
      {"read before written", [](Json& j) { j["instructions"][0]["in"][0]["v"] = 7; },
       "instruction 0 (embedding) operand 0] expected a value that is written before, found value 7 (q)"},
      {"written twice", [](Json& j) { j["instructions"][4]["out"][0] = 6; },
       "expected results that nothing else writes, found value 6 (qkv)"},
      {"one result twice", [](Json& j) { j["instructions"][2]["out"] = {4, 4}; },
       "expected different results"},
      {"writes an input", [](Json& j) { j["instructions"][0]["out"][0] = 0; }, "found value 0 (token_ids)"},
      {"result count", [](Json& j) { j["instructions"][10]["out"] = {14}; }, "expected 2 results, found 1"},
      {"strides missing", [](Json& j) { j["instructions"][4]["in"][0].erase("strides"); },
       "expected the field 'strides'"},
      {"stride count", [](Json& j) { j["instructions"][4]["in"][0]["strides"] = {64, 16}; },
       "expected 3 strides, found 2"},
      {"view past the end", [](Json& j) { j["instructions"][4]["in"][0]["offset"] = 33; },
       "expected a view within its storage"},
      {"view past the end for large T", [](Json& j) { j["instructions"][4]["in"][0]["strides"][0] = 65; },
       "T = 16777216"},
      {"view past the end without rows",
       [](Json& j) {
         j["instructions"][15]["in"][0] = {{"v", 19}, {"shape", {32}}, {"strides", {1}}, {"offset", 0}};
       },
       "R = 0"},
      {"symbolic stride of a symbolic dim",
       [](Json& j) { j["instructions"][4]["in"][0]["strides"][0] = "T"; },
       "a static stride for a dim that depends"},
      {"overflowing view",
       [](Json& j) { j["instructions"][4]["in"][0]["shape"] = {9007199254740992, 9007199254740992, 1}; },
       "at most 2^53 elements"},
      {"state index", [](Json& j) { j["instructions"][6]["states"] = {1}; },
       "expected an integer from 0 to 0"},
      {"no state", [](Json& j) { j["instructions"][6]["states"] = Json::array(); },
       "expected 1 states, found 0"},
      {"state of another kind",
       [](Json& j) {
         j["states"][0]["kind"] = "slot";
         j["states"][0].erase("window");
         j["states"][0].erase("chunk");
       },
       "expected a state of the op's kind"},
      {"state kind", [](Json& j) { j["states"][0]["kind"] = "heap"; },
       "expected the kind paged, slot or conv, found \"heap\""},
      {"empty state", [](Json& j) { j["states"][0]["components"] = Json::array(); },
       "at least one component"},
      {"state of size 0", [](Json& j) { j["states"][0]["components"][0]["shape"] = {0, 4}; },
       "component 0 .shape] expected an integer from 1"},
      {"alias out of range", [](Json& j) { j["instructions"][8]["alias"] = {{2, 0}}; },
       "expected an integer from 0 to 1, found 2"},
      {"alias of a param", [](Json& j) { j["instructions"][8]["alias"] = {{0, 2}}; },
       "expected an operand that is a value"},
      {"parts that miss a result", [](Json& j) { j["instructions"][8]["parts"].erase(1); },
       "expected parts that write its results, found none for value 11 (normed)"},
      {"parts that write elsewhere", [](Json& j) { j["instructions"][8]["parts"][0]["out"] = {2}; },
       "part 0 (region)] expected results that nothing else writes"},
      {"region index", [](Json& j) { j["instructions"][2]["attrs"]["region"] = 4; },
       "instruction 2 (region)] expected a region below 4, found 4"},
      {"region operands", [](Json& j) { j["instructions"][2]["attrs"]["region"] = 2; },
       "expected 2 operands and 1 results, found 1 and 2"},
      {"region shape",
       [](Json& j) {
         j["instructions"][1]["in"][1]["shape"] = {8, 8};
         j["instructions"][1]["in"][1]["strides"] = {0, 1};
       },
       "expected the iteration shape [T, 8], found [8, 8] of operand 1"},
      {"region dtype", [](Json& j) { j["regions"][0]["inputs"][0] = "f32"; },
       "expected f32, found i64 of operand 0"},
      {"region node", [](Json& j) { j["regions"][1]["nodes"][0]["op"] = "cosine"; },
       "region 1 node 0] expected a pointwise op"},
      {"region register", [](Json& j) { j["regions"][1]["nodes"][0]["args"][0] = 1; },
       "region 1 node 0 .args] expected an integer from 0 to 0"},
      {"region arity", [](Json& j) { j["regions"][2]["nodes"][0]["args"] = {0}; },
       "expected 2 arguments of add, found 1"},
      {"region comparison", [](Json& j) { j["regions"][2]["nodes"][0]["op"] = "lt"; },
       "expected the dtype bool, found f32"},
      {"region constant",
       [](Json& j) { j["regions"][3]["nodes"][1] = {{"op", "const"}, {"dtype", "i64"}, {"value", 1.5}}; },
       "an integer within 2^53 for an i64, found 1.5"},
      {"region output", [](Json& j) { j["regions"][2]["outputs"] = {3}; }, "region 2 .outputs]"},
      {"region without outputs", [](Json& j) { j["regions"][2]["outputs"] = Json::array(); },
       "region 2] expected at least one output"},
  };
  for (const Damage& d : cases) {
    Json j = golden();
    d.apply(j);
    const std::string found = message_of(j.dump(), d.kind);
    EXPECT_NE(found.find(d.expected), std::string::npos)
        << d.title << ": expected \"" << d.expected << "\" in \"" << found << "\"";
    EXPECT_EQ(found.rfind("[program.json: ", 0), 0u) << d.title << ": " << found;
  }
}

TEST(ProgramReader, RefusesWhatIsNoJson) {
  const std::string text = golden().dump();
  EXPECT_NE(message_of("").find("valid JSON"), std::string::npos);
  EXPECT_NE(message_of(text.substr(0, text.size() / 2)).find("valid JSON"), std::string::npos);
  EXPECT_NE(message_of(std::string(100000, '[')).find("nested"), std::string::npos);
  EXPECT_NE(message_of("{\"format\": \"\xff\xfe\"}").find("[program.json"), std::string::npos);
}

TEST(ProgramReader, NewerMinorVersions) {
  Json j = golden();
  j["version"]["minor"] = 7;
  j["hints"] = Json::object();
  j["instructions"][3]["priority"] = 3;
  EXPECT_EQ(message_of(j.dump()), "accepted") << "optional fields of a later version are passed over";
  j["instructions"][3]["attrs"]["groups"] = 2;
  EXPECT_NE(message_of(j.dump()).find("the unknown attribute \"groups\""), std::string::npos);
}

TEST(ProgramReader, UnknownCompositesLiveByTheirParts) {
  Json j = golden();
  j["instructions"][8]["op"] = "add_rms_norm_of_the_future";
  EXPECT_EQ(message_of(j.dump()), "accepted");
  j["instructions"][8]["parts"] = Json::array();
  EXPECT_NE(message_of(j.dump()).find("expected parts, found an empty list"), std::string::npos);
}

TEST(ProgramReader, ValuesOfPartsStayInside) {
  // A part's inner value is not visible behind its composite, and no other composite may write it.
  Json j = golden();
  j["values"].push_back(j["values"][12]);
  Json& composite = j["instructions"][8];
  composite["parts"].push_back(
      {{"op", "copy"}, {"in", {{{"v", 12}}}}, {"out", {21}}, {"attrs", Json::object()}});
  EXPECT_EQ(message_of(j.dump()), "accepted");
  j["instructions"][9]["in"][0]["v"] = 21;
  EXPECT_NE(message_of(j.dump()).find(
                "instruction 9 (linear) operand 0] expected a value that is written before, found value 21"),
            std::string::npos);
  j["instructions"][9]["in"][0]["v"] = 11;
  j["instructions"].push_back(
      {{"op", "copy"}, {"in", {{{"v", 12}}}}, {"out", {21}}, {"attrs", Json::object()}});
  EXPECT_NE(message_of(j.dump()).find("instruction 16 (copy)] expected results that nothing else writes"),
            std::string::npos);
}

Json with_body() {
  std::ifstream in(std::string(AUTODEPLOY_TEST_DATA) + "/fuzz/program_body_attention.json");
  return Json::parse(in);
}

TEST(ProgramReader, ReadsBodies) {
  const ProgramSpec p = read_program(with_body().dump());
  ASSERT_EQ(p.bodies.size(), 1u);
  EXPECT_EQ(p.instructions[0].body, 0);
  const BodySpec& body = p.bodies[0];
  using Role = BodyInputSpec::Role;
  EXPECT_EQ(body.inputs[1].role, Role::kQuery);
  EXPECT_EQ(body.inputs[2].role, Role::kKey);
  EXPECT_EQ(body.inputs[2].outer, (std::vector<Dim>{Dim{0, 1}, Dim{2}, Dim{4}}));
  EXPECT_EQ(body.inputs[2].token_numel, 8);
  // The norm's weight is an input like others, the matrix a param that comes packed.
  EXPECT_LT(body.inputs[4].param, 0);
  EXPECT_TRUE(body.inputs[4].read_as_value);
  EXPECT_EQ(body.inputs[5].param, 0);
  EXPECT_FALSE(body.inputs[5].read_as_value);
  EXPECT_TRUE(p.params[0].used_as_plain && !p.params[0].used_as_weight);
  EXPECT_TRUE(p.params[1].used_as_weight && !p.params[1].used_as_plain);
  EXPECT_TRUE(p.instructions[0].in[5].weight);
  // [heads, N, S], row-major.
  const ValueSpec& scores = body.program.values[7];
  EXPECT_EQ(scores.numel, (Dim{0, 0, 0, 2}));
  EXPECT_EQ(contiguous_strides(scores.shape), (std::vector<Dim>{Dim{0, 0, 0, 1}, Dim{0, 0, 1}, Dim{1}}));
  EXPECT_EQ(body.num_blocks(7), 7);
}

TEST(ProgramReader, RefusesDamagedBodies) {
  const auto body = [](Json& j) -> Json& { return j["bodies"][0]; };
  const std::vector<Damage> cases = {
      {"no list", [&](Json& j) { j["bodies"] = 1; }, ".bodies] expected an array"},
      {"block of 0", [&](Json& j) { body(j)["block"] = 0; }, "body 0 .block] expected an integer from 1"},
      {"huge block", [&](Json& j) { body(j)["block"] = 1 << 30; }, "body 0 .block] expected an integer"},
      {"huge min_keys", [&](Json& j) { body(j)["min_keys"] = int64_t{1} << 53; }, "body 0 .min_keys]"},
      {"another block", [&](Json& j) { body(j)["block"] = 2; }, "body 0 input 2] expected query [N, ...]"},
      {"unknown role", [&](Json& j) { body(j)["inputs"][0]["role"] = "value"; }, "found \"value\" [N, 2, 4]"},
      {"role and shape", [&](Json& j) { body(j)["inputs"][0]["role"] = "fixed"; }, "body 0 input 0]"},
      {"input unlike its value", [&](Json& j) { body(j)["inputs"][4]["dtype"] = "i64"; },
       "body 0 input 4] expected i64 [4], found f32 [4]"},
      {"inputs without values", [&](Json& j) { body(j)["values"] = Json::array(); },
       "body 0 input 0] expected a value for each input"},
      {"program's symbol", [&](Json& j) { body(j)["values"][6]["shape"][0] = "T"; },
       "body 0 value 6 .shape] expected an integer >= 0, \"N\""},
      {"body's symbol", [&](Json& j) { j["values"][2]["shape"][0] = "N"; }, "value 2 .shape]"},
      {"N twice", [&](Json& j) { body(j)["values"][7]["shape"] = {"N", "N*S"}; },
       "body 0 value 7] expected at most one dim that depends on N"},
      {"huge product", [&](Json& j) { body(j)["values"][7]["shape"] = {"536870912*N*S"}; },
       "body 0 value 7] expected at most 2^53 elements"},
      {"factor", [&](Json& j) { body(j)["values"][7]["shape"][0] = "99999999999*N*S"; },
       "a factor of at most"},
      {"view out of bounds", [&](Json& j) { body(j)["instructions"][1]["in"][0]["offset"] = 1; },
       "body 0 instruction 1 (matmul) operand 0] expected a view within its storage"},
      {"stride of its own symbol", [&](Json& j) { body(j)["instructions"][1]["in"][0]["strides"][1] = "N"; },
       "expected a static stride for a dim that depends on the step, found N with stride N"},
      {"params of the program", [&](Json& j) { body(j)["instructions"][0]["in"][1] = {{"p", 0}}; },
       "body 0 instruction 0 (rms_norm) operand 1 .p]"},
      {"a mixer", [&](Json& j) { body(j)["instructions"][0]["op"] = "attention"; },
       "expected an op that a body may hold"},
      {"nested", [&](Json& j) { body(j)["instructions"][0]["op"] = "over_keys"; },
       "expected an op that a body may hold"},
      {"parts", [&](Json& j) { body(j)["instructions"][0]["parts"] = Json::array(); }, "without parts"},
      {"states", [&](Json& j) { body(j)["instructions"][0]["states"] = {0}; }, "body 0 instruction 0"},
      {"region", [&](Json& j) { body(j)["instructions"][3]["attrs"]["region"] = 2; }, "a region below 2"},
      {"weight that is computed", [&](Json& j) { body(j)["instructions"][8]["in"][1] = {{"v", 13}}; },
       "(linear)] expected a whole fixed input for a weight"},
      {"weight in part",
       [&](Json& j) {
         body(j)["instructions"][8]["in"][1] = {
             {"v", 5}, {"shape", {2, 8}}, {"strides", {8, 1}}, {"offset", 0}};
       },
       "(linear)] expected a whole fixed input for a weight"},
      {"no outputs", [&](Json& j) { body(j)["outputs"] = Json::array(); },
       "body 0] expected at least one output"},
      {"output of keys", [&](Json& j) { body(j)["outputs"][0] = 6; },
       "body 0 output 0] expected the shape [N"},
      {"output out of range", [&](Json& j) { body(j)["outputs"][0] = 99; }, "body 0 .outputs]"},
      {"unknown field", [&](Json& j) { body(j)["tile"] = 4; }, "the unknown field \"tile\""},
      {"body out of range", [&](Json& j) { j["instructions"][0]["attrs"]["body"] = 1; }, "a body below 1"},
      {"too few operands", [&](Json& j) { j["instructions"][0]["in"].erase(5); }, "expected 6 operands"},
      {"operand of another shape", [&](Json& j) { j["instructions"][0]["in"][0] = {{"v", 0}}; },
       "operand 0] expected f32 [T, 2, 4], found i64 [T]"},
      {"absent operand", [&](Json& j) { j["instructions"][0]["in"][0] = nullptr; }, "operand 0, found null"},
      {"weight from a view",
       [&](Json& j) {
         j["instructions"][0]["in"][5] = {{"p", 1}, {"shape", {3, 8}}, {"strides", {1, 3}}, {"offset", 0}};
       },
       "operand 5] expected a whole param for a weight"},
      {"result of another shape",
       [&](Json& j) { j["values"][j["instructions"][0]["out"][0].get<size_t>()]["shape"] = {"T", 4}; },
       "result 0] expected f32 [T, 3], found f32 [T, 4]"},
      {"no state", [&](Json& j) { j["instructions"][0]["states"] = Json::array(); },
       "a state with one component per key input"},
      {"state of another shape", [&](Json& j) { j["states"][0]["components"][0]["shape"] = {8}; },
       "a state with one component per key input"},
      {"window", [&](Json& j) { j["states"][0]["window"] = 4; }, "a state without window"},
  };
  for (const Damage& c : cases) {
    Json j = with_body();
    ASSERT_EQ(message_of(j.dump()), "accepted");
    c.apply(j);
    const std::string message = message_of(j.dump(), c.kind);
    EXPECT_NE(message.find(c.expected), std::string::npos) << c.title << ": " << message;
  }
}

TEST(ProgramReader, NamesAMissingFile) {
  try {
    load_program("/nonexistent");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kIo);
    EXPECT_NE(std::string(e.what()).find("/nonexistent/program.json"), std::string::npos);
  }
}

TEST(ProgramSchema, EveryKernelServesAKnownOp) {
  for (const KernelEntry& e : kernel_table()) {
    // Routing that is forced has ops of its own, which no program names (runtime/uniform_routing.h).
    const std::string op = e.op, drawn = ".uniform";
    EXPECT_NE(find_op_schema(op.ends_with(drawn) ? op.substr(0, op.size() - drawn.size()) : op), nullptr)
        << e.name;
  }
  for (const OpSchema& s : op_schemas()) {
    bool served = std::string(s.name) == "over_keys";  // by the runtime itself, whatever the kernels

    for (const KernelEntry& e : kernel_table()) served = served || std::string(e.op) == s.name;
    EXPECT_TRUE(served) << s.name << " has no kernel";
  }
}

}  // namespace
}  // namespace autodeploy
