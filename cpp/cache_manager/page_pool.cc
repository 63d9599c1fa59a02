#include "cache_manager/page_pool.h"

#include "core/error.h"

namespace autodeploy {

PagePool::PagePool(int32_t num_pages)
    : sequences_(static_cast<size_t>(num_pages)), snapshots_(static_cast<size_t>(num_pages)) {
  AD_ICHECK(num_pages >= 1, "a pool has at least its null page");
  free_.reserve(static_cast<size_t>(num_pages));
  for (int32_t page = num_pages - 1; page > 0; --page) free_.push_back(page);
}

int32_t PagePool::take() {
  AD_ICHECK(!free_.empty(), "a page is taken only where one was promised");
  const int32_t page = free_.back();
  free_.pop_back();
  sequences_[static_cast<size_t>(page)] = 1;
  return page;
}

void PagePool::share(int32_t page) {
  const auto p = static_cast<size_t>(page);
  AD_ICHECK(page > 0 && sequences_[p] + snapshots_[p] > 0, "page ", page, " is shared, so somebody owns it");
  if (sequences_[p]++ == 0) --num_cached_;
}

void PagePool::pin(int32_t page) {
  const auto p = static_cast<size_t>(page);
  AD_ICHECK(page > 0 && sequences_[p] + snapshots_[p] > 0, "page ", page, " is pinned, so somebody owns it");
  ++snapshots_[p];
}

void PagePool::give_back(int32_t page) {
  const auto p = static_cast<size_t>(page);
  AD_ICHECK(page > 0 && sequences_[p] > 0, "page ", page, " is given back by a sequence that owns it");
  if (--sequences_[p] > 0) return;
  if (snapshots_[p] > 0) ++num_cached_;
  freed_if_ownerless(p);
}

void PagePool::unpin(int32_t page) {
  const auto p = static_cast<size_t>(page);
  AD_ICHECK(page > 0 && snapshots_[p] > 0, "page ", page, " is unpinned by a snapshot that owns it");
  --snapshots_[p];
  if (snapshots_[p] == 0 && sequences_[p] == 0) --num_cached_;
  freed_if_ownerless(p);
}

void PagePool::freed_if_ownerless(size_t page) {
  if (sequences_[page] == 0 && snapshots_[page] == 0) free_.push_back(static_cast<int32_t>(page));
}

}  // namespace autodeploy
