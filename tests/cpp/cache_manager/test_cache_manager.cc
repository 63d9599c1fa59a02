#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>

#include "cache_manager/cache_manager.h"

namespace autodeploy {
namespace {

struct Geometry {
  const char* title;
  std::vector<std::pair<int64_t, int64_t>> paged;  // window, chunk
  bool slots;
  int32_t page_size;
  int32_t num_snapshots;
};

// Caches whose states hold one number per token (or per sequence, in slots): what was written can be read
// back.
class Harness {
 public:
  Harness(const Geometry& geometry, CacheLimits limits, bool scarce = false) : limits_(limits) {
    for (auto [window, chunk] : geometry.paged) {
      StateSpec state;
      state.window = window;
      state.chunk = chunk;
      state.components = {{"k", {1}, DType::kI64}};
      states_.push_back(state);
    }
    if (geometry.slots) {
      StateSpec state;
      state.kind = StateSpec::Kind::kSlot;
      state.components = {{"h", {1}, DType::kI64}};
      states_.push_back(state);
    }
    limits_.page_size = geometry.page_size;
    limits_.num_snapshots = geometry.num_snapshots;
    CachePlan plan = plan_caches(states_, limits_);
    if (scarce && !geometry.paged.empty()) {  // slots are never fewer than sequences
      limits_.max_bytes = plan.bytes() / 2;
      plan = plan_caches(states_, limits_);
    }
    pools_ = std::make_unique<HostStatePools>(plan);
    cache_ = std::make_unique<CacheManager>(plan, pools_.get());
  }

  CacheManager& cache() { return *cache_; }

  // What a step does: writes the tokens [committed, len) of a sequence into its pages and its slot.
  void write(SequenceId seq, const std::vector<int64_t>& tokens, int64_t len) {
    for (size_t s = 0; s < states_.size(); ++s) {
      if (states_[s].kind != StateSpec::Kind::kPaged) {
        *at(s, cache_->slot(seq), 0) = sum(tokens, len);
        continue;
      }
      const auto pages = cache_->pages(seq, states_[s].group);
      for (int64_t t = cache_->committed(seq); t < len; ++t) {
        const int32_t page = pages[static_cast<size_t>(t / states_[s].page_size)];
        ASSERT_NE(page, 0) << "token " << t << " of state " << s;
        *at(s, page, t % states_[s].page_size) = tokens[static_cast<size_t>(t)];
      }
    }
  }

  // What the next step may read must be there.
  void check(SequenceId seq, const std::vector<int64_t>& tokens) {
    const int64_t len = cache_->committed(seq);
    for (size_t s = 0; s < states_.size(); ++s) {
      if (states_[s].kind != StateSpec::Kind::kPaged) {
        if (len == 0) continue;
        ASSERT_EQ(*at(s, cache_->slot(seq), 0), sum(tokens, len)) << "slot of state " << s;
        continue;
      }
      const auto pages = cache_->pages(seq, states_[s].group);
      const auto& group = cache_->plan().groups[static_cast<size_t>(states_[s].group)];
      for (int64_t t = group.live_begin(len); t < len; ++t) {
        const int32_t page = pages[static_cast<size_t>(t / states_[s].page_size)];
        ASSERT_NE(page, 0) << "token " << t << " of " << len << ", state " << s;
        ASSERT_EQ(*at(s, page, t % states_[s].page_size), tokens[static_cast<size_t>(t)])
            << "token " << t << " of " << len << ", state " << s;
      }
      for (int64_t p = 0; p < group.live_begin(len) / group.page_size; ++p) {
        ASSERT_EQ(pages[static_cast<size_t>(p)], 0)
            << "page " << p << " fell out of group " << states_[s].group;
      }
    }
  }

 private:
  static int64_t sum(const std::vector<int64_t>& tokens, int64_t len) {
    int64_t total = 1;
    for (int64_t t = 0; t < len; ++t) total = total * 31 % 1000003 + tokens[static_cast<size_t>(t)];
    return total;
  }
  int64_t* at(size_t state, int32_t unit, int64_t offset) {
    const StateMemory& memory = pools_->memory()[state];
    return reinterpret_cast<int64_t*>(memory.data[0] + unit * memory.bytes[0]) + offset;
  }

  CacheLimits limits_;
  std::vector<StateSpec> states_;
  std::unique_ptr<HostStatePools> pools_;
  std::unique_ptr<CacheManager> cache_;
};

constexpr CacheLimits kLimits{.max_seq_len = 64, .max_num_seqs = 4, .max_batch_tokens = 16};

TEST(CacheManager, ReservationIsAPromise) {
  CacheLimits limits = kLimits;
  limits.max_bytes = 4096;  // pages of 64 bytes
  Harness h({"", {{0, 0}}, false, 8, 0}, limits);
  CacheManager& cache = h.cache();
  const int32_t pages = cache.plan().groups[0].num_pages - 1;
  ASSERT_EQ(pages, 4 * 8);
  std::vector<SequenceId> seqs;
  for (int i = 0; i < 4; ++i) seqs.push_back(cache.reserve(64).value());
  EXPECT_EQ(cache.group_usage(0).used, 0);     // nothing is taken yet,
  EXPECT_FALSE(cache.reserve(1).has_value());  // but all of it is promised
  for (SequenceId seq : seqs) cache.extend(seq, 64);
  EXPECT_EQ(cache.group_usage(0).free, 0);
  cache.audit();
  cache.release(seqs[1]);
  EXPECT_TRUE(cache.reserve(64).has_value());
  cache.audit();
}

TEST(CacheManager, RollbackGivesBackWhatTheStepMapped) {
  Harness h({"", {{0, 0}, {8, 0}}, true, 4, 0}, kLimits);
  CacheManager& cache = h.cache();
  const SequenceId seq = cache.reserve(40).value();
  cache.extend(seq, 6);
  cache.commit(seq, 6);
  const auto before = cache.group_usage(0);
  cache.extend(seq, 22);
  EXPECT_GT(cache.group_usage(0).used, before.used);
  cache.rollback(seq);
  EXPECT_EQ(cache.group_usage(0).used, before.used);
  EXPECT_EQ(cache.committed(seq), 6);
  cache.audit();
  cache.release(seq);
  EXPECT_EQ(cache.group_usage(0).used + cache.group_usage(1).used + cache.slot_usage().used, 0);
  cache.audit();
}

TEST(CacheManager, TwoStepsMayBeOpen) {
  CacheLimits limits = kLimits;
  limits.max_num_seqs = 1;
  limits.max_open_steps = 2;
  Harness h({"", {{8, 0}, {0, 16}}, false, 4, 0}, limits);
  CacheManager& cache = h.cache();
  const SequenceId seq = cache.reserve(64).value();
  for (int32_t g : {0, 1}) EXPECT_LT(cache.plan().groups[static_cast<size_t>(g)].pages_for(64), 16);
  cache.extend(seq, 16);
  cache.extend(seq, 32);
  for (int64_t len = 16; len <= 64; len += 16) {  // step after step of the largest size, two at a time
    const auto live = cache.plan().groups[0].live_begin(len) / 4;
    cache.commit(seq, len);
    const auto pages = cache.pages(seq, 0);
    for (int64_t p = 0; p < static_cast<int64_t>(pages.size()); ++p)
      EXPECT_EQ(pages[static_cast<size_t>(p)] != 0, p >= live) << "what the other step reads stays";
    cache.audit();
    cache.extend(seq, std::min<int64_t>(len + 32, 64));
    cache.audit();
  }
  cache.release(seq);
  cache.audit();
}

TEST(CacheManager, SnapshotsGiveWayToSequences) {
  CacheLimits limits = kLimits;
  limits.max_num_seqs = 2;
  Harness h({"", {{0, 0}}, true, 8, 1}, limits);
  CacheManager& cache = h.cache();
  const SequenceId first = cache.reserve(64).value();
  cache.extend(first, 16);
  cache.commit(first, 16);
  const SnapshotId snapshot = cache.snapshot(first).value();
  cache.release(first);
  EXPECT_EQ(cache.group_usage(0).cached, 2);
  EXPECT_EQ(cache.slot_usage().cached, 1);
  cache.audit();
  // Two sequences of the largest size need every page: the snapshot goes when its pages are taken.
  const SequenceId a = cache.reserve(64).value(), b = cache.reserve(64).value();
  cache.extend(a, 16);
  EXPECT_EQ(cache.num_snapshots(), 1);
  for (int64_t len = 16; len <= 64; len += 16) cache.extend(a, len), cache.extend(b, len);
  EXPECT_EQ(cache.num_snapshots(), 0);
  EXPECT_FALSE(cache.restore(snapshot, 64).has_value());
  EXPECT_EQ(cache.group_usage(0).free, 0);
  cache.audit();
}

class CacheManagerProperty : public testing::TestWithParam<Geometry> {};

TEST_P(CacheManagerProperty, RandomStreamsKeepTheBooksAndTheContents) {
  int admitted = 0, refused = 0, restored = 0;
  for (uint32_t seed = 0; seed < 12; ++seed) {
    std::mt19937 rng(seed);
    const auto random = [&](int64_t lo, int64_t hi) {
      return std::uniform_int_distribution<int64_t>(lo, hi)(rng);
    };
    CacheLimits limits = kLimits;
    limits.max_open_steps = 1 + static_cast<int32_t>(seed % 2);
    Harness h(GetParam(), limits, seed % 3 != 0);
    CacheManager& cache = h.cache();
    struct Live {
      std::vector<int64_t> tokens;  // [max_len]; what it wrote or will write
    };
    std::map<SequenceId, Live> live;
    std::map<SnapshotId, std::vector<int64_t>> kept;  // committed tokens
    const auto continue_with = [&](std::vector<int64_t> tokens, int64_t max_len) {
      while (static_cast<int64_t>(tokens.size()) < max_len) tokens.push_back(random(0, 1 << 20));
      return Live{std::move(tokens)};
    };
    for (int op = 0; op < 1500; ++op) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << ", op " << op);
      const int64_t what = random(0, 99);
      auto pick = live.begin();
      if (!live.empty()) std::advance(pick, random(0, static_cast<int64_t>(live.size()) - 1));
      if (live.empty() || what < 10) {
        const int64_t max_len = random(1, limits.max_seq_len);
        if (const auto seq = cache.reserve(max_len)) {
          ASSERT_TRUE(live.emplace(*seq, continue_with({}, max_len)).second);
          ++admitted;
        } else {
          ++refused;
          ASSERT_FALSE(live.empty()) << "empty caches hold any sequence that fits";
        }
      } else if (what < 70) {
        const SequenceId seq = pick->first;
        const auto& tokens = pick->second.tokens;
        const int64_t len = cache.committed(seq);
        int64_t next = std::min(static_cast<int64_t>(tokens.size()),
                                len + random(1, random(0, 1) ? 1 : limits.max_batch_tokens));
        cache.extend(seq, next);
        if (limits.max_open_steps > 1 && random(0, 1)) {  // another step is opened before this one passes
          const int64_t further = std::min(static_cast<int64_t>(tokens.size()),
                                           next + random(1, random(0, 1) ? 1 : limits.max_batch_tokens));
          cache.extend(seq, further);
          h.write(seq, tokens, next);
          cache.commit(seq, next);
          h.check(seq, tokens);
          next = further;
        }
        h.write(seq, tokens, next);
        if (random(0, 19) == 0) {
          cache.audit();
          cache.rollback(seq);  // a failed step ends its requests
          cache.release(seq);
          live.erase(pick);
        } else {
          cache.commit(seq, next);
        }
      } else if (what < 78) {
        const int64_t len = cache.committed(pick->first);
        const int64_t max_len = random(std::max<int64_t>(len, 1), limits.max_seq_len);
        if (const auto seq = cache.fork(pick->first, max_len)) {
          const auto& tokens = pick->second.tokens;
          live.emplace(*seq, continue_with({tokens.begin(), tokens.begin() + len}, max_len));
        }
      } else if (what < 85) {
        if (const auto snapshot = cache.snapshot(pick->first)) {
          const auto& tokens = pick->second.tokens;
          kept[*snapshot] = {tokens.begin(), tokens.begin() + cache.committed(pick->first)};
        }
      } else if (what < 91 && !kept.empty()) {
        auto from = kept.begin();
        std::advance(from, random(0, static_cast<int64_t>(kept.size()) - 1));
        const auto len = static_cast<int64_t>(from->second.size());
        const int64_t max_len = random(std::max<int64_t>(len, 1), limits.max_seq_len);
        if (random(0, 5) == 0) {
          cache.drop(from->first);
          kept.erase(from);
        } else if (const auto seq = cache.restore(from->first, max_len)) {
          live.emplace(*seq, continue_with(from->second, max_len));
          ++restored;
        }
      } else {
        cache.release(pick->first);
        live.erase(pick);
      }
      ASSERT_NO_THROW(cache.audit());
      for (const auto& [seq, state] : live) {
        h.check(seq, state.tokens);
        if (HasFatalFailure()) return;
      }
    }
    for (const auto& [seq, state] : live) cache.release(seq);
    for (const auto& [snapshot, tokens] : kept) cache.drop(snapshot);
    for (int32_t g = 0; g < static_cast<int32_t>(cache.plan().groups.size()); ++g) {
      EXPECT_EQ(cache.group_usage(g).free, cache.group_usage(g).total);
    }
    EXPECT_EQ(cache.slot_usage().free, cache.slot_usage().total);
  }
  EXPECT_GT(admitted, 500);
  EXPECT_GT(refused, 100);
  EXPECT_GT(restored, 50);
}

INSTANTIATE_TEST_SUITE_P(, CacheManagerProperty,
                         testing::Values(Geometry{"full", {{0, 0}}, false, 4, 0},
                                         Geometry{"window", {{0, 0}, {10, 0}}, false, 4, 0},
                                         Geometry{"chunk", {{0, 12}, {0, 0}, {7, 0}}, false, 8, 0},
                                         Geometry{"odd_pages", {{0, 0}, {5, 0}}, true, 3, 2},
                                         Geometry{"slots_only", {}, true, 16, 2},
                                         Geometry{"hybrid", {{0, 0}, {16, 0}}, true, 1, 3}),
                         [](const auto& info) { return info.param.title; });

}  // namespace
}  // namespace autodeploy
