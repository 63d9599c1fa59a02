// The device's queue, memory and graphs on the host: work runs when it is put into the queue, or is recorded.
#include "runtime/cuda/device_api.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

#include "core/error.h"

namespace autodeploy::cuda {
namespace {

using Work = std::vector<std::function<void()>>;

uint8_t* allocate(int64_t bytes, const char* what) {
  void* p = std::aligned_alloc(256, static_cast<size_t>((bytes + 255) / 256 * 256));
  AD_CHECK(p, ErrorKind::kOutOfMemory, "[cuda] expected ", bytes, " bytes of memory for ", what,
           ", found less");
  std::memset(p, 0xff, static_cast<size_t>(bytes));  // nobody may count on zeros
  return static_cast<uint8_t*>(p);
}

}  // namespace

DeviceInfo use_device(int index) {
  AD_CHECK(index == 0, ErrorKind::kUnsupported, "[cuda] expected a GPU from 0 to 0, found ", index);
  DeviceInfo info;
  info.name = "emulated";
  info.major = 9;
  info.num_sms = 4;
  info.total_bytes = info.free_bytes = int64_t{4} << 30;
  info.max_shared_bytes = static_cast<int64_t>(simt::kMaxShared);
  info.can_overlap = true;
  info.num_devices = 1;
  return info;
}

void make_current(int) {}

DeviceMemory::DeviceMemory(int64_t bytes, const char* what) {
  if (bytes <= 0) return;
  data_ = allocate(bytes, what);
  bytes_ = bytes;
}
DeviceMemory::~DeviceMemory() { std::free(data_); }
PinnedMemory::PinnedMemory(int64_t bytes, const char* what) {
  if (bytes <= 0) return;
  data_ = allocate(bytes, what);
  bytes_ = bytes;
}
PinnedMemory::~PinnedMemory() { std::free(data_); }

// Work is done when it is put into the queue, so the host's clock tells the time of a mark.
using Clock = std::chrono::steady_clock;
Event::Event(bool) : event_(new Clock::time_point) {}
Event::~Event() { delete static_cast<Clock::time_point*>(event_); }
void Event::record(Stream) { *static_cast<Clock::time_point*>(event_) = Clock::now(); }
void Event::wait() {}
float Event::milliseconds_since(const Event& earlier) const {
  const auto passed =
      *static_cast<Clock::time_point*>(event_) - *static_cast<Clock::time_point*>(earlier.event_);
  return std::chrono::duration<float, std::milli>(passed).count();
}

Graph::~Graph() { delete static_cast<Work*>(exec_); }
void Graph::launch(Stream) const {
  for (const auto& work : *static_cast<const Work*>(exec_)) work();
}

Queue::Queue() : stream_(new simt::Stream) {}
Queue::~Queue() {
  abandon_recording();
  delete stream_;
}
void Queue::copy_to_device(void* dst, const void* src, int64_t bytes) { copy_on_device(dst, src, bytes); }
void Queue::copy_to_host(void* dst, const void* src, int64_t bytes) { copy_on_device(dst, src, bytes); }
void Queue::copy_on_device(void* dst, const void* src, int64_t bytes) {
  if (bytes > 0) simt::enqueue(stream_, [=] { std::memcpy(dst, src, static_cast<size_t>(bytes)); });
}
void Queue::fill(void* dst, uint8_t byte, int64_t bytes) {
  if (bytes > 0) simt::enqueue(stream_, [=] { std::memset(dst, byte, static_cast<size_t>(bytes)); });
}
void Queue::wait() {}
void Queue::begin_recording() { stream_->recording = new Work; }
Graph Queue::end_recording() {
  Graph graph;
  Work* work = std::exchange(stream_->recording, nullptr);
  AD_ICHECK(work, "a recording is begun before it ends");
  graph.exec_ = work;
  return graph;
}
void Queue::abandon_recording() noexcept { delete std::exchange(stream_->recording, nullptr); }

}  // namespace autodeploy::cuda
