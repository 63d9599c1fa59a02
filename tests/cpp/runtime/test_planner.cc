// Properties of every arena plan: alignment, no overlap of values that live together, and storage taken over
// only where it may be.
#include "runtime/planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace autodeploy {
namespace {

void check(const std::vector<ArenaValue>& values, const MemoryPlan& plan, bool share) {
  ASSERT_EQ(plan.values.size(), values.size());
  EXPECT_EQ(plan.arena_bytes % kArenaAlignment, 0);
  EXPECT_LE(plan.lower_bound, plan.arena_bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    const PlannedValue& p = plan.values[i];
    ASSERT_EQ(p.offset >= 0, values[i].first >= 0) << "value " << i;
    if (p.offset < 0) continue;
    EXPECT_EQ(p.offset % kArenaAlignment, 0);
    EXPECT_LE(p.offset + values[i].bytes, plan.arena_bytes);
    if (p.shares >= 0) {
      EXPECT_TRUE(share);
      EXPECT_EQ(p.shares, values[i].in_place_of);
      EXPECT_EQ(p.offset, plan.values[static_cast<size_t>(p.shares)].offset);
    }
    for (size_t j = 0; j < i; ++j) {
      const PlannedValue& q = plan.values[j];
      if (q.offset < 0 || p.offset + values[i].bytes <= q.offset || q.offset + values[j].bytes <= p.offset)
        continue;
      const bool together = values[i].first <= values[j].last && values[j].first <= values[i].last;
      // The one instruction in which both live is that which hands the storage over.
      const bool handed = (p.shares == static_cast<int32_t>(j) && values[j].last == values[i].first) ||
                          (q.shares == static_cast<int32_t>(i) && values[i].last == values[j].first);
      EXPECT_TRUE(share && (!together || handed)) << "values " << j << " and " << i << " share memory";
    }
  }
}

TEST(Planner, RandomLifetimes) {
  std::mt19937 rng(3);
  for (int round = 0; round < 200; ++round) {
    const int n = 1 + static_cast<int>(rng() % 60);
    std::vector<ArenaValue> values(static_cast<size_t>(n));
    for (int i = 0; i < n; ++i) {
      ArenaValue& v = values[static_cast<size_t>(i)];
      if (rng() % 8 == 0) continue;  // not in the arena
      v.bytes = static_cast<int64_t>(rng() % 5000);
      v.first = i;
      v.last = i + static_cast<int32_t>(rng() % 12);
      if (i > 0 && rng() % 3 == 0) {
        const int32_t from = static_cast<int32_t>(rng() % static_cast<unsigned>(i));
        ArenaValue& owner = values[static_cast<size_t>(from)];
        if (owner.first >= 0 && owner.last == i) v.in_place_of = from;
      }
    }
    for (bool share : {true, false}) {
      const MemoryPlan plan = plan_arena(values, share);
      check(values, plan, share);
      const MemoryPlan again = plan_arena(values, share);
      for (size_t i = 0; i < values.size(); ++i)
        EXPECT_EQ(plan.values[i].offset, again.values[i].offset) << "deterministic";
    }
  }
}

TEST(Planner, ChainsShareOneStorage) {
  // Each value takes over the one before.
  std::vector<ArenaValue> values;
  for (int32_t i = 0; i < 10; ++i) values.push_back({1000, i, i + 1, i - 1});
  const MemoryPlan plan = plan_arena(values);
  EXPECT_EQ(plan.arena_bytes, 1024);
  EXPECT_EQ(plan.lower_bound, 1024);
  check(values, plan, true);
}

TEST(Planner, ALaterReaderKeepsItsStorage) {
  // Value 1 may take over value 0, but that one is read again at 3.
  const MemoryPlan plan = plan_arena({{640, 0, 3, -1}, {640, 1, 2, 0}});
  EXPECT_EQ(plan.values[1].shares, -1);
  EXPECT_EQ(plan.arena_bytes, 1280);
}

TEST(Planner, LayersOfATransformerMeetTheLowerBound) {
  // The residual lives throughout; inside a layer a wide value dies at once.
  std::vector<ArenaValue> values;
  int32_t t = 0;
  for (int layer = 0; layer < 30; ++layer, t += 6) {
    values.push_back({576 * 4, t, t + 5, -1});
    values.push_back({960 * 4, t + 1, t + 2, -1});
    values.push_back({576 * 4, t + 2, t + 3, -1});
    values.push_back({3072 * 4, t + 3, t + 4, -1});
    values.push_back({1536 * 4, t + 4, t + 5, -1});
    values.push_back({576 * 4, t + 5, t + 6, -1});
  }
  const MemoryPlan plan = plan_arena(values);
  EXPECT_EQ(plan.arena_bytes, plan.lower_bound);
  check(values, plan, true);
}

TEST(Planner, ManyValuesAreQuick) {
  std::vector<ArenaValue> values;
  for (int32_t i = 0; i < 100000; ++i) values.push_back({64 + i % 7 * 64, i, i + i % 5, -1});
  check({}, plan_arena({}), true);
  const MemoryPlan plan = plan_arena(values);
  EXPECT_LE(plan.arena_bytes, 2 * plan.lower_bound);
}

}  // namespace
}  // namespace autodeploy
