// Params in the device's memory equal the CPU loader's plain arrays, made-up ones too; errors are the same.
#include "runtime/cuda/device_weights.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "../runtime/weight_files.h"
#include "core/error.h"
#include "kernels/cpu/dummy_rows.h"
#include "kernels/cuda/fill_dummy.h"
#include "runtime/dummy_weights.h"
#include "runtime/mapped_file.h"
#include "runtime/program_reader.h"
#include "runtime/weight_loader.h"

namespace autodeploy::cuda {
namespace {

using autodeploy::testing::golden_dir;
using autodeploy::testing::TemporaryFolder;

// First param that differs from the CPU loader's, or "".
std::string first_difference(const WeightProgram& weights, const std::string& dir,
                             std::vector<ParamSpec> params, int threads) {
  for (ParamSpec& p : params) p.used_as_plain = true, p.used_as_weight = false;
  ThreadPool pool(threads);
  Queue queue;
  const LoadedWeights host = load_weights(weights, dir, params, pool);
  const DeviceWeights device = load_device_weights(weights, dir, params, pool, queue);
  if (device.data.size() != params.size() || device.bytes.size() != params.size())
    return "params are missing";
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& p = params[i];
    if (device.bytes[i] != p.numel() * dtype_size(p.dtype)) return p.name + " has other bytes";
    if (reinterpret_cast<uintptr_t>(device.data[i]) % 256 != 0) return p.name + " is not aligned";
    std::vector<uint8_t> found(static_cast<size_t>(device.bytes[i]));
    queue.copy_to_host(found.data(), device.data[i], device.bytes[i]);
    queue.wait();
    if (std::memcmp(found.data(), host.plain(p.name).data, found.size()) != 0) return p.name;
  }
  return "";
}

TEST(DeviceWeights, GoldenArtifactInEveryType) {
  for (DType act : {DType::kF32, DType::kBF16, DType::kF16}) {
    const std::vector<ParamSpec> params = load_program(golden_dir(), act).params;
    for (int threads : {1, 3})
      EXPECT_EQ(first_difference(load_weight_program(golden_dir()), golden_dir(), params, threads), "")
          << dtype_name(act);
  }
}

TEST(DeviceWeights, MadeUpOnTheDeviceAsOnTheHost) {
  for (DType act : {DType::kF32, DType::kBF16, DType::kF16}) {
    const std::vector<ParamSpec> params = load_program(golden_dir(), act).params;
    const WeightProgram weights = with_dummy_weights(load_weight_program(golden_dir()), 17);
    EXPECT_EQ(first_difference(weights, golden_dir(), params, 2), "") << dtype_name(act);
  }
}

// A weight program over one file of random bytes: matrices and vectors of all sizes around the buffers'.
WeightProgram random_file(const std::string& file, const std::vector<std::vector<int64_t>>& shapes,
                          std::vector<ParamSpec>* params, DType type) {
  nlohmann::json tensors = nlohmann::json::object(), list = nlohmann::json::array();
  int64_t bytes = 0;
  for (size_t i = 0; i < shapes.size(); ++i) {
    const std::string name = "p" + std::to_string(i);
    int64_t n = 1;
    for (int64_t d : shapes[i]) n *= d;
    tensors[name] = {
        {"source", 0}, {"offset", bytes}, {"nbytes", 2 * n}, {"format", "bf16"}, {"shape", shapes[i]}};
    list.push_back({{"name", name},
                    {"shape", shapes[i]},
                    {"segments",
                     {{{"rows", shapes[i].empty() ? 1 : shapes[i][0]},
                       {"format", "bf16"},
                       {"expr", {{"op", "tensor"}, {"name", name}}}}}}});
    params->push_back({name, shapes[i], type, false, true});
    bytes += 2 * n;
  }
  std::string content(static_cast<size_t>(bytes), '\0');
  uint32_t state = 3;
  for (size_t i = 0; i + 1 < content.size(); i += 2) {
    state = state * 1664525u + 1013904223u;
    const auto value = static_cast<uint16_t>(state >> 16 & 0xbfff);  // finite
    std::memcpy(&content[i], &value, sizeof value);
  }
  autodeploy::testing::write_file(file, content);
  constexpr const char* kHashOfNothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
  const nlohmann::json w = {
      {"format", "autodeploy.weights"},
      {"version", {{"major", 1}, {"minor", 0}}},
      {"sources", {{{"path", file}, {"size", bytes}, {"header_bytes", 0}, {"fingerprint", kHashOfNothing}}}},
      {"tensors", tensors},
      {"params", list},
      {"report", {{"unused", nlohmann::json::array()}, {"notes", nlohmann::json::array()}}}};
  return read_weight_program(w.dump());
}

TEST(DeviceWeights, ManyBuffersAndRowsLargerThanOne) {
  std::vector<std::vector<int64_t>> shapes = {{7}, {}, {3, 5}, {1}, {130, 3, 17}, {0, 8}, {250001}, {64, 64}};
  for (DType type : {DType::kF32, DType::kBF16}) {
    TemporaryFolder folder;
    std::vector<ParamSpec> params;
    const WeightProgram weights = random_file(folder.path() + "/w.bin", shapes, &params, type);
    EXPECT_EQ(first_difference(weights, folder.path(), params, 2), "") << dtype_name(type);
    shapes.insert(shapes.begin() + 3, {{2048, 9000}, {17 << 20}});  // 35 and 34 MiB of bfloat16
  }
}

// Made-up params between those of files, so small that the gaps look like those of alignment.
TEST(DeviceWeights, MadeUpParamsBetweenOthers) {
  TemporaryFolder folder;
  std::vector<ParamSpec> params;
  WeightProgram weights = random_file(
      folder.path() + "/w.bin", {{128}, {16}, {128}, {100}, {3}, {64, 2}, {9, 9}}, &params, DType::kBF16);
  const WeightProgram made = with_dummy_weights(weights, 2);
  for (size_t i : {1, 4, 5}) weights.params[i] = made.params[i];
  EXPECT_EQ(first_difference(weights, folder.path(), params, 1), "");
}

TEST(DeviceWeights, FillsRangesThatBeginAnywhere) {
  DummyFill fill;
  fill.stream[0] = 5;
  fill.factor = 2, fill.zero = 255, fill.step = 0x1p-9f;
  constexpr int64_t kSize = 16 * 300;
  for (const auto& [first, n] :
       {std::pair<int64_t, int64_t>{0, kSize}, {1, 1}, {15, 2}, {16, 16}, {3, 4001}, {4799, 1}}) {
    Queue queue;
    DeviceMemory memory(kSize * 4, "a test");
    queue.fill(memory.data(), 0, kSize * 4);
    fill_dummy(queue.stream(), fill, memory.data(), DType::kF32, first, n);
    std::vector<float> found(kSize), want(kSize);
    queue.copy_to_host(found.data(), memory.data(), kSize * 4);
    queue.wait();
    write_dummy(fill, Format::kF32, first, n, reinterpret_cast<uint8_t*>(want.data() + first));
    EXPECT_EQ(found, want) << first << ", " << n;
  }
}

TEST(DeviceWeights, ThePlanIsKnownBefore) {
  const std::vector<ParamSpec> params = load_program(golden_dir(), DType::kBF16).params;
  const WeightProgram weights = load_weight_program(golden_dir());
  const DeviceWeightPlan plan = plan_device_weights(weights, params, 2);
  ThreadPool pool(2);
  Queue queue;
  std::vector<std::pair<int64_t, int64_t>> steps;
  const DeviceWeights device =
      load_device_weights(weights, golden_dir(), params, pool, queue,
                          [&](int64_t done, int64_t all) { steps.emplace_back(done, all); });
  EXPECT_EQ(device.memory.bytes(), plan.bytes);
  EXPECT_EQ(steps.back(), std::make_pair(plan.bytes, plan.bytes));
  for (size_t i = 1; i < steps.size(); ++i) EXPECT_GE(steps[i].first, steps[i - 1].first);
  EXPECT_GT(plan.pinned_bytes, 0);
  ASSERT_EQ(device.notes.size(), 5u) << "one for each block format of the golden artifact";
  EXPECT_NE(device.notes[0].find("1 weights of q8_0 are bf16 on the GPU: 2560 bytes instead of 1360"),
            std::string::npos)
      << device.notes[0];
  EXPECT_EQ(
      plan_device_weights(with_dummy_weights(weights, 0), std::vector<ParamSpec>{params[0]}, 2).pinned_bytes,
      0)
      << "nothing is read";
}

TEST(DeviceWeights, ProgressMayGiveUp) {
  const std::vector<ParamSpec> params = load_program(golden_dir(), DType::kF16).params;
  ThreadPool pool(2);
  Queue queue;
  struct Enough {};
  const auto give_up = [](int64_t, int64_t) { throw Enough(); };
  EXPECT_THROW(
      load_device_weights(load_weight_program(golden_dir()), golden_dir(), params, pool, queue, give_up),
      Enough);
  EXPECT_EQ(first_difference(load_weight_program(golden_dir()), golden_dir(), params, 2), "");
}

template <class Damage>
std::pair<ErrorKind, std::string> complaint(Damage&& damage) {
  TemporaryFolder folder;
  folder.copy_golden();
  damage(folder.path());
  ThreadPool pool(1);
  Queue queue;
  try {
    load_device_weights(load_weight_program(folder.path()), folder.path(), load_program(folder.path()).params,
                        pool, queue);
  } catch (const Error& e) {
    return {e.kind(), e.what()};
  }
  return {ErrorKind::kInternal, "no error"};
}

TEST(DeviceWeights, SourcesThatAreNotTheCompiledOnes) {
  auto [missing, missing_text] =
      complaint([](const std::string& dir) { std::filesystem::remove(dir + "/weights.bin"); });
  EXPECT_EQ(missing, ErrorKind::kIo);
  EXPECT_NE(missing_text.find("weights.bin"), std::string::npos) << missing_text;
  auto [changed, changed_text] = complaint([](const std::string& dir) {
    std::string content = autodeploy::testing::read_file(dir + "/weights.bin");
    content[3] ^= 1;  // in the part that the fingerprint covers
    autodeploy::testing::write_file(dir + "/weights.bin", content);
  });
  EXPECT_EQ(changed, ErrorKind::kInvalidArtifact);
  EXPECT_NE(changed_text.find("another header"), std::string::npos) << changed_text;
}

TEST(DeviceWeights, AFileThatBecomesShorter) {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/w.bin";
  autodeploy::testing::write_file(path, std::string(4096, 'x'));
  const MappedFile file(path);
  std::vector<uint8_t> bytes(4096);
  file.read(0, 4096, bytes.data());
  EXPECT_EQ(bytes[4095], 'x');
  std::filesystem::resize_file(path, 100);
  try {
    file.read(50, 100, bytes.data());
    FAIL() << "expected an error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kIo);
    EXPECT_NE(std::string(e.what()).find("became shorter"), std::string::npos) << e.what();
  }
}

TEST(DeviceWeights, NothingToLoad) {
  ThreadPool pool(1);
  Queue queue;
  int calls = 0;
  const DeviceWeights device =
      load_device_weights(load_weight_program(golden_dir()), golden_dir(), std::vector<ParamSpec>{}, pool,
                          queue, [&](int64_t, int64_t) { ++calls; });
  EXPECT_TRUE(device.data.empty());
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace autodeploy::cuda
