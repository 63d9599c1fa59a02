// The memory behind the pages and slots, on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "core/state.h"

namespace autodeploy {

// Copies state between pages and slots. A backend with its own memory implements this over its queue of work.
class StateCopier {
 public:
  virtual ~StateCopier() = default;
  // Copies a page of every state of a group, or a slot of every slot state.
  virtual void copy_page(int32_t group, int32_t from, int32_t to) = 0;
  virtual void copy_slot(int32_t from, int32_t to) = 0;
};

// Anonymous memory of the host, zeroed, aligned to a page of the machine, returned when destroyed.
class HostMemory {
 public:
  HostMemory() = default;
  // Throws Error(kOutOfMemory) when the operating system refuses. `what` names the memory in that message.
  HostMemory(int64_t bytes, const char* what);
  ~HostMemory();
  HostMemory(HostMemory&& other) noexcept;
  HostMemory& operator=(HostMemory&& other) noexcept;

  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  // Huge pages are quicker to read, but come whole at the first touch: for memory that will be populated.
  void prefer_huge_pages() const;
  // Backs [begin, end) with real memory now rather than at first use.
  void populate(int64_t begin, int64_t end) const;

 private:
  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Where the states of a plan lie in plan.bytes() bytes from `base` on, one after another: one entry per
// state.
std::vector<StateMemory> place_states(const CachePlan& plan, uint8_t* base);

// One allocation for all states of a plan.
class HostStatePools final : public StateCopier {
 public:
  explicit HostStatePools(const CachePlan& plan);

  // One per state of the plan, in order; valid as long as the pools.
  const std::vector<StateMemory>& memory() const { return memory_; }
  const HostMemory& storage() const { return storage_; }

  void copy_page(int32_t group, int32_t from, int32_t to) override;
  void copy_slot(int32_t from, int32_t to) override;

 private:
  void copy(int32_t state, int32_t from, int32_t to);

  std::vector<std::vector<int32_t>> group_states_;
  std::vector<int32_t> slot_states_;
  HostMemory storage_;
  std::vector<StateMemory> memory_;
};

}  // namespace autodeploy
