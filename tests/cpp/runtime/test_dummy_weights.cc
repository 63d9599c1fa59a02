// Made-up weights: the same numbers in every format, in any order and on any number of threads; constants
// stay.
#include "runtime/dummy_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "core/error.h"
#include "kernels/cpu/dummy_rows.h"
#include "runtime/philox.h"
#include "runtime/program_reader.h"
#include "runtime/weight_convert.h"
#include "runtime/weight_loader.h"
#include "weight_files.h"

namespace autodeploy {
namespace {

using testing::golden_dir;
using testing::TemporaryFolder;

constexpr Format kFormats[] = {Format::kF64,  Format::kF32,  Format::kF16,  Format::kBF16, Format::kI64,
                               Format::kI32,  Format::kI16,  Format::kI8,   Format::kU8,   Format::kBool,
                               Format::kQ8_0, Format::kQ4_0, Format::kQ4_1, Format::kQ5_0, Format::kQ5_1};

// A weight program of params without files: {"name": [format, shape...]}, each a tensor of its name.
WeightProgram absent(const nlohmann::json& tensors, const nlohmann::json& exprs = nlohmann::json::object()) {
  nlohmann::json all = nlohmann::json::object(), params = nlohmann::json::array();
  for (const auto& [name, t] : tensors.items()) {
    nlohmann::json shape = nlohmann::json::array();
    int64_t n = 1;
    for (size_t d = 1; d < t.size(); ++d) shape.push_back(t[d]), n *= t[d].get<int64_t>();
    const FormatInfo& info = format_info(format_from_name(t[0].get<std::string>()));
    all[name] = {{"source", nullptr},
                 {"offset", 0},
                 {"nbytes", n / info.block_len * info.block_bytes},
                 {"format", t[0]},
                 {"shape", shape}};
    const bool made = exprs.contains(name);
    const nlohmann::json expr = made ? exprs[name] : nlohmann::json{{"op", "tensor"}, {"name", name}};
    params.push_back({{"name", name},
                      {"shape", shape},
                      {"segments",
                       {{{"rows", shape.empty() ? nlohmann::json(1) : shape[0]},
                         {"format", made ? "f32" : t[0].get<std::string>()},
                         {"expr", expr}}}}});
  }
  const nlohmann::json w = {
      {"format", "autodeploy.weights"},
      {"version", {{"major", 1}, {"minor", 1}}},
      {"sources", nlohmann::json::array()},
      {"tensors", all},
      {"params", params},
      {"report", {{"unused", nlohmann::json::array()}, {"notes", nlohmann::json::array()}}}};
  return read_weight_program(w.dump());
}

std::vector<float> values_of(const LoadedWeights& loaded, const std::string& name, int64_t n) {
  const float* data = loaded.plain(name).as<float>();
  return {data, data + n};
}

TEST(DummyWeights, BytesAreThoseOfPhilox) {
  DummyFill fill;
  fill.seed[0] = 11, fill.seed[1] = 22, fill.stream[0] = 33, fill.stream[1] = 44;
  for (uint64_t block : {uint64_t{0}, uint64_t{7}, uint64_t{0x123456789a}}) {
    const DummyBytes bytes = dummy_bytes(fill, block);
    const PhiloxBlock want =
        philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 33, 44}, {11, 22});
    for (size_t i = 0; i < 4; ++i) EXPECT_EQ(bytes.word[i], want[i]) << block << ", " << i;
  }
}

// Every format holds exactly what dummy_value says, however the elements are cut into pieces.
TEST(DummyWeights, EveryFormatIsExact) {
  constexpr int64_t kRows = 3, kCols = 672;
  for (Format format : kFormats) {
    const std::string name(format_info(format).name);
    const WeightProgram weights = with_dummy_weights(absent({{"w", {name, kRows, kCols}}}), 5);
    const WeightExpr& e = *weights.params[0].segments[0].expr;
    ASSERT_EQ(e.op, WeightExpr::Op::kDummy);
    std::vector<float> want(kRows * kCols);
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const uint32_t word = dummy_bytes(e.fill, static_cast<uint64_t>(i / 16)).word[i % 16 / 4];
      want[static_cast<size_t>(i)] = dummy_value(e.fill, word >> (i % 4 * 8) & 0xff);
    }
    const int64_t block = format_info(format).block_len, size = format_info(format).block_bytes;
    for (int64_t piece : {kRows * kCols, int64_t{32}, int64_t{96}, block}) {
      std::vector<uint8_t> stored(static_cast<size_t>(kRows * kCols / block * size));
      for (int64_t at = 0; at < kRows * kCols; at += piece)
        write_dummy(e.fill, format, at, std::min(piece, kRows * kCols - at),
                    stored.data() + at / block * size);
      std::vector<float> found(want.size());
      convert_row(format, stored.data(), Format::kF32, reinterpret_cast<uint8_t*>(found.data()),
                  kRows * kCols);
      ASSERT_EQ(found, want) << name << " in pieces of " << piece;
    }
  }
}

TEST(DummyWeights, ValuesSuitTheirShapes) {
  const WeightProgram weights = with_dummy_weights(absent({{"matrix", {"bf16", 256, 4096}},
                                                           {"experts", {"f16", 8, 32, 1024}},
                                                           {"quantized", {"q4_0", 64, 4096}},
                                                           {"filter", {"f32", 4096, 1, 4}},
                                                           {"norm", {"bf16", 4096}},
                                                           {"scale", {"f32"}},
                                                           {"table", {"i32", 64, 64}},
                                                           {"mask", {"bool", 64}}}),
                                                   1);
  std::vector<ParamSpec> params;
  for (const WeightParam& p : weights.params) params.push_back({p.name, p.shape, DType::kF32, false, true});
  ThreadPool pool(2);
  const LoadedWeights loaded = load_weights(weights, "/nowhere", params, pool);
  const auto moments = [&](const std::string& name, int64_t n) {
    double sum = 0, square = 0;
    for (float v : values_of(loaded, name, n)) sum += v, square += static_cast<double>(v) * v;
    const double mean = sum / static_cast<double>(n);
    return std::pair(mean, std::sqrt(square / static_cast<double>(n) - mean * mean));
  };
  for (const auto& [name, n, row] :
       {std::tuple("matrix", 256 * 4096, 4096), std::tuple("experts", 8 * 32 * 1024, 1024),
        std::tuple("quantized", 64 * 4096, 4096), std::tuple("filter", 4096 * 4, 4)}) {
    const auto [mean, deviation] = moments(name, n);
    EXPECT_LE(deviation, 1.01 / std::sqrt(row)) << name;
    EXPECT_GE(deviation, 0.49 / std::sqrt(row)) << name;
    EXPECT_LT(std::abs(mean), 0.15 * deviation) << name;
  }
  for (float v : values_of(loaded, "norm", 4096)) ASSERT_TRUE(v >= 0.75f && v < 1.25f) << v;
  EXPECT_GT(moments("norm", 4096).second, 0.1);
  EXPECT_NEAR(values_of(loaded, "scale", 1)[0], 1.0f, 0.25f);
  EXPECT_EQ(values_of(loaded, "table", 64 * 64), std::vector<float>(64 * 64, 0.0f));
  EXPECT_EQ(values_of(loaded, "mask", 64), std::vector<float>(64, 1.0f));
}

TEST(DummyWeights, SmallParamsAreComputed) {
  const nlohmann::json leaf = {{"op", "tensor"}, {"name", "log"}};
  const nlohmann::json decay = {
      {"op", "unary"}, {"f", "neg"}, {"x", {{"op", "unary"}, {"f", "exp"}, {"x", leaf}}}};
  const WeightProgram weights = with_dummy_weights(
      absent({{"decay", {"f32", 64, 16}}, {"log", {"bf16", 64, 16}}}, {{"decay", decay}}), 3);
  ThreadPool pool(1);
  const LoadedWeights loaded =
      load_weights(weights, "/nowhere",
                   std::vector<ParamSpec>{{"decay", {64, 16}, DType::kF32, false, true},
                                          {"log", {64, 16}, DType::kF32, false, true}},
                   pool);
  const std::vector<float> found = values_of(loaded, "decay", 1024), log = values_of(loaded, "log", 1024);
  for (size_t i = 0; i < found.size(); ++i) ASSERT_FLOAT_EQ(found[i], -std::exp(log[i])) << i;
}

// Elements by name, seed and place alone: whatever the threads, in the kernels' layout as in a plain one.
TEST(DummyWeights, TheSameForAnyThreadsAndLayout) {
  std::vector<ParamSpec> params = load_program(golden_dir()).params;
  for (ParamSpec& p : params) p.used_as_plain = true;
  std::vector<std::vector<float>> plain(2);
  for (const uint64_t seed : {0, 0, 9}) {
    for (int threads : {1, 3}) {
      ThreadPool pool(threads);
      const WeightProgram weights = with_dummy_weights(load_weight_program(golden_dir()), seed);
      const LoadedWeights loaded = load_weights(weights, golden_dir(), params, pool);
      std::vector<float>& all = plain[seed == 0 ? 0 : 1];
      std::vector<float> now;
      for (const ParamSpec& p : params) {
        if (p.dtype != DType::kF32) continue;
        const std::vector<float> values = values_of(loaded, p.name, p.numel());
        now.insert(now.end(), values.begin(), values.end());
        const PackedWeight* packed = loaded.packed(p.name);
        size_t at = 0;
        for (size_t s = 0; packed && s < packed->segments.size(); ++s) {
          std::vector<float> row(static_cast<size_t>(packed->segments[s].cols));
          for (int64_t r = 0; r < packed->segments[s].rows; ++r) {
            unpack_row(packed->segments[s], r, row.data());
            for (float v : row) ASSERT_EQ(v, values[at++]) << p.name;
          }
        }
      }
      if (all.empty()) all = now;
      EXPECT_EQ(now, all) << seed << ", " << threads << " threads";
    }
  }
  EXPECT_NE(plain[0], plain[1]);
}

TEST(DummyWeights, ConstantsStayAndNoCheckpointIsOpened) {
  TemporaryFolder folder;
  folder.copy_golden();
  std::filesystem::remove(folder.path() + "/weights.bin");
  const WeightProgram stored = load_weight_program(folder.path()), weights = with_dummy_weights(stored, 0);
  ASSERT_EQ(weights.sources.size(), 1u);
  EXPECT_EQ(weights.sources[0].path, "constants.bin");
  std::vector<ParamSpec> constants, others;
  for (const ParamSpec& p : load_program(folder.path()).params) {
    const WeightExpr& e = *stored.params[static_cast<size_t>(stored.by_name.at(p.name))].segments[0].expr;
    std::vector<int32_t> tensors;
    if (e.op == WeightExpr::Op::kTensor &&
        stored.sources[static_cast<size_t>(stored.tensors[static_cast<size_t>(e.tensor)].source)].path ==
            "constants.bin")
      constants.push_back({p.name, p.shape, p.dtype, false, true});
    else
      others.push_back({p.name, p.shape, DType::kF32, false, true});
  }
  ASSERT_FALSE(constants.empty());
  ThreadPool pool(1);
  const LoadedWeights made = load_weights(weights, folder.path(), constants, pool);
  const LoadedWeights real = load_weights(stored, golden_dir(), constants, pool);
  for (const ParamSpec& p : constants)
    EXPECT_EQ(std::memcmp(made.plain(p.name).data, real.plain(p.name).data,
                          static_cast<size_t>(p.numel() * dtype_size(p.dtype))),
              0)
        << p.name;
  const LoadedWeights rest = load_weights(weights, folder.path(), others, pool);
  for (const ParamSpec& p : others) {
    for (float v : values_of(rest, p.name, p.numel())) ASSERT_TRUE(std::isfinite(v)) << p.name;
  }
}

TEST(DummyWeights, AnArtifactWithoutWeightsSaysSo) {
  const WeightProgram weights = absent({{"w", {"bf16", 4, 4}}});
  EXPECT_EQ(weights.tensors[0].source, -1);
  try {
    plan_weights(weights, std::vector<ParamSpec>{{"w", {4, 4}, DType::kF32, false, true}}, 1);
    FAIL() << "expected an error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidArtifact);
    EXPECT_NE(std::string(e.what()).find("load_format=dummy"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace autodeploy
