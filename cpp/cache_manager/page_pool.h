// The books of one page pool: who owns a page, and which pages are free.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace autodeploy {

// A page is free (nobody owns it), used (at least one sequence does) or cached (snapshots alone do). Page 0
// is null: it is never handed out and in none of the counts. Every owner counts once; nothing here allocates
// after construction.
class PagePool {
 public:
  // num_pages includes the null page.
  explicit PagePool(int32_t num_pages);

  // Takes a free page for a sequence. Requires num_free() > 0.
  int32_t take();
  // Another sequence, or a snapshot, becomes an owner of a page that is not free.
  void share(int32_t page);
  void pin(int32_t page);
  // A sequence, or a snapshot, gives its ownership up; the page is free when no owner is left.
  void give_back(int32_t page);
  void unpin(int32_t page);

  int32_t num_free() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_cached() const { return num_cached_; }
  int32_t num_used() const { return total() - num_free() - num_cached_; }
  int32_t total() const { return static_cast<int32_t>(sequences_.size()) - 1; }
  int32_t num_sequences(int32_t page) const { return sequences_[static_cast<size_t>(page)]; }
  int32_t num_snapshots(int32_t page) const { return snapshots_[static_cast<size_t>(page)]; }
  int64_t book_bytes() const { return static_cast<int64_t>(3 * sequences_.size() * sizeof(int32_t)); }
  const std::vector<int32_t>& free_pages() const { return free_; }

 private:
  void freed_if_ownerless(size_t page);

  std::vector<int32_t> free_;       // a stack: the page freed last is warm
  std::vector<int32_t> sequences_;  // [num_pages] owners that are sequences
  std::vector<int32_t> snapshots_;  // [num_pages] owners that are snapshots
  int32_t num_cached_ = 0;
};

}  // namespace autodeploy
