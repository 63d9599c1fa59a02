// CacheManager::audit: the books are recounted from the page tables.
#include <vector>

#include "cache_manager/cache_manager.h"
#include "core/error.h"

namespace autodeploy {
namespace {

struct Owners {
  std::vector<int32_t> sequences, snapshots;  // [num_pages]
};

void audit_pool(const PagePool& pool, const Owners& counted, const char* what, size_t group) {
  std::vector<bool> is_free(static_cast<size_t>(pool.total()) + 1);
  for (int32_t page : pool.free_pages()) {
    AD_ICHECK(page > 0 && page <= pool.total() && !is_free[static_cast<size_t>(page)], what, " ", page,
              " of group ", group, " is in the free list once");
    is_free[static_cast<size_t>(page)] = true;
  }
  int64_t used = 0, cached = 0;
  for (int32_t page = 1; page <= pool.total(); ++page) {
    const auto p = static_cast<size_t>(page);
    AD_ICHECK(
        counted.sequences[p] == pool.num_sequences(page) && counted.snapshots[p] == pool.num_snapshots(page),
        what, " ", page, " of group ", group, " has the owners in its books: counted ", counted.sequences[p],
        "+", counted.snapshots[p], ", booked ", pool.num_sequences(page), "+", pool.num_snapshots(page));
    const bool owned = counted.sequences[p] + counted.snapshots[p] > 0;
    AD_ICHECK(owned != is_free[p], what, " ", page, " of group ", group, " is either owned or free");
    used += counted.sequences[p] > 0;
    cached += counted.sequences[p] == 0 && counted.snapshots[p] > 0;
  }
  AD_ICHECK(used == pool.num_used() && cached == pool.num_cached() &&
                pool.num_free() + cached + used == pool.total(),
            what, "s of group ", group, ": free ", pool.num_free(), " + cached ", cached, " + used ", used,
            " = total ", pool.total());
}

}  // namespace

void CacheManager::audit() const {
  int32_t active = 0;
  for (const Sequence& seq : sequences_) active += seq.active;
  AD_ICHECK(
      active == num_sequences_ && free_sequences_.size() + static_cast<size_t>(active) == sequences_.size(),
      "every sequence is active or free");

  for (size_t g = 0; g < pools_.size(); ++g) {
    const auto num_pages = static_cast<size_t>(pools_[g].total()) + 1;
    Owners counted{std::vector<int32_t>(num_pages), std::vector<int32_t>(num_pages)};
    std::vector<const Sequence*> last_seen(num_pages);
    int64_t promised = 0;
    for (const Sequence& seq : sequences_) {
      if (!seq.active) continue;
      int64_t held = 0;
      for (int32_t page : seq.holdings.pages[g]) {
        if (page == 0) continue;
        const auto p = static_cast<size_t>(page);
        AD_ICHECK(page > 0 && p < num_pages && last_seen[p] != &seq, "page ", page, " of group ", g,
                  " is once in the table of a sequence");
        last_seen[p] = &seq;
        ++counted.sequences[p];
        ++held;
      }
      AD_ICHECK(held == seq.held[g] && held <= seq.reserved[g], "a sequence holds ", held, " pages of group ",
                g, ", books say ", seq.held[g], " of at most ", seq.reserved[g]);
      promised += outstanding(seq, g);
    }
    for (const Snapshot& snapshot : snapshots_) {
      for (int32_t page : snapshot.holdings.pages[g]) {
        if (page != 0) ++counted.snapshots[static_cast<size_t>(page)];
      }
    }
    audit_pool(pools_[g], counted, "page", g);
    AD_ICHECK(promised == promised_[g] && promised <= pools_[g].num_free() + pools_[g].num_cached(), promised,
              " promised pages of group ", g, " (books: ", promised_[g], ") are covered by ",
              pools_[g].num_free(), " free and ", pools_[g].num_cached(), " cached ones");
  }

  Owners slots{std::vector<int32_t>(static_cast<size_t>(slots_.total()) + 1),
               std::vector<int32_t>(static_cast<size_t>(slots_.total()) + 1)};
  for (const Sequence& seq : sequences_) {
    if (seq.active && seq.holdings.slot != 0) ++slots.sequences[static_cast<size_t>(seq.holdings.slot)];
  }
  for (const Snapshot& snapshot : snapshots_) {
    if (snapshot.holdings.slot != 0) ++slots.snapshots[static_cast<size_t>(snapshot.holdings.slot)];
  }
  audit_pool(slots_, slots, "slot", 0);
  for (int32_t slot = 1; slot <= slots_.total(); ++slot) {
    AD_ICHECK(slots_.num_sequences(slot) + slots_.num_snapshots(slot) <= 1, "slot ", slot, " has one owner");
  }
}

}  // namespace autodeploy
