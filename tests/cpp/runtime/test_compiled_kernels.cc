// kernels.json: what is read, what is refused, and what expressions are worth.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "core/error.h"
#include "runtime/compiled_kernels.h"
#include "runtime/sha256.h"

namespace autodeploy {
namespace {

using Json = nlohmann::json;

const std::string kDigest(64, 'a');

std::string digest_of(const std::string& text) {
  return sha256_hex({reinterpret_cast<const uint8_t*>(text.data()), text.size()});
}

Json document() {
  return Json::parse(R"({
    "format": "autodeploy.kernels", "version": {"major": 1, "minor": 0}, "program": "", "versions": {"triton": "3"},
    "kernels": [
      {"file": "00112233445566778899aabbccddeeff.cubin", "size": 4, "sha256": "", "target": "sm_90",
       "symbol": "region_add", "num_warps": 4, "shared_bytes": 64, "cluster": [1, 1, 1],
       "global_scratch": {"bytes": 0, "align": 1}, "profile_scratch": {"bytes": 0, "align": 1},
       "args": [{"type": "ptr", "divisible_by": 16}, {"type": "i64", "divisible_by": 1},
                {"type": "f32", "divisible_by": 1}]},
      {"file": "ffeeddccbbaa99887766554433221100.ptx", "size": 4, "sha256": "", "target": "compute_80",
       "symbol": "region_add", "num_warps": 4, "shared_bytes": 64, "cluster": [1, 1, 1],
       "global_scratch": {"bytes": 128, "align": 64}, "profile_scratch": {"bytes": 0, "align": 1},
       "args": [{"type": "ptr", "divisible_by": 16}, {"type": "i64", "divisible_by": 1},
                {"type": "f32", "divisible_by": 1}]}
    ],
    "launches": [
      {"path": [3, 0], "args": [{"out": 0}, {"numel": ["out", 0]}, 0.5],
       "grid": [{"cdiv": [{"numel": ["out", 0]}, 1024]}, 1, 1],
       "kernels": {"bfloat16": {"sm_90": 0, "compute_80": 1}}},
      {"body": 2, "path": [7], "args": [{"in": 1}, {"mul": [{"size": ["in", 1, 0]}, {"stride": ["in", 1, 0]}]},
                                        {"attr": "eps"}],
       "grid": [1, 1, 1], "kernels": {"float32": {"sm_90": 0}}}
    ]})");
}

Json complete() {
  Json j = document();
  j["program"] = kDigest;
  for (Json& k : j["kernels"]) k["sha256"] = digest_of("code");
  return j;
}

CompiledKernels read(const Json& j) { return CompiledKernels::read(j.dump(), kDigest); }

TEST(CompiledKernels, AreReadAndFound) {
  const CompiledKernels kernels = read(complete());
  ASSERT_EQ(kernels.kernels().size(), 2u);
  EXPECT_EQ(kernels.launches().size(), 2u);
  const CompiledKernel& code = kernels.kernel(0);
  EXPECT_FALSE(code.is_ptx);
  EXPECT_EQ(code.arch, 90);
  EXPECT_EQ(code.shared_bytes, 64);
  EXPECT_EQ(code.args[0].type, LaunchArgType::kPointer);
  EXPECT_EQ(code.args[0].divisible_by, 16);
  EXPECT_TRUE(kernels.kernel(1).is_ptx);
  EXPECT_EQ(kernels.kernel(1).arch, 80);
  const int32_t part[] = {3, 0}, whole[] = {3}, seventh[] = {7};
  ASSERT_TRUE(kernels.find(-1, part));
  EXPECT_EQ(kernels.find(-1, part)->kernels.size(), 2u);
  EXPECT_FALSE(kernels.find(-1, whole));
  EXPECT_FALSE(kernels.find(-1, seventh));
  EXPECT_FALSE(kernels.find(0, seventh));
  EXPECT_TRUE(kernels.find(2, seventh));
}

struct Case {
  const char* words;
  std::function<void(Json&)> spoil;
};

TEST(CompiledKernels, RefuseWhatIsWrong) {
  const auto deep = [](int levels) {
    Json e = 1;
    for (int i = 0; i < levels; ++i) e = Json{{"add", Json::array({e, 1})}};
    return e;
  };
  const Case cases[] = {
      {"\"autodeploy.kernels\"", [](Json& j) { j["format"] = "autodeploy.program"; }},
      {"major 1, found 2", [](Json& j) { j["version"]["major"] = 2; }},
      {"digest of program.json", [](Json& j) { j["program"] = std::string(64, 'b'); }},
      {"a digest and .cubin", [](Json& j) { j["kernels"][0]["file"] = "../../../etc/passwd"; }},
      {"a digest and .cubin", [](Json& j) { j["kernels"][0]["file"] = "0123.ptx"; }},
      {"a digest and .cubin", [](Json& j) { j["kernels"][0]["file"] = ".cubin"; }},
      {"size", [](Json& j) { j["kernels"][0]["size"] = int64_t{1} << 40; }},
      {"size", [](Json& j) { j["kernels"][0]["size"] = -1; }},
      {"a sha256", [](Json& j) { j["kernels"][0]["sha256"] = "0"; }},
      {"sm_90 or compute_80", [](Json& j) { j["kernels"][0]["target"] = "gfx90a"; }},
      {"sm_90 or compute_80", [](Json& j) { j["kernels"][0]["target"] = "sm_99999999999"; }},
      {"sm_90 or compute_80", [](Json& j) { j["kernels"][0]["target"] = "sm"; }},
      {"name of a function", [](Json& j) { j["kernels"][0]["symbol"] = "a b"; }},
      {"name of a function", [](Json& j) { j["kernels"][0]["symbol"] = ""; }},
      {"power of two", [](Json& j) { j["kernels"][0]["num_warps"] = 3; }},
      {"num_warps", [](Json& j) { j["kernels"][0]["num_warps"] = 64; }},
      {"shared_bytes", [](Json& j) { j["kernels"][0]["shared_bytes"] = 1 << 24; }},
      {"three dims", [](Json& j) { j["kernels"][0]["cluster"] = {1, 1}; }},
      {"cluster", [](Json& j) { j["kernels"][0]["cluster"] = {1, 1, 1000}; }},
      {"bytes", [](Json& j) { j["kernels"][0]["global_scratch"]["bytes"] = int64_t{1} << 40; }},
      {"ptr, i32, i64 or f32", [](Json& j) { j["kernels"][0]["args"][0]["type"] = "f64"; }},
      {"power of two", [](Json& j) { j["kernels"][0]["args"][0]["divisible_by"] = 12; }},
      {"field", [](Json& j) { j["kernels"][0]["more"] = 1; }},
      {"at least one index", [](Json& j) { j["launches"][0]["path"] = Json::array(); }},
      {"path", [](Json& j) { j["launches"][0]["path"] = {0, 0, 0, 0, 0, 0}; }},
      {"path", [](Json& j) { j["launches"][0]["path"] = {-1}; }},
      {"three dims", [](Json& j) { j["launches"][0]["grid"] = {1, 1}; }},
      {"bfloat16, float16 or float32",
       [](Json& j) { j["launches"][0]["kernels"] = {{"int8", Json::object()}}; }},
      {"a kernel for compute_80", [](Json& j) { j["launches"][0]["kernels"]["bfloat16"]["compute_80"] = 0; }},
      {"kernels", [](Json& j) { j["launches"][0]["kernels"]["bfloat16"]["sm_90"] = 2; }},
      {"a kernel of 2 args", [](Json& j) { j["launches"][0]["args"].erase(2); }},
      {"one launch per instruction", [](Json& j) { j["launches"][1] = j["launches"][0]; }},
      {"an expression", [](Json& j) { j["launches"][0]["args"][1] = {{"sub", {1, 2}}}; }},
      {"an expression", [](Json& j) { j["launches"][0]["args"][1] = {{"mul", {1}}}; }},
      {"an expression", [](Json& j) { j["launches"][0]["args"][1] = {{"mul", {1, 2}}, {"add", {1, 2}}}; }},
      {"an expression", [](Json& j) { j["launches"][0]["args"][1] = Json::object(); }},
      {"[\"in\" or \"out\", index]", [](Json& j) { j["launches"][0]["args"][1] = {{"numel", {"in"}}}; }},
      {"index, dim]", [](Json& j) { j["launches"][0]["args"][1] = {{"size", {"up", 0, 0}}}; }},
      {"args[1]", [](Json& j) { j["launches"][0]["args"][1] = {{"size", {"in", 0, 8}}}; }},
      {"args[1]", [](Json& j) { j["launches"][0]["args"][1] = {{"size", {"in", -1, 0}}}; }},
      {"nest 8 deep", [&](Json& j) { j["launches"][0]["args"][1] = deep(8); }},
  };
  read(complete());
  Json deepest = complete();
  deepest["launches"][0]["args"][1] = deep(7);
  read(deepest);
  for (const Case& c : cases) {
    Json j = complete();
    c.spoil(j);
    try {
      read(j);
      ADD_FAILURE() << "read although it should be refused for: " << c.words;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(c.words), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("[kernels.json"), std::string::npos) << e.what();
    }
  }
}

TEST(CompiledKernels, IgnoreFieldsOfALaterVersion) {
  Json j = complete();
  j["version"]["minor"] = 1;
  j["kernels"][0]["more"] = 1;
  EXPECT_EQ(read(j).kernels().size(), 2u);
}

TEST(CompiledKernels, AreLoadedWithTheirBinaries) {
  const std::filesystem::path dir = std::filesystem::temp_directory_path() / "autodeploy_compiled_kernels";
  std::filesystem::remove_all(dir);
  std::filesystem::create_directories(dir / "kernels");
  EXPECT_EQ(CompiledKernels::load(dir.string()), nullptr);
  const auto put = [&](const std::string& name, const std::string& text) {
    std::ofstream(dir / name, std::ios::binary) << text;
  };
  Json j = complete();
  j["program"] = digest_of("{}");
  put("program.json", "{}");
  put("kernels.json", j.dump());
  put("kernels/00112233445566778899aabbccddeeff.cubin", "code");
  put("kernels/ffeeddccbbaa99887766554433221100.ptx", "cod!");
  const auto kernels = CompiledKernels::load(dir.string());
  ASSERT_TRUE(kernels);
  EXPECT_EQ(kernels->read_binary(0), std::vector<uint8_t>({'c', 'o', 'd', 'e', 0}));
  EXPECT_THROW(kernels->read_binary(1), Error);
  put("kernels/00112233445566778899aabbccddeeff.cubin", "code and more");
  EXPECT_THROW(kernels->read_binary(0), Error);
  std::filesystem::remove(dir / "kernels/00112233445566778899aabbccddeeff.cubin");
  EXPECT_THROW(kernels->read_binary(0), Error);
  std::filesystem::remove_all(dir);
}

// ---- expressions ----

TensorView view(std::initializer_list<int64_t> shape, std::initializer_list<int64_t> stride) {
  TensorView v;
  v.ndim = static_cast<int>(shape.size());
  std::copy(shape.begin(), shape.end(), v.shape.begin());
  std::copy(stride.begin(), stride.end(), v.stride.begin());
  return v;
}

KernelSpec spec_of() {
  KernelSpec spec;
  spec.op = "region";
  spec.attrs.set("eps", 0.25);
  spec.attrs.set("count", int64_t{7});
  spec.attrs.set("flag", true);
  spec.attrs.set("word", std::string("x"));
  for (int i = 0; i < 2; ++i) {
    OperandSpec o;
    o.present = i == 0;
    o.shape = {Dim{0, 1}, Dim{6}};
    o.stride = {Dim{12}, Dim{1}};
    spec.in.push_back(o);
  }
  spec.out.push_back(spec.in[0]);
  return spec;
}

int64_t value_of(const std::string& expression, const KernelSpec& spec) {
  Json j = complete();
  j["launches"][0]["args"][1] = Json::parse(expression);
  const CompiledKernels kernels = read(j);
  const int32_t path[] = {3, 0};
  const BoundLaunch bound = bind_launch(*kernels.find(-1, path), kernels.kernel(0), spec);
  const TensorView in[] = {view({5, 6}, {12, 1}), TensorView{}}, out[] = {view({5, 6}, {6, 1})};
  return evaluate(bound.args[1], in, out);
}

TEST(LaunchExpressions, AreWorthWhatThePageSays) {
  const KernelSpec spec = spec_of();
  const std::pair<const char*, int64_t> cases[] = {
      {"12", 12},
      {R"({"numel": ["in", 0]})", 30},
      {R"({"size": ["out", 0, 1]})", 6},
      {R"({"stride": ["in", 0, 0]})", 12},
      {R"({"stride": ["out", 0, 0]})", 6},
      {R"({"attr": "count"})", 7},
      {R"({"attr": "flag"})", 1},
      {R"({"mul": [{"size": ["in", 0, 0]}, {"add": [1, {"attr": "count"}]}]})", 40},
      {R"({"cdiv": [{"numel": ["out", 0]}, 8]})", 4},
      {R"({"cdiv": [{"numel": ["out", 0]}, 10]})", 3},
      {R"({"cdiv": [1, 0]})", 0},
      {R"({"min": [3, {"size": ["out", 0, 0]}]})", 3},
      {R"({"max": [3, {"size": ["out", 0, 0]}]})", 5},
      {R"({"mul": [9007199254740992, 9007199254740992]})", std::numeric_limits<int64_t>::max()},
  };
  for (const auto& [text, value] : cases) EXPECT_EQ(value_of(text, spec), value) << text;
}

TEST(LaunchExpressions, HaveTheTypesOfTheirParameters) {
  const KernelSpec spec = spec_of();
  for (const char* text : {R"({"in": 0})", "0.5", R"({"attr": "eps"})", R"({"attr": "word"})",
                           R"({"attr": "no"})", R"({"numel": ["in", 1]})", R"({"numel": ["in", 2]})",
                           R"({"numel": ["out", 1]})", R"({"size": ["in", 0, 2]})", R"({"add": [1, 0.5]})"}) {
    EXPECT_THROW(value_of(text, spec), Error) << text;
  }
  Json j = complete();
  j["launches"][0]["args"][0] = Json::parse(R"({"numel": ["out", 0]})");
  const int32_t path[] = {3, 0};
  const CompiledKernels kernels = read(j);
  EXPECT_THROW(bind_launch(*kernels.find(-1, path), kernels.kernel(0), spec), Error);
}

}  // namespace
}  // namespace autodeploy
