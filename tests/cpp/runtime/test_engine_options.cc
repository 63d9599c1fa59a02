#include <gtest/gtest.h>
#include <stdlib.h>

#include <cmath>
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

DeviceMemoryFacts device_of(int64_t total) { return {.total = total, .free = total}; }

TEST(DeviceLimits, DefaultsFollowTheModelAndTheDevice) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 131072};
  DeviceMemoryFacts memory{.total = 80000 * kMiB,
                           .free = 79500 * kMiB,
                           .weights = 16000 * kMiB,
                           .arena = 900 * kMiB,
                           .graphs = 50 * kMiB,
                           .other = 50 * kMiB};
  EXPECT_EQ(device_memory_limit({}, memory), 71500 * kMiB);
  CacheLimits limits = resolve_device_limits({}, model, paged_states(), memory);
  EXPECT_EQ(limits.max_seq_len, 131072);
  EXPECT_EQ(limits.max_num_seqs, 256);
  EXPECT_EQ(limits.max_batch_tokens, 8192);
  EXPECT_EQ(limits.max_bytes, 54500 * kMiB);
  std::vector<StateSpec> states = paged_states();
  EXPECT_EQ(plan_caches(states, limits).limits.page_size, 32);
  EXPECT_LE(plan_caches(states, limits).bytes(), limits.max_bytes);
  // What the user says counts.
  limits = resolve_device_limits({.max_seq_len = 4096,
                                  .max_num_seqs = 32,
                                  .max_batch_tokens = 2048,
                                  .cache_bytes = 1000 * kMiB,
                                  .page_size = 64},
                                 model, paged_states(), memory);
  EXPECT_EQ(limits.max_seq_len, 4096);
  EXPECT_EQ(limits.max_num_seqs, 32);
  EXPECT_EQ(limits.max_batch_tokens, 2048);
  EXPECT_EQ(limits.max_bytes, 1000 * kMiB);
  EXPECT_EQ(limits.page_size, 64);
  limits = resolve_device_limits({.gpu_memory_fraction = 0.5}, model, paged_states(), memory);
  EXPECT_EQ(limits.max_bytes, (40000 - 500 - 17000) * kMiB);
  limits = resolve_device_limits({.max_num_seqs = 20000}, model, paged_states(), memory);
  EXPECT_EQ(limits.max_batch_tokens, 20000);
  limits = resolve_device_limits({.max_batch_tokens = 100}, model, paged_states(), memory);
  EXPECT_EQ(limits.max_num_seqs, 100);
}

TEST(DeviceLimits, LargeStatesAllowFewerSequences) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 8192};
  const auto seqs = [&](std::vector<StateSpec> states, EngineOptions options = {}) {
    const CacheLimits limits = resolve_device_limits(options, model, states, device_of(10000 * kMiB));
    EXPECT_LE(plan_caches(states, limits).bytes(), 9000 * kMiB);
    return limits.max_num_seqs;
  };
  EXPECT_EQ(seqs(slot_states(kMiB)), 256);
  EXPECT_EQ(seqs(slot_states(90 * kMiB)), 99) << "without pages, slots take all";
  std::vector<StateSpec> both = slot_states(90 * kMiB);
  both.push_back(paged_states()[0]);
  EXPECT_EQ(seqs(both), 49) << "and else half";
  // A sequence as long as the user wants it leaves room for fewer.
  both[1].components[0].shape = {2, 80 * 1024};
  EXPECT_EQ(seqs(both, {.max_seq_len = 8192}), 41);
  EXPECT_EQ(seqs(both, {.max_num_seqs = 3}), 3);
}

TEST(DeviceLimits, TheSecondLookExceedsNothing) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 8192};
  std::vector<StateSpec> states = slot_states(90 * kMiB);
  states.push_back(paged_states()[0]);
  states[1].components[0].shape = {2, 64 * 1024};
  for (int64_t arena = 0; arena < 4000; arena += 37) {
    DeviceMemoryFacts memory = device_of(10000 * kMiB);
    const CacheLimits first = resolve_device_limits({}, model, states, memory);
    memory.arena = arena * kMiB;
    const CacheLimits second = resolve_device_limits({}, model, states, memory, &first);
    EXPECT_LE(second.max_seq_len, first.max_seq_len);
    EXPECT_LE(second.max_num_seqs, first.max_num_seqs);
    EXPECT_LE(second.max_batch_tokens, first.max_batch_tokens);
    EXPECT_LE(plan_caches(states, second).bytes(), (9000 - arena) * kMiB);
  }
}

TEST(DeviceLimits, ADeviceTooSmallGivesAllNumbers) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 8192};
  DeviceMemoryFacts memory = device_of(1000 * kMiB);
  memory.free = 950 * kMiB;
  memory.weights = 700 * kMiB;
  memory.arena = 149 * kMiB;
  memory.graphs = kMiB / 2;
  const auto complaint = [&](EngineOptions options, std::vector<StateSpec> states) {
    return refusal(ErrorKind::kOutOfMemory, [&] { resolve_device_limits(options, model, states, memory); });
  };
  std::string text = complaint({.max_seq_len = 8192}, paged_states());
  for (int64_t number :
       {700 * kMiB, 149 * kMiB, kMiB / 2, (8192 + 32) * int64_t{1024}, 850 * kMiB, 1000 * kMiB, 50 * kMiB})
    EXPECT_NE(text.find(std::to_string(number)), std::string::npos) << number << ": " << text;
  EXPECT_NE(text.find("90 % of"), std::string::npos) << text;
  EXPECT_NE(text.find("gpu_memory_fraction"), std::string::npos) << text;
  text = complaint({.cache_bytes = 2 * kMiB}, paged_states());
  EXPECT_NE(text.find("lower cache_bytes"), std::string::npos) << text;
  text = complaint({}, slot_states(kMiB));
  EXPECT_NE(text.find(std::to_string(2 * kMiB) + " for the caches"), std::string::npos) << text;
  memory.weights = 900 * kMiB;
  text = complaint({}, paged_states());
  EXPECT_NE(text.find(std::to_string(900 * kMiB)), std::string::npos) << text;
  // Without states nothing needs to be left.
  memory.weights = 700 * kMiB, memory.graphs = kMiB;
  EXPECT_EQ(resolve_device_limits({}, model, {}, memory).max_num_seqs, 256);
}

TEST(DeviceLimits, AFractionOutOfRangeIsNamed) {
  const ModelFacts model{.vocab_size = 100, .max_positions = 8192};
  for (double fraction : {-0.1, 1.1, std::nan("")}) {
    const std::string text = refusal(ErrorKind::kInvalidArgument, [&] {
      resolve_device_limits({.gpu_memory_fraction = fraction}, model, paged_states(), device_of(1000 * kMiB));
    });
    EXPECT_NE(text.find("gpu_memory_fraction"), std::string::npos) << text;
  }
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
