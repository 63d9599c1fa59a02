#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>

#include "cache_manager/cache_plan.h"
#include "cache_manager/state_pools.h"
#include "core/error.h"

namespace autodeploy {
namespace {

StateSpec paged(int64_t heads, int64_t dim, int64_t window = 0, int64_t chunk = 0) {
  StateSpec state;
  state.name = "kv";
  state.window = window;
  state.chunk = chunk;
  state.components = {{"k", {heads, dim}, DType::kF32}, {"v", {heads, dim}, DType::kF32}};
  return state;
}

StateSpec slot(std::vector<int64_t> shape, StateSpec::Kind kind = StateSpec::Kind::kSlot) {
  StateSpec state;
  state.name = "h";
  state.kind = kind;
  state.components = {{"h", std::move(shape), DType::kF32}};
  return state;
}

std::string message_of(const std::function<void()>& f, ErrorKind kind) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(static_cast<int>(error.kind()), static_cast<int>(kind)) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected an Error";
  return "";
}

TEST(CachePlan, GroupsStatesByGeometryAndWindow) {
  std::vector<StateSpec> states = {paged(2, 16),
                                   paged(2, 16, 64),
                                   paged(2, 16),
                                   paged(4, 16),
                                   slot({8}),
                                   paged(2, 16, 64),
                                   slot({3, 5}, StateSpec::Kind::kConv)};
  const CachePlan plan =
      plan_caches(states, {.max_seq_len = 256, .max_num_seqs = 3, .max_batch_tokens = 32, .page_size = 16});
  ASSERT_EQ(plan.groups.size(), 3U);
  EXPECT_EQ(plan.groups[0].states, (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(plan.groups[1].states, (std::vector<int32_t>{1, 5}));
  EXPECT_EQ(plan.groups[2].states, (std::vector<int32_t>{3}));
  EXPECT_EQ(plan.slots.states, (std::vector<int32_t>{4, 6}));
  EXPECT_EQ(states[5].group, 1);
  EXPECT_EQ(states[5].page_size, 16);
  EXPECT_EQ(states[4].group, -1);
  EXPECT_EQ(plan.groups[0].page_bytes, 2 * 2 * (16 * 2 * 16 * 4));
  EXPECT_EQ(plan.groups[0].num_pages, 3 * 16 + 1);
  EXPECT_EQ(plan.slots.slot_bytes, 64 + 64);  // 32 and 60 bytes, aligned
  EXPECT_EQ(plan.slots.num_slots, 4);
  int64_t bytes = plan.slots.slot_bytes * 4;
  for (const auto& group : plan.groups) bytes += group.page_bytes * group.num_pages;
  EXPECT_EQ(plan.bytes(), bytes);
}

TEST(CachePlan, WindowGroupsHoldWhatAStepCanSee) {
  PageGroupPlan group;
  group.page_size = 8;
  group.max_batch_tokens = 20;
  group.window = 10;
  EXPECT_EQ(group.live_begin(5), 0);
  EXPECT_EQ(group.live_begin(10), 1);  // the query at 10 sees keys 1..10
  // By brute force: the most pages that the open steps of at most 20 tokens each touch or keep.
  for (int32_t open_steps : {2, 1}) {
    group.max_open_steps = open_steps;
    for (int64_t len : {1, 7, 8, 9, 30, 31, 64, 1000}) {
      int64_t most = 0;
      for (int64_t begin = 0; begin < len; ++begin) {
        const int64_t end = std::min(len, begin + open_steps * group.max_batch_tokens);
        most = std::max(most, (end - 1) / 8 - group.live_begin(begin) / 8 + 1);
      }
      EXPECT_GE(group.pages_for(len), most) << len;
      EXPECT_LE(group.pages_for(len), (len + 7) / 8) << len;
    }
    EXPECT_EQ(group.pages_for(1000), open_steps == 1 ? 5 : 7);  // 29 tokens touch at most 5 pages of 8
  }
  group.window = 0;
  group.chunk = 12;
  EXPECT_EQ(group.live_begin(11), 0);
  EXPECT_EQ(group.live_begin(12), 12);
  EXPECT_EQ(group.live_begin(35), 24);
}

TEST(CachePlan, LimitIsKeptAndUsed) {
  for (int64_t seqs : {1, 4, 16}) {
    for (int64_t megabytes : {1, 2, 5, 64}) {
      std::vector<StateSpec> states = {paged(2, 16), paged(2, 16, 64), slot({32})};
      CacheLimits limits{.max_seq_len = 2000, .max_num_seqs = seqs, .max_batch_tokens = 64, .page_size = 16};
      const int64_t ideal = plan_caches(states, limits).bytes();
      limits.max_bytes = megabytes << 20;
      const CachePlan plan = plan_caches(states, limits);
      EXPECT_LE(plan.bytes(), limits.max_bytes);
      EXPECT_TRUE(plan.fits(2000));
      EXPECT_FALSE(plan.fits(2001));
      if (ideal <= limits.max_bytes) {
        EXPECT_EQ(plan.bytes(), ideal);
      } else {
        EXPECT_GE(plan.bytes(), limits.max_bytes * 9 / 10) << seqs << " sequences, " << megabytes << " MiB";
      }
    }
  }
}

TEST(CachePlan, TooLittleMemoryNamesWhatWouldFit) {
  std::vector<StateSpec> states = {paged(2, 16)};
  CacheLimits limits{
      .max_seq_len = 4096, .max_num_seqs = 4, .max_batch_tokens = 64, .page_size = 16, .max_bytes = 100000};
  const std::string message = message_of([&] { plan_caches(states, limits); }, ErrorKind::kOutOfMemory);
  const int64_t longest = longest_seq_len(states, limits);
  EXPECT_EQ(longest, (100000 / 4096 - 1) * 16);  // pages of 4096 bytes, one of them null
  EXPECT_NE(message.find("lower max_seq_len to " + std::to_string(longest)), std::string::npos) << message;
  limits.max_seq_len = longest;
  EXPECT_NO_THROW(plan_caches(states, limits));
  limits.max_seq_len = longest + 1;
  EXPECT_THROW(plan_caches(states, limits), Error);
}

TEST(CachePlan, RefusesLimitsAndDeclarationsOutOfRange) {
  std::vector<StateSpec> states = {paged(2, 16)};
  const CacheLimits good{.max_seq_len = 64, .max_num_seqs = 1, .max_batch_tokens = 8};
  const auto refused = [&](auto change, const char* field) {
    CacheLimits limits = good;
    change(limits);
    const std::string message = message_of([&] { plan_caches(states, limits); }, ErrorKind::kInvalidArgument);
    EXPECT_NE(message.find(field), std::string::npos) << message;
  };
  refused([](CacheLimits& l) { l.max_seq_len = 0; }, "max_seq_len");
  refused([](CacheLimits& l) { l.max_num_seqs = 1 << 20; }, "max_num_seqs");
  refused([](CacheLimits& l) { l.max_batch_tokens = -1; }, "max_batch_tokens");
  refused([](CacheLimits& l) { l.max_open_steps = 3; }, "max_open_steps");
  refused([](CacheLimits& l) { l.page_size = 5000; }, "page_size");
  refused([](CacheLimits& l) { l.max_bytes = -5; }, "max_bytes");
  for (std::vector<int64_t> shape : {std::vector<int64_t>{0}, {int64_t{1} << 62, 4}, {-3, -3}}) {
    std::vector<StateSpec> bad = {slot(shape)};
    message_of([&] { plan_caches(bad, good); }, ErrorKind::kInvalidArtifact);
  }
}

TEST(HostStatePools, PlacesEveryComponentApartAndCopies) {
  std::vector<StateSpec> states = {paged(1, 3), slot({5}), paged(1, 3)};
  const CachePlan plan =
      plan_caches(states, {.max_seq_len = 20, .max_num_seqs = 2, .max_batch_tokens = 8, .page_size = 4});
  HostStatePools pools(plan);
  EXPECT_EQ(pools.storage().bytes(), plan.bytes());
  std::vector<std::pair<uint8_t*, uint8_t*>> ranges;
  for (size_t s = 0; s < states.size(); ++s) {
    const StateMemory& memory = pools.memory()[s];
    const int64_t units =
        states[s].kind == StateSpec::Kind::kPaged ? plan.groups[0].num_pages : plan.slots.num_slots;
    ASSERT_EQ(memory.data.size(), states[s].components.size());
    for (size_t c = 0; c < memory.data.size(); ++c) {
      EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data[c]) % kStateAlignment, 0U);
      EXPECT_EQ(memory.bytes[c] % kStateAlignment, 0);
      ranges.emplace_back(memory.data[c], memory.data[c] + units * memory.bytes[c]);
      for (int64_t i = 0; i < units; ++i)
        memory.data[c][i * memory.bytes[c]] = static_cast<uint8_t>(10 * s + i);
    }
  }
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) EXPECT_LE(ranges[i - 1].second, ranges[i].first);
  pools.copy_page(0, 2, 5);
  pools.copy_slot(1, 2);
  const auto first = [&](size_t s, int64_t i) {
    return pools.memory()[s].data[0][i * pools.memory()[s].bytes[0]];
  };
  EXPECT_EQ(first(0, 5), 2);
  EXPECT_EQ(first(2, 5), 22);
  EXPECT_EQ(first(1, 2), 11);
}

}  // namespace
}  // namespace autodeploy
