// weights.json: the golden file is read, and everything malformed is refused with a message that says where.
#include "runtime/weight_program.h"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>
#include <random>

#include "core/error.h"
#include "weight_files.h"

namespace autodeploy {
namespace {

using testing::golden_dir;
using testing::golden_weights;
using Json = nlohmann::json;

const WeightParam& param(const WeightProgram& w, const std::string& name) {
  return w.params[static_cast<size_t>(w.by_name.at(name))];
}

TEST(WeightProgram, ReadsTheGoldenFile) {
  const WeightProgram w = load_weight_program(golden_dir());
  EXPECT_EQ(w.sources.size(), 2u);
  EXPECT_EQ(w.sources[0].path, "weights.bin");
  EXPECT_EQ(w.params.size(), 12u);
  EXPECT_EQ(w.unused, (std::vector<std::string>{"small", "wide", "short", "flag"}));
  EXPECT_EQ(w.notes, std::vector<std::string>{"a note"});

  const WeightParam& qkv = param(w, "qkv");
  EXPECT_EQ(qkv.shape, (std::vector<int64_t>{64, 32}));
  ASSERT_EQ(qkv.segments.size(), 3u);
  EXPECT_EQ(qkv.segments[0].format, Format::kQ4_1);
  EXPECT_EQ(qkv.segments[0].expr->op, WeightExpr::Op::kReshape);
  EXPECT_EQ(qkv.segments[1].expr->op, WeightExpr::Op::kTake);
  EXPECT_EQ(qkv.segments[1].expr->index.front(), 15);
  EXPECT_EQ(qkv.segments[2].rows, 16);

  const WeightExpr& norm = *param(w, "norm").segments[0].expr;
  EXPECT_EQ(norm.fn, WeightExpr::Fn::kAdd);
  EXPECT_EQ(norm.number, 1.0);
  EXPECT_EQ(norm.format, Format::kF32);
  EXPECT_TRUE(param(w, "scale").shape.empty());
  EXPECT_EQ(param(w, "up").segments[0].expr->op, WeightExpr::Op::kStack);
}

TEST(WeightProgram, AMissingFileIsNamed) {
  try {
    load_weight_program("/nowhere");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kIo);
    EXPECT_NE(std::string(e.what()).find("/nowhere/weights.json"), std::string::npos) << e.what();
  }
}

struct Broken {
  const char* title;
  std::function<void(Json&)> damage;
  const char* message;
};

Json leaf(const char* name) { return {{"op", "tensor"}, {"name", name}}; }

// Puts an expression where the param "moved" [3, 4, 5] has its own.
std::function<void(Json&)> expr(Json e) {
  return [e](Json& w) { w["params"][10]["segments"][0]["expr"] = e; };
}

Json deep_expression() {
  Json e = leaf("a");
  for (int i = 0; i < 70; ++i) e = {{"op", "unary"}, {"f", "neg"}, {"x", e}};
  return e;
}

const Broken kBroken[] = {
    {"format", [](Json& w) { w["format"] = "other"; }, "autodeploy.weights"},
    {"major", [](Json& w) { w["version"]["major"] = 2; }, "major 1"},
    {"no params", [](Json& w) { w.erase("params"); }, "params"},
    {"source path", [](Json& w) { w["sources"][0]["path"] = ""; }, "a path"},
    {"source size", [](Json& w) { w["sources"][0]["size"] = -1; }, "an integer"},
    {"header longer than file", [](Json& w) { w["sources"][0]["header_bytes"] = 1 << 30; },
     "an integer from 0 to"},
    {"fingerprint", [](Json& w) { w["sources"][0]["fingerprint"] = "abc"; }, "SHA-256"},
    {"unknown field", [](Json& w) { w["sources"][0]["extra"] = 1; }, "extra"},
    {"tensor source", [](Json& w) { w["tensors"]["a"]["source"] = 2; }, "an integer from 0 to 1"},
    {"tensor beyond its source", [](Json& w) { w["tensors"]["a"]["offset"] = 21600; }, "tensors.a"},
    {"tensor bytes", [](Json& w) { w["tensors"]["a"]["nbytes"] = 4; }, "48 bytes for f32"},
    {"tensor format", [](Json& w) { w["tensors"]["a"]["format"] = "q9"; }, "a format"},
    {"tensor of part blocks", [](Json& w) { w["tensors"]["q"]["shape"] = {64, 16}; }, "multiple of 32"},
    {"tensor of too many elements", [](Json& w) { w["tensors"]["a"]["shape"] = {1LL << 50, 1LL << 50}; },
     "fewer elements"},
    {"tensor of too many dims",
     [](Json& w) { w["tensors"]["a"]["shape"] = Json::array({1, 1, 1, 1, 1, 1, 1, 1, 12}); }, "tensors.a"},
    {"param twice", [](Json& w) { w["params"][1]["name"] = "embed"; }, "\"embed\" twice"},
    {"no segments", [](Json& w) { w["params"][0]["segments"] = Json::array(); }, "segments"},
    {"rows of a segment", [](Json& w) { w["params"][0]["segments"][0]["rows"] = 39; },
     "an expression of shape [39, 32]"},
    {"rows of all segments", [](Json& w) { w["params"][1]["segments"].erase(2); }, "48 rows"},
    {"format of a segment", [](Json& w) { w["params"][0]["segments"][0]["format"] = "f32"; }, "q8_0"},
    {"no expression", expr(3), "expr"},
    {"unknown op", expr({{"op", "sort"}, {"x", leaf("a")}}), "an operation"},
    {"unknown tensor", expr(leaf("nothing")), "a tensor of this file"},
    {"slice dim",
     expr({{"op", "slice"}, {"x", leaf("a")}, {"dim", 2}, {"start", 0}, {"stop", 1}, {"step", 1}}), ".dim"},
    {"slice stop",
     expr({{"op", "slice"}, {"x", leaf("a")}, {"dim", 0}, {"start", 0}, {"stop", 5}, {"step", 1}}), ".stop"},
    {"slice step",
     expr({{"op", "slice"}, {"x", leaf("a")}, {"dim", 0}, {"start", 0}, {"stop", 4}, {"step", 0}}), ".step"},
    {"slice of a scalar",
     expr({{"op", "slice"}, {"x", leaf("scale")}, {"dim", 0}, {"start", 0}, {"stop", 0}, {"step", 1}}),
     ".dim"},
    {"empty cat", expr({{"op", "cat"}, {"xs", Json::array()}, {"dim", 0}}), "at least one operand"},
    {"cat of formats", expr({{"op", "cat"}, {"xs", {leaf("b"), leaf("norm")}}, {"dim", 0}}),
     "operands like the first"},
    {"cat of shapes", expr({{"op", "cat"}, {"xs", {leaf("a"), leaf("b")}}, {"dim", 0}}),
     "operands like the first"},
    {"stack dim", expr({{"op", "stack"}, {"xs", {leaf("a")}}, {"dim", 3}}), ".dim"},
    {"permute dims", expr({{"op", "permute"}, {"x", leaf("a")}, {"dims", {0, 0}}}), "a permutation"},
    {"permute rank", expr({{"op", "permute"}, {"x", leaf("a")}, {"dims", {0}}}), "a permutation"},
    {"reshape elements", expr({{"op", "reshape"}, {"x", leaf("a")}, {"shape", {5}}}), "12 elements"},
    {"take base64", expr({{"op", "take"}, {"x", leaf("a")}, {"dim", 0}, {"index", {{"data", "!!!!"}}}}),
     "base64"},
    {"take part of an index",
     expr({{"op", "take"}, {"x", leaf("a")}, {"dim", 0}, {"index", {{"data", "AAA="}}}}), "32-bit"},
    {"take out of range",
     expr({{"op", "take"}, {"x", leaf("a")}, {"dim", 0}, {"index", {{"data", "BAAAAA=="}}}}),
     "indices below 4"},
    {"take negative", expr({{"op", "take"}, {"x", leaf("a")}, {"dim", 0}, {"index", {{"data", "/////w=="}}}}),
     "indices below 4"},
    {"unary function", expr({{"op", "unary"}, {"f", "sinh"}, {"x", leaf("a")}}), "a function"},
    {"unary of blocks", expr({{"op", "unary"}, {"f", "neg"}, {"x", leaf("q")}}), "cast to f32 first"},
    {"binary operand", expr({{"op", "binary"}, {"f", "add"}, {"x", leaf("a")}, {"y", "1"}}), ".y"},
    {"binary shapes", expr({{"op", "binary"}, {"f", "add"}, {"x", leaf("a")}, {"y", leaf("norm")}}),
     "broadcast"},
    {"cast to blocks", expr({{"op", "cast"}, {"x", leaf("a")}, {"format", "q4_0"}}), "a plain format"},
    {"data bytes", expr({{"op", "data"}, {"format", "f32"}, {"shape", {2}}, {"data", "AAAAAA=="}}),
     "8 bytes"},
    {"data blocks", expr({{"op", "data"}, {"format", "q8_0"}, {"shape", {32}}, {"data", ""}}),
     "a plain format"},
    {"cut blocks", expr({{"op", "permute"}, {"x", leaf("q")}, {"dims", {1, 0}}}), "rows of blocks"},
    {"reshaped blocks", expr({{"op", "reshape"}, {"x", leaf("q")}, {"shape", {16, 64}}}), "rows of blocks"},
    {"deep", expr(deep_expression()), "nested"},
    {"report", [](Json& w) { w["report"]["notes"] = {1}; }, "strings"},
};

TEST(WeightProgram, RefusesEverythingMalformed) {
  for (const Broken& b : kBroken) {
    Json w = golden_weights();
    b.damage(w);
    try {
      read_weight_program(w.dump());
      ADD_FAILURE() << b.title << " was read";
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kInvalidArtifact) << b.title;
      EXPECT_NE(std::string(e.what()).find(b.message), std::string::npos) << b.title << ": " << e.what();
      EXPECT_EQ(std::string(e.what()).rfind("[weights.json", 0), 0u) << b.title << ": " << e.what();
    }
  }
}

TEST(WeightProgram, RefusesWhatIsNoJson) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("null"),
                                  std::string("\xff\xfe"), std::string(100000, '['), std::string(1, '\0')}) {
    EXPECT_THROW(read_weight_program(text), Error) << text.substr(0, 10);
  }
}

// Random damage to the text ends in an Error or in a program, never elsewhere.
TEST(WeightProgram, RandomDamageIsContained) {
  const std::string whole = testing::read_file(golden_dir() + "/weights.json");
  std::mt19937 random(7);
  const std::string alphabet = "0123456789-{}[]\",:.eE xnultrfasq";
  for (int round = 0; round < 3000; ++round) {
    std::string text = whole;
    for (int i = 0; i < 1 + round % 4; ++i)
      text[random() % text.size()] = alphabet[random() % alphabet.size()];
    if (round % 5 == 0) text.resize(random() % text.size());
    try {
      read_weight_program(text);
    } catch (const Error&) {
    }
  }
}

}  // namespace
}  // namespace autodeploy
