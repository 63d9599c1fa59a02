#include "runtime/planner.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace autodeploy {
namespace {

// A stretch of memory with one lifetime: a value and those that took over its storage.
struct Block {
  int64_t bytes = 0;
  int32_t first = 0, last = 0;
  int64_t offset = -1;
};

int64_t round_up(int64_t n) { return (n + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// Most bytes alive at one time.
int64_t peak_bytes(const std::vector<Block>& blocks) {
  std::vector<std::pair<int32_t, int64_t>> events;  // (time, change); births before deaths at the same time
  for (const Block& b : blocks) {
    events.emplace_back(2 * b.first, b.bytes);
    events.emplace_back(2 * b.last + 1, -b.bytes);
  }
  std::sort(events.begin(), events.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  int64_t alive = 0, peak = 0;
  for (const auto& [time, change] : events) peak = std::max(peak, alive += change);
  return peak;
}

constexpr size_t kMaxSearched =
    8192;  // blocks; beyond it only the time order is tried, whose cost is that of the living blocks

// Places blocks in the given order, each in the smallest gap that fits between the placed ones it lives
// together with. `in_time_order` lets it forget those that have died.
int64_t place(std::vector<Block>* blocks, const std::vector<int32_t>& order, bool in_time_order) {
  std::vector<std::pair<int64_t, int64_t>> busy;  // [begin, end)
  std::vector<int32_t> placed;
  int64_t total = 0;
  for (int32_t index : order) {
    Block& b = (*blocks)[static_cast<size_t>(index)];
    busy.clear();
    if (in_time_order) {
      std::erase_if(placed, [&](int32_t p) { return (*blocks)[static_cast<size_t>(p)].last < b.first; });
    }
    for (int32_t p : placed) {
      const Block& o = (*blocks)[static_cast<size_t>(p)];
      if (o.first <= b.last && b.first <= o.last) busy.emplace_back(o.offset, o.offset + o.bytes);
    }
    std::sort(busy.begin(), busy.end());
    int64_t best = -1, best_size = 0, end = 0;
    for (const auto& [from, to] : busy) {
      const int64_t gap = from - end;
      if (gap >= b.bytes && (best < 0 || gap < best_size)) best = end, best_size = gap;
      end = std::max(end, to);
    }
    b.offset = best >= 0 ? best : end;
    total = std::max(total, b.offset + b.bytes);
    placed.push_back(index);
  }
  return total;
}

}  // namespace

MemoryPlan plan_arena(const std::vector<ArenaValue>& values, bool share) {
  MemoryPlan plan;
  plan.values.resize(values.size());
  std::vector<Block> blocks;
  std::vector<int32_t> block_of(values.size(), -1);

  // Values in the order they are written, so that the owner of a storage comes before those who take it over.
  std::vector<int32_t> by_time;
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i].first >= 0) by_time.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(by_time.begin(), by_time.end(), [&](int32_t a, int32_t b) {
    return values[static_cast<size_t>(a)].first < values[static_cast<size_t>(b)].first;
  });
  for (int32_t i : by_time) {
    const ArenaValue& v = values[static_cast<size_t>(i)];
    AD_ICHECK(v.bytes >= 0 && v.last >= v.first, "value ", i, " has a size and a lifetime");
    const int64_t bytes = round_up(std::max<int64_t>(v.bytes, 1));
    const int32_t owner = share && v.in_place_of >= 0 ? block_of[static_cast<size_t>(v.in_place_of)] : -1;
    if (owner >= 0 && blocks[static_cast<size_t>(owner)].last == v.first &&
        blocks[static_cast<size_t>(owner)].bytes >= bytes) {
      blocks[static_cast<size_t>(owner)].last = v.last;
      block_of[static_cast<size_t>(i)] = owner;
      plan.values[static_cast<size_t>(i)].shares = v.in_place_of;
    } else {
      block_of[static_cast<size_t>(i)] = static_cast<int32_t>(blocks.size());
      blocks.push_back({bytes, v.first, v.last});
    }
  }

  plan.lower_bound = peak_bytes(blocks);
  if (!share) {
    for (Block& b : blocks) {
      b.offset = plan.arena_bytes;
      plan.arena_bytes += b.bytes;
    }
  } else {
    // Greedy by size, by lifetime, and in time order; the best of the three is kept.
    std::vector<int32_t> order(blocks.size());
    const auto size = [&](int32_t i) { return blocks[static_cast<size_t>(i)].bytes; };
    const auto length = [&](int32_t i) {
      return blocks[static_cast<size_t>(i)].last - blocks[static_cast<size_t>(i)].first;
    };
    std::vector<Block> best;
    for (int strategy = blocks.size() > kMaxSearched ? 2 : 0; strategy < 3; ++strategy) {
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
        if (strategy == 0) return size(a) != size(b) ? size(a) > size(b) : length(a) > length(b);
        if (strategy == 1) return length(a) != length(b) ? length(a) > length(b) : size(a) > size(b);
        return false;
      });
      std::vector<Block> trial = blocks;
      const int64_t total = place(&trial, order, strategy == 2);
      if (best.empty() || total < plan.arena_bytes) {
        best = std::move(trial);
        plan.arena_bytes = total;
      }
      if (plan.arena_bytes == plan.lower_bound) break;
    }
    blocks = std::move(best);
  }
  for (size_t i = 0; i < values.size(); ++i) {
    if (block_of[i] >= 0) plan.values[i].offset = blocks[static_cast<size_t>(block_of[i])].offset;
  }
  return plan;
}

}  // namespace autodeploy
