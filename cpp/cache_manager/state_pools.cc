#include "cache_manager/state_pools.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace autodeploy {

HostMemory::HostMemory(int64_t bytes, const char* what) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  AD_CHECK(p != MAP_FAILED, ErrorKind::kOutOfMemory, "[", what, "] expected ", bytes,
           " bytes of memory, but the system refused: ", std::strerror(errno),
           "; lower the limits of the engine");
  data_ = static_cast<uint8_t*>(p);
}

HostMemory::~HostMemory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

HostMemory::HostMemory(HostMemory&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

HostMemory& HostMemory::operator=(HostMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void HostMemory::prefer_huge_pages() const {
#ifdef MADV_HUGEPAGE
  if (data_ != nullptr)
    madvise(data_, static_cast<size_t>(bytes_), MADV_HUGEPAGE);  // a wish; nothing depends on it
#endif
}

void HostMemory::populate(int64_t begin, int64_t end) const {
  const int64_t step = sysconf(_SC_PAGESIZE);
  for (int64_t i = begin / step * step; i < std::min(end, bytes_); i += step) {
    volatile uint8_t* byte = data_ + i;
    *byte = *byte;  // keeps what is there, so it may run beside writers of other bytes
  }
}

std::vector<StateMemory> place_states(const CachePlan& plan, uint8_t* base) {
  std::vector<StateMemory> places(plan.component_bytes.size());
  uint8_t* next = base;
  const auto place = [&](int32_t state, int32_t units) {
    StateMemory& memory = places[static_cast<size_t>(state)];
    for (int64_t bytes : plan.component_bytes[static_cast<size_t>(state)]) {
      memory.data.push_back(next);
      memory.bytes.push_back(bytes);
      next += bytes * units;
    }
  };
  for (const PageGroupPlan& group : plan.groups) {
    for (int32_t state : group.states) place(state, group.num_pages);
  }
  for (int32_t state : plan.slots.states) place(state, plan.slots.num_slots);
  AD_ICHECK(next == base + plan.bytes(), "the pools take exactly what the plan says");
  return places;
}

HostStatePools::HostStatePools(const CachePlan& plan)
    : slot_states_(plan.slots.states),
      storage_(plan.bytes(), "caches"),
      memory_(place_states(plan, storage_.data())) {
  for (const PageGroupPlan& group : plan.groups) group_states_.push_back(group.states);
}

void HostStatePools::copy_page(int32_t group, int32_t from, int32_t to) {
  for (int32_t state : group_states_[static_cast<size_t>(group)]) copy(state, from, to);
}

void HostStatePools::copy_slot(int32_t from, int32_t to) {
  for (int32_t state : slot_states_) copy(state, from, to);
}

void HostStatePools::copy(int32_t state, int32_t from, int32_t to) {
  const StateMemory& memory = memory_[static_cast<size_t>(state)];
  for (size_t c = 0; c < memory.data.size(); ++c) {
    std::memcpy(memory.data[c] + to * memory.bytes[c], memory.data[c] + from * memory.bytes[c],
                static_cast<size_t>(memory.bytes[c]));
  }
}

}  // namespace autodeploy
