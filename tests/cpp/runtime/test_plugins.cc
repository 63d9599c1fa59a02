// Operators of an author's own: the library of examples/custom_models/own_kernel in a small Program.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/thread_pool.h"
#include "runtime/executor.h"
#include "runtime/plugins.h"
#include "runtime/program_reader.h"

namespace autodeploy {
namespace {

using Json = nlohmann::json;
constexpr int kChannels = 6;

// y = gated_act(x[:, :6], x[:, 6:], slope) over rows x [T, 12].
Json program() {
  const Json half = {{"v", 0}, {"shape", {"T", kChannels}}, {"strides", {2 * kChannels, 1}}, {"offset", 0}};
  Json other = half;
  other["offset"] = kChannels;
  return {{"format", "autodeploy.program"},
          {"version", {{"major", 1}, {"minor", 0}}},
          {"metadata", {{"author_ops", {{"example::gated_act", {{"library", "libexample_gated_act.so"}}}}}}},
          {"params", {{{"name", "slope"}, {"shape", {kChannels}}, {"dtype", "f32"}}}},
          {"values",
           {{{"name", "x"}, {"dtype", "f32"}, {"shape", {"T", 2 * kChannels}}},
            {{"name", "y"}, {"dtype", "f32"}, {"shape", {"T", kChannels}}}}},
          {"inputs", {{"x", 0}}},
          {"outputs", {{"y", 1}}},
          {"states", Json::array()},
          {"regions", Json::array()},
          {"instructions",
           {{{"op", "example::gated_act"},
             {"in", {half, other, {{"p", 0}}}},
             {"out", {1}},
             {"attrs", {{"limit", 1.5}}},
             {"source", "model.py:1"}}}}};
}

std::shared_ptr<const PluginSet> plugins() { return PluginSet::load({AUTODEPLOY_TEST_PLUGIN}); }

std::string message_of(const std::function<void()>& what, ErrorKind kind) {
  try {
    what();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  return "accepted";
}

std::vector<float> run(const Json& json, const std::vector<float>& x, int threads) {
  ThreadPool pool(threads);
  Executor executor(read_program(json.dump(), DType::kF32, plugins()));
  std::vector<float> slope(kChannels);
  for (int c = 0; c < kChannels; ++c) slope[static_cast<size_t>(c)] = 0.5f + 0.25f * static_cast<float>(c);
  ParamBinding binding;
  binding.plain = slope.data();
  ExecutorOptions options;
  const auto tokens = static_cast<int64_t>(x.size()) / (2 * kChannels);
  options.max_tokens = options.max_rows = tokens;
  options.max_seqs = 1;
  options.max_seq_len = tokens;
  options.pool = &pool;
  executor.bind(std::span(&binding, 1), {}, {}, options);
  EXPECT_EQ(executor.choices().at(0).kernel, "example.gated_act");
  executor.set_input("x", x.data());
  const std::vector<int64_t> ids(static_cast<size_t>(tokens));
  const std::vector<int32_t> start{0, static_cast<int32_t>(tokens)}, len{static_cast<int32_t>(tokens)};
  StepBatch batch;
  batch.num_tokens = tokens;
  batch.num_seqs = 1;
  batch.token_ids = batch.positions = ids;
  batch.query_start = start;
  batch.kv_len = len;
  executor.run(batch);
  const float* y = executor.output("y").as<const float>();
  return {y, y + tokens * kChannels};
}

TEST(Plugins, AnAuthorsOperatorComputes) {
  constexpr int64_t kTokens = 1500;  // more than one chunk of the plug-in's
  std::vector<float> x(static_cast<size_t>(kTokens) * 2 * kChannels);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(static_cast<float>(i)) * 3.0f;
  const std::vector<float> y = run(program(), x, 1);
  for (size_t t = 0; t < static_cast<size_t>(kTokens); ++t) {
    for (size_t c = 0; c < kChannels; ++c) {
      const float gate = std::min(x[t * 2 * kChannels + c], 1.5f), up = x[t * 2 * kChannels + kChannels + c];
      const float slope = 0.5f + 0.25f * static_cast<float>(c);
      ASSERT_NEAR(y[t * kChannels + c], gate / (1 + std::exp(-slope * gate)) * up, 1e-5f);
    }
  }
  EXPECT_EQ(run(program(), x, 3), y);
}

TEST(Plugins, AnOperatorWithoutALibraryIsRefused) {
  const std::string text = program().dump();
  const std::string none = message_of([&] { read_program(text); }, ErrorKind::kUnsupported);
  EXPECT_NE(none.find("expected a plug-in that provides \"example::gated_act\""), std::string::npos) << none;
  EXPECT_NE(none.find("--plugin"), std::string::npos) << none;
  EXPECT_NE(none.find("libexample_gated_act.so"), std::string::npos) << none;
  Json other = program();
  other["instructions"][0]["op"] = "example::another";
  const std::string wrong =
      message_of([&] { read_program(other.dump(), DType::kF32, plugins()); }, ErrorKind::kUnsupported);
  EXPECT_NE(wrong.find("found libexample_gated_act.so"), std::string::npos) << wrong;
}

TEST(Plugins, AnotherBuildThanTheArtifactsIsRefused) {
  Json json = program();
  json["metadata"]["plugins"] = {{"libexample_gated_act.so", std::string(64, '0')}};
  const auto read = [&] { read_program(json.dump(), DType::kF32, plugins()); };
  const std::string message = message_of(read, ErrorKind::kUnsupported);
  EXPECT_NE(message.find("sha256"), std::string::npos) << message;
  json["metadata"]["plugins"]["libexample_gated_act.so"] = plugins()->libraries().at(0).sha256;
  read();
}

TEST(Plugins, ThePluginChecksAnInstruction) {
  Json json = program();
  json["values"][1]["shape"] = {"T", kChannels + 1};
  const std::string message =
      message_of([&] { run(json, std::vector<float>(2 * kChannels), 1); }, ErrorKind::kInvalidArtifact);
  EXPECT_NE(message.find("[example::gated_act] expected gate, up and the result of one shape"),
            std::string::npos)
      << message;
  EXPECT_NE(message.find("model.py:1"), std::string::npos) << message;
  json = program();
  json["states"] = {
      {{"name", "s"}, {"kind", "slot"}, {"components", {{{"name", "h"}, {"shape", {2}}, {"dtype", "f32"}}}}}};
  json["instructions"][0]["states"] = {0};
  const std::string states =
      message_of([&] { read_program(json.dump(), DType::kF32, plugins()); }, ErrorKind::kInvalidArtifact);
  EXPECT_NE(states.find("without states"), std::string::npos) << states;
}

TEST(Plugins, WhatIsNoPluginIsRefused) {
  EXPECT_NE(message_of([] { PluginSet::load({"/nonexistent/lib.so"}); }, ErrorKind::kIo).find("found none"),
            std::string::npos);
  const std::string text =
      message_of([] { PluginSet::load({std::string(AUTODEPLOY_TEST_DATA) + "/golden/tiny/program.json"}); },
                 ErrorKind::kIo);
  EXPECT_NE(text.find("cannot be loaded"), std::string::npos) << text;
  EXPECT_EQ(PluginSet::load({AUTODEPLOY_TEST_PLUGIN, AUTODEPLOY_TEST_PLUGIN})->libraries().size(), 1u);
}

}  // namespace
}  // namespace autodeploy
