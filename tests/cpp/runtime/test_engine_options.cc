#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/error.h"
#include "runtime/available_memory.h"
#include "runtime/engine_options.h"

namespace autodeploy {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;

// 1 KiB for each token.
std::vector<StateSpec> paged_states() {
  StateSpec state;
  state.name = "kv";
  state.components = {{"k", {2, 64}, DType::kF32}, {"v", {2, 64}, DType::kF32}};
  return {state};
}

std::vector<StateSpec> slot_states(int64_t bytes) {
  StateSpec state;
  state.name = "h";
  state.kind = StateSpec::Kind::kSlot;
  state.components = {{"h", {bytes / 4}, DType::kF32}};
  return {state};
}

std::string refusal(ErrorKind kind, const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an error";
  return "";
}

TEST(EngineOptions, DefaultsFollowTheModelAndTheMemory) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 8192, .weight_bytes = 100 * kMiB};
  CacheLimits limits = resolve_limits({}, model, paged_states(), 1000 * kMiB);
  EXPECT_EQ(limits.max_seq_len, 8192);
  EXPECT_EQ(limits.max_num_seqs, 8);
  EXPECT_EQ(limits.max_batch_tokens, 512);
  EXPECT_EQ(limits.max_bytes, 450 * kMiB);
  // Scarce memory shortens the sequences rather than failing.
  limits = resolve_limits({}, model, paged_states(), 104 * kMiB + 16 * kMiB);
  EXPECT_LT(limits.max_seq_len, 16384);
  EXPECT_GE(limits.max_seq_len, 8000);
  limits = resolve_limits({.cache_bytes = kMiB}, model, paged_states(), 1000 * kMiB);
  EXPECT_EQ(limits.max_seq_len, 1024 - 32);  // pages of 32 tokens, one of them null
  // Small sequences need small steps.
  limits = resolve_limits({.max_seq_len = 20, .max_num_seqs = 2}, model, paged_states(), 1000 * kMiB);
  EXPECT_EQ(limits.max_batch_tokens, 40);
  limits = resolve_limits({.max_num_seqs = 900}, model, paged_states(), 4000 * kMiB);
  EXPECT_EQ(limits.max_batch_tokens, 900);
  // Large recurrent states allow fewer sequences.
  limits = resolve_limits({}, model, slot_states(40 * kMiB), 500 * kMiB);
  EXPECT_EQ(limits.max_num_seqs, 1);
  limits = resolve_limits({}, model, slot_states(40 * kMiB), 700 * kMiB);
  EXPECT_EQ(limits.max_num_seqs, 2);
  limits = resolve_limits({}, model, slot_states(kMiB), 500 * kMiB);
  EXPECT_EQ(limits.max_num_seqs, 8);
}

TEST(EngineOptions, OutOfRangeIsNamed) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 2048, .weight_bytes = kMiB};
  const auto check = [&](EngineOptions options, const std::string& text) {
    const std::string message = refusal(ErrorKind::kInvalidArgument,
                                        [&] { resolve_limits(options, model, paged_states(), 100 * kMiB); });
    EXPECT_NE(message.find(text), std::string::npos) << message;
  };
  check({.max_seq_len = 1}, "max_seq_len");
  check({.max_seq_len = 2049}, "2048 positions");
  check({.max_num_seqs = -1}, "max_num_seqs");
  check({.max_batch_tokens = -7}, "found -7");
  check({.max_num_seqs = 9, .max_batch_tokens = 8}, "max_num_seqs = 9");
  check({.cache_bytes = -1}, "cache_bytes");
  check({.page_size = 100000}, "page_size");
  check({.num_threads = 5000}, "num_threads");
}

TEST(EngineOptions, StepsOverlapWhereTheBackendCan) {
  ModelFacts model{.vocab_size = 100, .max_positions = 2048, .weight_bytes = kMiB};
  const auto open_steps = [&](Overlap overlap) {
    EngineOptions options;
    options.overlap = overlap;
    return resolve_limits(options, model, paged_states(), 100 * kMiB).max_open_steps;
  };
  EXPECT_EQ(open_steps(Overlap::kAuto), 1);
  EXPECT_EQ(open_steps(Overlap::kOff), 1);
  const std::string message = refusal(ErrorKind::kInvalidArgument, [&] { open_steps(Overlap::kOn); });
  EXPECT_NE(message.find("[engine] overlap"), std::string::npos) << message;
  model.max_in_flight = 2;
  EXPECT_EQ(open_steps(Overlap::kAuto), 2);
  EXPECT_EQ(open_steps(Overlap::kOn), 2);
  EXPECT_EQ(open_steps(Overlap::kOff), 1);
}

TEST(EngineOptions, TooLittleMemoryGivesTheNumbers) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 8192, .weight_bytes = 100 * kMiB};
  std::string message =
      refusal(ErrorKind::kOutOfMemory, [&] { resolve_limits({}, model, paged_states(), 90 * kMiB); });
  EXPECT_NE(message.find(std::to_string(100 * kMiB)), std::string::npos) << message;
  EXPECT_NE(message.find(std::to_string(90 * kMiB)), std::string::npos) << message;
  message = refusal(ErrorKind::kOutOfMemory, [&] {
    resolve_limits({.max_seq_len = 8192, .cache_bytes = kMiB}, model, paged_states(), 900 * kMiB);
  });
  EXPECT_NE(message.find("lower max_seq_len to 992"), std::string::npos) << message;
  message = refusal(ErrorKind::kOutOfMemory, [&] {
    resolve_limits({.max_seq_len = 8192, .cache_bytes = 1000 * kMiB}, model, paged_states(), 110 * kMiB);
  });
  EXPECT_NE(message.find("cache_bytes"), std::string::npos) << message;
}

class MadeUpSystem : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/autodeploy_memory_XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = root_ + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  std::string root_;
};

TEST_F(MadeUpSystem, AvailableMemoryIsTheLeastThatAnybodyAllows) {
  EXPECT_EQ(available_memory(root_), 0);
  write("/proc/meminfo", "MemTotal:  9000 kB\nMemAvailable:   5000 kB\n");
  EXPECT_EQ(available_memory(root_), 5000 * 1024);
  write("/proc/self/mountinfo", "31 25 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n");
  write("/proc/self/cgroup", "0::/pod/inner\n");
  write("/sys/fs/cgroup/pod/inner/memory.max", "max\n");
  write("/sys/fs/cgroup/pod/inner/memory.current", "100\n");
  EXPECT_EQ(available_memory(root_), 5000 * 1024);
  write("/sys/fs/cgroup/pod/memory.max", "3000000\n");
  write("/sys/fs/cgroup/pod/memory.current", "1000000\n");
  EXPECT_EQ(available_memory(root_), 2000000);
  write("/sys/fs/cgroup/pod/memory.stat", "anon 5\ninactive_file 400000\nactive_file 9\n");
  EXPECT_EQ(available_memory(root_), 2400000);
  write("/sys/fs/cgroup/pod/inner/memory.max", "50\n");
  EXPECT_EQ(available_memory(root_), 0);
}

TEST_F(MadeUpSystem, TheFirstVersionOfCgroupsCountsToo) {
  write("/proc/meminfo", "MemAvailable:   5000 kB\n");
  write("/proc/self/mountinfo", "31 25 0:27 /docker/abc /cg/memory rw - cgroup cgroup rw,memory\n");
  write("/proc/self/cgroup", "7:memory:/docker/abc\n3:cpu:/x\n");
  write("/cg/memory/memory.limit_in_bytes", "700000\n");
  write("/cg/memory/memory.usage_in_bytes", "300000\n");
  EXPECT_EQ(available_memory(root_), 400000);
}

TEST(AvailableMemory, ThisProcessHasSome) {
  EXPECT_GT(available_memory(), kMiB);
  EXPECT_GT(resident_memory(), 0);
  EXPECT_GE(peak_resident_memory(), resident_memory() / 2);
}

}  // namespace
}  // namespace autodeploy
