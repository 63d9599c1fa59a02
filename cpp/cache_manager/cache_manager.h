// The verbs on sequences: which pages and slots hold what of whom. Pages stay inside.
#pragma once

#include <cstdint>
#include <list>
#include <optional>
#include <span>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "cache_manager/page_pool.h"
#include "cache_manager/state_pools.h"

namespace autodeploy {

using SequenceId = int32_t;
using SnapshotId = int64_t;

struct PoolUsage {
  int64_t free = 0, cached = 0, used = 0, total = 0;
};

// A sequence's tokens, in the units of the calls below:
//
//   0          live_begin        committed        extended          reserved
//   [--given back--)[---cached, readable---)[--mapped, open steps-)[---promised---)
//
// Up to max_open_steps steps may be open: extended for, and not committed. They are committed in order, and
// what an open step may touch is not given back: a step that starts at token p reads nothing before
// live_begin(p), so commit(p) leaves it what it needs.
//
// Admission promises every page that a sequence can need at any one time, so a running sequence never fails
// for memory: in each group, the pages promised and not yet taken are never more than the pages that are free
// or held by snapshots alone. Owned by one thread. Nothing is allocated after construction, except by
// snapshot().
class CacheManager {
 public:
  // `copier` moves the contents of pages and slots in fork, snapshot and restore; it must outlive the
  // manager.
  CacheManager(CachePlan plan, StateCopier* copier);

  const CachePlan& plan() const { return plan_; }

  // Tokens of the longest prefix of `token_ids` that a snapshot holds in all groups. The seam of prefix
  // reuse: snapshots are not indexed by their tokens yet, so it is always 0.
  int64_t match_prefix(std::span<const int64_t> token_ids) const;

  // Admits a sequence that will grow to at most max_len tokens, or returns nothing when that cannot be
  // promised now. CachePlan::fits says whether it ever can.
  std::optional<SequenceId> reserve(int64_t max_len);
  // Maps pages up to token len, before the step that writes the last of them. Never fails within what was
  // reserved.
  void extend(SequenceId seq, int64_t len);
  // The oldest open step has passed: the first len tokens are in the caches. Gives back pages that fell out
  // of their window or chunk.
  void commit(SequenceId seq, int64_t len);
  // A step has failed and no other that is open has the sequence: unmaps what extend mapped beyond the
  // committed tokens. A slot's contents are undefined after it.
  void rollback(SequenceId seq);
  // The sequence ends; no open step may have it.
  void release(SequenceId seq);

  // Admits a copy of a sequence at its committed length, while no open step has it. Full pages are shared;
  // the last partial page, pages of window and chunk groups (which are given back one by one) and the slot
  // are copied.
  std::optional<SequenceId> fork(SequenceId seq, int64_t max_len);
  // Keeps the committed state of a sequence beyond its end; no open step may have it. Memory that snapshots
  // alone hold is taken away, the least recently used first, when sequences need it. Returns nothing when
  // there is no slot for it.
  std::optional<SnapshotId> snapshot(SequenceId seq);
  // Admits a sequence that starts from a snapshot; nothing when it is gone or cannot be admitted now.
  std::optional<SequenceId> restore(SnapshotId snapshot, int64_t max_len);
  void drop(SnapshotId snapshot);

  int64_t committed(SequenceId seq) const { return sequence(seq).holdings.len; }
  // Page of each logical page, 0 where given back; valid until the next verb on this sequence.
  std::span<const int32_t> pages(SequenceId seq, int32_t group) const;
  // 0 when the Program has no slot states.
  int32_t slot(SequenceId seq) const { return sequence(seq).holdings.slot; }

  int32_t num_sequences() const { return num_sequences_; }
  int32_t num_snapshots() const { return static_cast<int32_t>(snapshots_.size()); }
  // Sequences and snapshots that own a page or slot: 0 where it is free.
  int32_t page_owners(int32_t group, int32_t page) const {
    return owners(pools_[static_cast<size_t>(group)], page);
  }
  int32_t slot_owners(int32_t slot) const { return owners(slots_, slot); }
  PoolUsage group_usage(int32_t group) const;
  PoolUsage slot_usage() const;
  // Bytes of pages and slots that sequences use, and of all of them.
  int64_t used_bytes() const;
  int64_t total_bytes() const;

  // Bytes of the books themselves: page tables, owners and free lists.
  int64_t book_bytes() const;

  // Recounts everything: free + cached + used = total, every owner counted, no page twice in a sequence,
  // promises covered. Throws Error(kInternal) naming what is wrong. Takes time linear in the pages: for tests
  // and idle debug builds.
  void audit() const;

 private:
  struct Holdings {
    std::vector<std::vector<int32_t>> pages;  // [group][logical page]
    int64_t len = 0;                          // committed tokens
    int32_t slot = 0;
  };
  struct Sequence {
    bool active = false;
    Holdings holdings;
    std::vector<int64_t> reserved, held;  // [group] pages promised in all, and taken
  };
  struct Snapshot {
    SnapshotId id = 0;
    Holdings holdings;
  };

  static int32_t owners(const PagePool& pool, int32_t page) {
    return pool.num_sequences(page) + pool.num_snapshots(page);
  }
  const Sequence& sequence(SequenceId seq) const;
  Sequence& sequence(SequenceId seq);
  // Admits a sequence that starts with a copy of `from` (null: with nothing). `keep` is the snapshot that
  // `from` belongs to, if any: it is not evicted meanwhile, and the most recently used.
  std::optional<SequenceId> admit(const Holdings* from, int64_t max_len, const Snapshot* keep);
  int64_t outstanding(const Sequence& seq, size_t group) const {
    return seq.reserved[group] - seq.held[group];
  }
  int32_t take_page(size_t group, const Snapshot* keep);
  bool make_slot_free(const Snapshot* keep);
  void evict(std::list<Snapshot>::iterator snapshot);
  std::list<Snapshot>::iterator find(SnapshotId snapshot);

  CachePlan plan_;
  StateCopier* copier_;
  std::vector<PagePool> pools_;  // [group]
  PagePool slots_;
  std::vector<int64_t> promised_;  // [group] sum of outstanding pages
  std::vector<Sequence> sequences_;
  std::vector<SequenceId> free_sequences_;
  int32_t num_sequences_ = 0;
  std::list<Snapshot> snapshots_;  // least recently used first
  SnapshotId next_snapshot_ = 1;
};

}  // namespace autodeploy
