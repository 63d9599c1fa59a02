// The loader: every param of the golden artifact as plain memory and in the kernels' layout, exact plans,
// clear errors.
#include "runtime/weight_loader.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <map>
#include <random>
#include <string>

#include "core/error.h"
#include "runtime/program_reader.h"
#include "weight_files.h"

namespace autodeploy {
namespace {

using testing::golden_dir;
using testing::golden_values;
using testing::TemporaryFolder;

std::vector<ParamSpec> plain_params() {
  std::vector<ParamSpec> params = load_program(golden_dir()).params;
  for (ParamSpec& p : params) p.used_as_plain = true, p.used_as_weight = false;
  return params;
}

float element(const TensorView& v, int64_t i) {
  switch (v.dtype) {
    case DType::kF32:
      return v.as<float>()[i];
    case DType::kI64:
      return static_cast<float>(v.as<int64_t>()[i]);
    case DType::kBool:
      return static_cast<float>(v.as<uint8_t>()[i]);
    default:
      return NAN;
  }
}

// First wrong element by name, or "".
std::string first_difference(const LoadedWeights& loaded, const std::vector<ParamSpec>& params) {
  const std::vector<float> want = golden_values();
  size_t at = 0;
  for (const ParamSpec& p : params) {
    const TensorView v = loaded.plain(p.name);
    if (!v) return p.name + " is absent";
    for (int64_t i = 0; i < p.numel(); ++i, ++at) {
      // exp differs in the last bit between libraries.
      if (std::abs(element(v, i) - want[at]) > 1e-6f * std::abs(want[at])) {
        return detail::concat(p.name, "[", i, "]: expected ", want[at], ", found ", element(v, i));
      }
    }
  }
  return at == want.size() ? "" : "not all values were read";
}

TEST(WeightLoader, PlainParamsOfTheGoldenArtifact) {
  ThreadPool pool(2);
  const std::vector<ParamSpec> params = plain_params();
  const LoadedWeights loaded = load_weights(load_weight_program(golden_dir()), golden_dir(), params, pool);
  EXPECT_EQ(first_difference(loaded, params), "");
  EXPECT_EQ(loaded.plain("table").dtype, DType::kI64);
  EXPECT_EQ(loaded.plain("mask").dtype, DType::kBool);
  EXPECT_EQ(loaded.plain("scale").ndim, 0);
  EXPECT_EQ(loaded.plain("moved").stride[0], 20);
  EXPECT_EQ(loaded.packed("embed"), nullptr);
  EXPECT_FALSE(loaded.plain("unheard of"));
}

TEST(WeightLoader, PackedParamsKeepTheirFormats) {
  ThreadPool pool(2);
  const std::vector<ParamSpec> params = load_program(golden_dir()).params;
  const LoadedWeights loaded = load_weights(load_weight_program(golden_dir()), golden_dir(), params, pool);
  const std::vector<float> want = golden_values();
  const std::map<std::string, std::vector<Format>> formats = {
      {"embed", {Format::kQ8_0}},
      {"qkv", {Format::kQ4_1, Format::kQ4_0, Format::kBF16}},
      {"out", {Format::kQ5_0, Format::kQ5_1}},
      {"up", {Format::kF32}},
      {"router", {Format::kF32}}};
  size_t at = 0, packed = 0;
  for (const ParamSpec& p : params) {
    const PackedWeight* w = loaded.packed(p.name);
    EXPECT_EQ(w != nullptr, p.used_as_weight) << p.name;
    EXPECT_EQ(static_cast<bool>(loaded.plain(p.name)), p.used_as_plain) << p.name;
    size_t here = at;
    at += static_cast<size_t>(p.numel());
    if (!w) continue;
    ++packed;
    EXPECT_EQ(w->shape, p.shape);
    ASSERT_EQ(w->segments.size(), formats.at(p.name).size()) << p.name;
    for (size_t s = 0; s < w->segments.size(); ++s) {
      const PackedSegment& segment = w->segments[s];
      EXPECT_EQ(segment.format, formats.at(p.name)[s]) << p.name;
      EXPECT_EQ(reinterpret_cast<uintptr_t>(segment.data) % 64, 0u);
      std::vector<float> row(static_cast<size_t>(segment.cols));
      for (int64_t r = 0; r < segment.rows; ++r) {
        unpack_row(segment, r, row.data());
        for (size_t c = 0; c < row.size(); ++c, ++here)
          ASSERT_EQ(row[c], want[here]) << p.name << " row " << r << " column " << c;
      }
    }
    EXPECT_EQ(here, at) << p.name;
  }
  EXPECT_EQ(packed, formats.size());
}

TEST(WeightLoader, ThePlanIsExactAndKnownBefore) {
  ThreadPool pool(1);
  std::vector<ParamSpec> params = load_program(golden_dir()).params;
  params[0].used_as_plain = true;  // both ways
  const WeightProgram weights = load_weight_program(golden_dir());
  const WeightPlan plan = plan_weights(weights, params, pool.num_threads());
  int64_t total = 0;
  for (size_t i = 0; i < params.size(); ++i) {
    EXPECT_EQ(plan.params[i].name, params[i].name);
    EXPECT_EQ(plan.params[i].packed_bytes > 0, params[i].used_as_weight) << params[i].name;
    EXPECT_EQ(plan.params[i].plain_bytes,
              params[i].used_as_plain ? params[i].numel() * dtype_size(params[i].dtype) : 0);
    total += plan.params[i].packed_bytes + (plan.params[i].plain_bytes + 63) / 64 * 64;
  }
  EXPECT_EQ(plan.resident_bytes, total);
  EXPECT_GE(plan.params[0].packed_bytes, 40 * 34);
  EXPECT_LE(plan.params[0].packed_bytes, (40 + 16) * 34 + 64)
      << "stored bytes and the padding of one group of rows";

  std::vector<std::pair<int64_t, int64_t>> steps;
  const LoadedWeights loaded = load_weights(
      weights, golden_dir(), params, pool, [&](int64_t done, int64_t all) { steps.emplace_back(done, all); });
  EXPECT_EQ(loaded.plan().resident_bytes, plan.resident_bytes);
  ASSERT_FALSE(steps.empty());
  EXPECT_EQ(steps.back(), std::make_pair(plan.resident_bytes, plan.resident_bytes));
  for (size_t i = 1; i < steps.size(); ++i) EXPECT_GE(steps[i].first, steps[i - 1].first);
  EXPECT_NE(loaded.packed("embed"), nullptr);
  EXPECT_TRUE(loaded.plain("embed"));
}

TEST(WeightLoader, ProgressMayGiveUp) {
  ThreadPool pool(2);
  struct Enough {};
  const std::vector<ParamSpec> params = plain_params();
  const WeightProgram weights = load_weight_program(golden_dir());
  EXPECT_THROW(load_weights(weights, golden_dir(), params, pool, [](int64_t, int64_t) { throw Enough(); }),
               Enough);
  EXPECT_EQ(first_difference(load_weights(weights, golden_dir(), params, pool), params), "")
      << "the pool still works";
}

TEST(WeightLoader, MovedWeightsKeepTheirMemory) {
  ThreadPool pool(1);
  const std::vector<ParamSpec> params = plain_params();
  LoadedWeights first = load_weights(load_weight_program(golden_dir()), golden_dir(), params, pool);
  const void* data = first.plain("embed").data;
  LoadedWeights second = std::move(first);
  EXPECT_EQ(second.plain("embed").data, data);
  EXPECT_EQ(first_difference(second, params), "");
}

// The kind and text of what loading a damaged copy of the golden artifact says.
template <class Damage>
std::pair<ErrorKind, std::string> complaint(Damage&& damage) {
  TemporaryFolder folder;
  folder.copy_golden();
  damage(folder.path());
  ThreadPool pool(1);
  try {
    load_weights(load_weight_program(folder.path()), folder.path(), plain_params(), pool);
  } catch (const Error& e) {
    return {e.kind(), e.what()};
  }
  return {ErrorKind::kInternal, "no error"};
}

TEST(WeightLoader, SourcesThatAreNotTheCompiledOnes) {
  using std::filesystem::remove;
  auto [missing, missing_text] = complaint([](const std::string& dir) { remove(dir + "/weights.bin"); });
  EXPECT_EQ(missing, ErrorKind::kIo);
  EXPECT_NE(missing_text.find("weights.bin"), std::string::npos) << missing_text;

  auto [truncated, truncated_text] = complaint([](const std::string& dir) {
    testing::write_file(dir + "/weights.bin", testing::read_file(dir + "/weights.bin").substr(0, 1000));
  });
  EXPECT_EQ(truncated, ErrorKind::kInvalidArtifact);
  EXPECT_NE(truncated_text.find("1000; compile the model again"), std::string::npos) << truncated_text;

  auto [changed, changed_text] = complaint([](const std::string& dir) {
    std::string content = testing::read_file(dir + "/weights.bin");
    content[3] ^= 1;  // in the part that the fingerprint covers
    testing::write_file(dir + "/weights.bin", content);
  });
  EXPECT_EQ(changed, ErrorKind::kInvalidArtifact);
  EXPECT_NE(changed_text.find("another header"), std::string::npos) << changed_text;

  auto [folder, folder_text] = complaint([](const std::string& dir) {
    remove(dir + "/weights.bin");
    std::filesystem::create_directory(dir + "/weights.bin");
  });
  EXPECT_EQ(folder, ErrorKind::kIo) << folder_text;
}

TEST(WeightLoader, ParamsThatTheWeightProgramLacks) {
  const WeightProgram weights = load_weight_program(golden_dir());
  const auto text = [&](const ParamSpec& p) -> std::string {
    try {
      plan_weights(weights, std::vector<ParamSpec>{p}, 1);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::kInvalidArtifact);
      return e.what();
    }
    return "no error";
  };
  ParamSpec p{"stranger", {3}, DType::kF32, false, true};
  EXPECT_NE(text(p).find("the param stranger"), std::string::npos);
  p = {"norm", {31}, DType::kF32, false, true};
  EXPECT_NE(text(p).find("expected the shape [31]"), std::string::npos);
  p = {"norm", {32}, DType::kF32, true, false};
  EXPECT_NE(text(p).find("expected a weight operand"), std::string::npos);
}

constexpr const char* kHashOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// A weight program of one param "w" [rows, cols] over a file of its own; the file has a hole for each zero.
WeightProgram one_param(const std::string& file, int64_t rows, int64_t cols, const std::string& expr) {
  const int64_t bytes = rows * cols * 4;
  std::filesystem::resize_file((testing::write_file(file, ""), file), static_cast<uintmax_t>(bytes));
  const nlohmann::json shape = {rows, cols}, stored = {{"source", 0},
                                                       {"offset", 0},
                                                       {"nbytes", bytes},
                                                       {"format", "f32"},
                                                       {"shape", shape}};
  const nlohmann::json w = {
      {"format", "autodeploy.weights"},
      {"version", {{"major", 1}, {"minor", 0}}},
      {"sources", {{{"path", file}, {"size", bytes}, {"header_bytes", 0}, {"fingerprint", kHashOfNothing}}}},
      {"tensors", {{"t", stored}}},
      {"params",
       {{{"name", "w"},
         {"shape", shape},
         {"segments", {{{"rows", rows}, {"format", "f32"}, {"expr", nlohmann::json::parse(expr)}}}}}}},
      {"report", {{"unused", nlohmann::json::array()}, {"notes", nlohmann::json::array()}}}};
  return read_weight_program(w.dump());
}

// Bytes by a line of /proc/self/status, -1 where there is none.
int64_t status_bytes(const std::string& name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::stoll(line.substr(name.size() + 1)) * 1024;
  }
  return -1;
}

TEST(WeightLoader, PeakMemoryStaysWithinThePlan) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have memory of their own";
#endif
  constexpr int64_t kRows = 40960, kCols = 1024;  // 160 MiB, five windows
  for (const char* expr : {R"({"op": "tensor", "name": "t"})",
                           R"({"op": "unary", "f": "neg", "x": {"op": "tensor", "name": "t"}})"}) {
    TemporaryFolder folder;
    const WeightProgram weights = one_param(folder.path() + "/w.bin", kRows, kCols, expr);
    const std::vector<ParamSpec> params = {{"w", {kRows, kCols}, DType::kF32, true, false}};
    ThreadPool pool(2);
    const WeightPlan plan = plan_weights(weights, params, pool.num_threads());
    EXPECT_LT(plan.scratch_bytes, 40 << 20) << expr;
    std::ofstream("/proc/self/clear_refs") << "5";  // VmHWM starts anew
    const int64_t before = status_bytes("VmHWM");
    if (before < 0 || before > status_bytes("VmRSS") + (8 << 20))
      GTEST_SKIP() << "the system does not tell the peak";
    const LoadedWeights loaded = load_weights(weights, folder.path(), params, pool);
    EXPECT_LE(status_bytes("VmHWM") - before, plan.resident_bytes + plan.scratch_bytes + (4 << 20)) << expr;
    EXPECT_LE(status_bytes("VmRSS") - before, plan.resident_bytes + (4 << 20))
        << expr << ": what was repacked is still mapped";
  }
}

TEST(WeightLoader, TransposedAndWrappedTensorsForAnyThreadCount) {
  constexpr int64_t kRows = 96, kCols = 96;
  TemporaryFolder folder;
  const std::string file = folder.path() + "/w.bin";
  const WeightProgram weights = one_param(
      file, kRows, kCols,
      R"({"op": "cat", "dim": 1, "xs": [{"op": "slice", "dim": 1, "start": 90, "stop": 96, "step": 1, "x":
          {"op": "permute", "dims": [1, 0], "x": {"op": "tensor", "name": "t"}}},
          {"op": "slice", "dim": 1, "start": 0, "stop": 90, "step": 1, "x":
          {"op": "permute", "dims": [1, 0], "x": {"op": "tensor", "name": "t"}}}]})");
  std::vector<float> values(kRows * kCols);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  testing::write_file(
      file, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)));
  const std::vector<ParamSpec> params = {{"w", {kRows, kCols}, DType::kF32, true, true}};
  std::vector<std::string> packed;
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    const LoadedWeights loaded = load_weights(weights, folder.path(), params, pool);
    const float* plain = loaded.plain("w").as<float>();
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kCols; ++c) {
        ASSERT_EQ(plain[r * kCols + c], values[static_cast<size_t>((c + 90) % 96 * kCols + r)])
            << r << ", " << c;
      }
    }
    const PackedSegment& s = loaded.packed("w")->segments[0];
    packed.emplace_back(reinterpret_cast<const char*>(s.data), static_cast<size_t>(s.bytes));
  }
  EXPECT_EQ(packed[0], packed[1]);
  EXPECT_EQ(packed[0], packed[2]);
}

// Numbers and names of the text changed at random: what is still read can be loaded, or is refused with an
// Error.
TEST(WeightLoader, DamagedProgramsLoadOrComplain) {
  const std::string whole = testing::read_file(golden_dir() + "/weights.json");
  std::mt19937 random(11);
  ThreadPool pool(1);
  int loaded = 0;
  for (int round = 0; round < 4000; ++round) {
    std::string text = whole;
    for (int i = 0; i < 1 + round % 3; ++i) {
      char& c = text[random() % text.size()];
      if (c >= '0' && c <= '9') c = static_cast<char>('0' + random() % 10);
    }
    try {
      const WeightProgram weights = read_weight_program(text);
      std::vector<ParamSpec> params;
      for (const WeightParam& p : weights.params) {
        params.push_back(
            {p.name, p.shape, random() % 4 ? DType::kF32 : DType::kI64, p.shape.size() == 2, true});
      }
      if (plan_weights(weights, params, 1).resident_bytes > (64 << 20)) continue;
      load_weights(weights, golden_dir(), params, pool);
      ++loaded;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(loaded, 100) << "the damage was too great to test anything";
}

TEST(WeightLoader, NothingToLoad) {
  ThreadPool pool(1);
  int calls = 0;
  const LoadedWeights loaded =
      load_weights(load_weight_program(golden_dir()), golden_dir(), std::vector<ParamSpec>{}, pool,
                   [&](int64_t, int64_t) { ++calls; });
  EXPECT_EQ(loaded.plan().resident_bytes, 0);
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace autodeploy
