// Lays out the values of a Program in one arena.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace autodeploy {

constexpr int64_t kArenaAlignment = 64;

// What the planner needs to know about one value. Times are positions in the final instruction list.
struct ArenaValue {
  int64_t bytes = 0;         // for the largest T and R
  int32_t first = -1;        // instruction that writes it; -1: not in the arena
  int32_t last = -1;         // last instruction that reads it; kept to the end of the step for outputs
  int32_t in_place_of = -1;  // value whose storage it may take over (that one's `last` is this one's `first`)
};

struct PlannedValue {
  int64_t offset = -1;  // in the arena; -1: not there
  int32_t shares = -1;  // value whose storage it took over
};

struct MemoryPlan {
  std::vector<PlannedValue> values;
  int64_t arena_bytes = 0;
  int64_t lower_bound = 0;      // most bytes alive at one time: no plan can be smaller
  int64_t workspace_bytes = 0;  // the largest of any kernel; shared
};

// Two values overlap in memory only where their lifetimes do not, or one took over the other's storage.
// `share` off gives every value memory of its own. Deterministic.
MemoryPlan plan_arena(const std::vector<ArenaValue>& values, bool share = true);

}  // namespace autodeploy
