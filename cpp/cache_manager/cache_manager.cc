#include "cache_manager/cache_manager.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace autodeploy {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

PoolUsage usage_of(const PagePool& pool) {
  return {pool.num_free(), pool.num_cached(), pool.num_used(), pool.total()};
}

}  // namespace

CacheManager::CacheManager(CachePlan plan, StateCopier* copier)
    : plan_(std::move(plan)), copier_(copier), slots_(std::max(plan_.slots.num_slots, 1)) {
  const size_t num_groups = plan_.groups.size();
  for (const PageGroupPlan& group : plan_.groups) pools_.emplace_back(group.num_pages);
  promised_.resize(num_groups);
  sequences_.resize(static_cast<size_t>(plan_.limits.max_num_seqs));
  for (size_t s = sequences_.size(); s-- > 0;) {
    Sequence& seq = sequences_[s];
    seq.reserved.resize(num_groups);
    seq.held.resize(num_groups);
    seq.holdings.pages.resize(num_groups);
    for (size_t g = 0; g < num_groups; ++g) {
      seq.holdings.pages[g].reserve(
          static_cast<size_t>(ceil_div(plan_.limits.max_seq_len, plan_.groups[g].page_size)));
    }
    free_sequences_.push_back(static_cast<SequenceId>(s));
  }
}

int64_t CacheManager::match_prefix(std::span<const int64_t>) const { return 0; }

std::optional<SequenceId> CacheManager::reserve(int64_t max_len) { return admit(nullptr, max_len, nullptr); }

std::optional<SequenceId> CacheManager::fork(SequenceId seq, int64_t max_len) {
  return admit(&sequence(seq).holdings, max_len, nullptr);
}

std::optional<SequenceId> CacheManager::restore(SnapshotId snapshot, int64_t max_len) {
  const auto found = find(snapshot);
  if (found == snapshots_.end()) return std::nullopt;
  snapshots_.splice(snapshots_.end(), snapshots_, found);  // now the most recently used
  return admit(&snapshots_.back().holdings, max_len, &snapshots_.back());
}

std::optional<SequenceId> CacheManager::admit(const Holdings* from, int64_t max_len, const Snapshot* keep) {
  AD_ICHECK(max_len >= 1 && max_len <= plan_.limits.max_seq_len, "a sequence is admitted for 1 to ",
            plan_.limits.max_seq_len, " tokens, not ", max_len);
  AD_ICHECK(from == nullptr || max_len >= from->len, "a copied sequence may grow at least to its length");
  if (free_sequences_.empty()) return std::nullopt;
  for (size_t g = 0; g < pools_.size(); ++g) {
    const PageGroupPlan& group = plan_.groups[g];
    const bool full = group.window == 0 && group.chunk == 0;
    int64_t need = group.pages_for(max_len);
    int64_t available = pools_[g].num_free() + pools_[g].num_cached() - promised_[g];
    if (from != nullptr && full) need -= from->len / group.page_size;  // full pages are shared
    if (keep != nullptr) {
      // Pages that the source alone holds cannot be evicted while it is copied, and those shared are cached
      // no more.
      for (int32_t page : keep->holdings.pages[g])
        available -= page != 0 && pools_[g].num_sequences(page) == 0;
    }
    if (need > available) return std::nullopt;
  }
  const bool has_slots = plan_.slots.num_slots > 0;
  if (has_slots && !make_slot_free(keep)) return std::nullopt;

  const SequenceId id = free_sequences_.back();
  free_sequences_.pop_back();
  ++num_sequences_;
  Sequence& seq = sequences_[static_cast<size_t>(id)];
  seq.active = true;
  seq.holdings.len = from != nullptr ? from->len : 0;
  seq.holdings.slot = has_slots ? slots_.take() : 0;
  for (size_t g = 0; g < pools_.size(); ++g) {
    seq.reserved[g] = plan_.groups[g].pages_for(max_len);
    seq.held[g] = 0;
    promised_[g] += seq.reserved[g];
  }
  if (from == nullptr) return id;

  if (has_slots) copier_->copy_slot(from->slot, seq.holdings.slot);
  for (size_t g = 0; g < pools_.size(); ++g) {
    const PageGroupPlan& group = plan_.groups[g];
    const bool full = group.window == 0 && group.chunk == 0;
    const auto num_full = static_cast<size_t>(from->len / group.page_size);
    const auto num_pages = static_cast<size_t>(ceil_div(from->len, group.page_size));
    for (size_t p = 0; p < num_pages; ++p) {
      int32_t page = from->pages[g][p];
      if (page != 0) {
        ++seq.held[g];
        --promised_[g];
        if (full && p < num_full) {
          pools_[g].share(page);
        } else {
          const int32_t copy = take_page(g, keep);
          copier_->copy_page(static_cast<int32_t>(g), page, copy);
          page = copy;
        }
      }
      seq.holdings.pages[g].push_back(page);
    }
  }
  return id;
}

void CacheManager::extend(SequenceId id, int64_t len) {
  Sequence& seq = sequence(id);
  for (size_t g = 0; g < pools_.size(); ++g) {
    std::vector<int32_t>& pages = seq.holdings.pages[g];
    const auto wanted = static_cast<size_t>(ceil_div(len, plan_.groups[g].page_size));
    while (pages.size() < wanted) {
      AD_ICHECK(seq.held[g] < seq.reserved[g], "a sequence takes at most the ", seq.reserved[g],
                " pages that it was promised in group ", g);
      ++seq.held[g];
      --promised_[g];
      pages.push_back(take_page(g, nullptr));
    }
  }
}

void CacheManager::commit(SequenceId id, int64_t len) {
  Sequence& seq = sequence(id);
  AD_ICHECK(len >= seq.holdings.len, "committed tokens never shrink");
  const int64_t before = seq.holdings.len;
  seq.holdings.len = len;
  for (size_t g = 0; g < pools_.size(); ++g) {
    const PageGroupPlan& group = plan_.groups[g];
    std::vector<int32_t>& pages = seq.holdings.pages[g];
    AD_ICHECK(static_cast<int64_t>(pages.size()) * group.page_size >= len, "committed tokens have pages");
    const int64_t first = group.live_begin(before) / group.page_size;
    const int64_t last = group.live_begin(len) / group.page_size;
    for (int64_t p = first; p < last; ++p) {
      int32_t& page = pages[static_cast<size_t>(p)];
      if (page == 0) continue;
      pools_[g].give_back(std::exchange(page, 0));
      --seq.held[g];
      ++promised_[g];
    }
  }
}

void CacheManager::rollback(SequenceId id) {
  Sequence& seq = sequence(id);
  for (size_t g = 0; g < pools_.size(); ++g) {
    std::vector<int32_t>& pages = seq.holdings.pages[g];
    const auto kept = static_cast<size_t>(ceil_div(seq.holdings.len, plan_.groups[g].page_size));
    while (pages.size() > kept) {
      pools_[g].give_back(pages.back());
      pages.pop_back();
      --seq.held[g];
      ++promised_[g];
    }
  }
}

void CacheManager::release(SequenceId id) {
  Sequence& seq = sequence(id);
  for (size_t g = 0; g < pools_.size(); ++g) {
    promised_[g] -= outstanding(seq, g);
    std::vector<int32_t>& pages = seq.holdings.pages[g];
    for (size_t p = pages.size(); p-- > 0;) {
      if (pages[p] != 0) pools_[g].give_back(pages[p]);
    }
    pages.clear();
  }
  if (seq.holdings.slot != 0) slots_.give_back(seq.holdings.slot);
  seq.active = false;
  free_sequences_.push_back(id);
  --num_sequences_;
}

std::optional<SnapshotId> CacheManager::snapshot(SequenceId id) {
  const Sequence& seq = sequence(id);
  Snapshot snapshot{next_snapshot_, {}};
  if (plan_.slots.num_slots > 0) {
    if (!make_slot_free(nullptr)) return std::nullopt;
    const int32_t slot = slots_.take();
    slots_.pin(slot);
    slots_.give_back(slot);
    copier_->copy_slot(seq.holdings.slot, slot);
    snapshot.holdings.slot = slot;
  }
  snapshot.holdings.len = seq.holdings.len;
  for (size_t g = 0; g < pools_.size(); ++g) {
    const auto num_pages = ceil_div(seq.holdings.len, plan_.groups[g].page_size);
    const std::vector<int32_t>& pages = seq.holdings.pages[g];
    snapshot.holdings.pages.emplace_back(pages.begin(), pages.begin() + num_pages);
    for (int32_t page : snapshot.holdings.pages.back()) {
      if (page != 0) pools_[g].pin(page);
    }
  }
  snapshots_.push_back(std::move(snapshot));
  return next_snapshot_++;
}

void CacheManager::drop(SnapshotId snapshot) {
  const auto found = find(snapshot);
  if (found != snapshots_.end()) evict(found);
}

void CacheManager::evict(std::list<Snapshot>::iterator snapshot) {
  const Holdings& holdings = snapshot->holdings;
  for (size_t g = 0; g < pools_.size(); ++g) {
    for (int32_t page : holdings.pages[g]) {
      if (page != 0) pools_[g].unpin(page);
    }
  }
  if (holdings.slot != 0) slots_.unpin(holdings.slot);
  snapshots_.erase(snapshot);
}

int32_t CacheManager::take_page(size_t group, const Snapshot* keep) {
  while (pools_[group].num_free() == 0) {
    AD_ICHECK(!snapshots_.empty() && &snapshots_.front() != keep, "promised pages are free or evictable");
    evict(snapshots_.begin());
  }
  return pools_[group].take();
}

bool CacheManager::make_slot_free(const Snapshot* keep) {
  while (slots_.num_free() == 0) {
    if (snapshots_.empty() || &snapshots_.front() == keep) return false;
    evict(snapshots_.begin());
  }
  return true;
}

std::list<CacheManager::Snapshot>::iterator CacheManager::find(SnapshotId snapshot) {
  return std::find_if(snapshots_.begin(), snapshots_.end(),
                      [&](const Snapshot& s) { return s.id == snapshot; });
}

std::span<const int32_t> CacheManager::pages(SequenceId seq, int32_t group) const {
  return sequence(seq).holdings.pages[static_cast<size_t>(group)];
}

const CacheManager::Sequence& CacheManager::sequence(SequenceId seq) const {
  AD_ICHECK(
      seq >= 0 && static_cast<size_t>(seq) < sequences_.size() && sequences_[static_cast<size_t>(seq)].active,
      "sequence ", seq, " was admitted and not released");
  return sequences_[static_cast<size_t>(seq)];
}

CacheManager::Sequence& CacheManager::sequence(SequenceId seq) {
  return const_cast<Sequence&>(std::as_const(*this).sequence(seq));
}

PoolUsage CacheManager::group_usage(int32_t group) const {
  return usage_of(pools_[static_cast<size_t>(group)]);
}

PoolUsage CacheManager::slot_usage() const { return usage_of(slots_); }

int64_t CacheManager::used_bytes() const {
  int64_t bytes = slots_.num_used() * plan_.slots.slot_bytes;
  for (size_t g = 0; g < pools_.size(); ++g) bytes += pools_[g].num_used() * plan_.groups[g].page_bytes;
  return bytes;
}

int64_t CacheManager::book_bytes() const {
  int64_t bytes = slots_.book_bytes();
  for (const PagePool& pool : pools_) bytes += pool.book_bytes();
  for (const Sequence& seq : sequences_) {
    for (const auto& pages : seq.holdings.pages)
      bytes += static_cast<int64_t>(pages.capacity() * sizeof(int32_t));
  }
  return bytes;
}

int64_t CacheManager::total_bytes() const {
  int64_t bytes = slots_.total() * plan_.slots.slot_bytes;
  for (size_t g = 0; g < pools_.size(); ++g) bytes += pools_[g].total() * plan_.groups[g].page_bytes;
  return bytes;
}

}  // namespace autodeploy
