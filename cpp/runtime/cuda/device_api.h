// The device as the runtime uses it: memory, a queue of work, events, graphs. device_api.cc does this with
// CUDA, kernels/cuda/emulation/device_api_emulated.cc on the host. Failures throw Error: kOutOfMemory where
// memory is short, else kInternal with CUDA's words.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  // compute capability
  int num_sms = 0;
  int64_t total_bytes = 0, free_bytes = 0;  // of memory; free: now
  int64_t max_shared_bytes = 0;             // of a block
  bool can_overlap = false;                 // programmatic dependent launch
  int num_devices = 0;
  int driver_version = 0,
      runtime_version = 0;  // of CUDA, 12080 for 12.8: what the driver knows, what is used
};

// Makes the device the calling thread's, and says what it is. Throws Error(kUnsupported) where there is none
// of that number, or its driver is too old.
DeviceInfo use_device(int index);

// Makes a device that use_device() has seen the calling thread's: every thread that puts work into a queue
// does so.
void make_current(int index);

// Bytes that belong to one owner.
class Allocation {
 public:
  uint8_t* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 protected:
  Allocation() = default;
  ~Allocation() = default;
  Allocation(Allocation&& o) noexcept
      : data_(std::exchange(o.data_, nullptr)), bytes_(std::exchange(o.bytes_, 0)) {}
  Allocation& operator=(Allocation&& o) noexcept {
    std::swap(data_, o.data_);
    std::swap(bytes_, o.bytes_);
    return *this;
  }

  uint8_t* data_ = nullptr;
  int64_t bytes_ = 0;
};

// Memory of the device, 256-byte aligned.
class DeviceMemory : public Allocation {
 public:
  DeviceMemory() = default;
  DeviceMemory(int64_t bytes, const char* what);  // `what` names it in messages
  ~DeviceMemory();
  DeviceMemory(DeviceMemory&&) noexcept = default;
  DeviceMemory& operator=(DeviceMemory&&) noexcept = default;
};

// Memory of the host that the device copies from and to by itself.
class PinnedMemory : public Allocation {
 public:
  PinnedMemory() = default;
  PinnedMemory(int64_t bytes, const char* what);
  ~PinnedMemory();
  PinnedMemory(PinnedMemory&&) noexcept = default;
  PinnedMemory& operator=(PinnedMemory&&) noexcept = default;
};

// A mark in a queue.
class Event {
 public:
  explicit Event(bool timed = false);
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(Stream stream);
  void wait();                                           // on the host
  float milliseconds_since(const Event& earlier) const;  // both timed and passed

 private:
  void* event_ = nullptr;
};

// A recorded sequence of work that is put into a queue at once.
class Graph {
 public:
  Graph() = default;
  ~Graph();
  Graph(Graph&& o) noexcept : exec_(std::exchange(o.exec_, nullptr)) {}
  Graph& operator=(Graph&& o) noexcept {
    std::swap(exec_, o.exec_);
    return *this;
  }
  explicit operator bool() const { return exec_ != nullptr; }
  void launch(Stream stream) const;

 private:
  friend class Queue;
  void* exec_ = nullptr;
};

// A queue of work; what is put into it runs in order.
class Queue {
 public:
  Queue();
  ~Queue();
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  Stream stream() const { return stream_; }
  void copy_to_device(void* dst, const void* src, int64_t bytes);  // src: pinned, else the call waits
  void copy_to_host(void* dst, const void* src, int64_t bytes);    // likewise dst
  void copy_on_device(void* dst, const void* src, int64_t bytes);
  void fill(void* dst, uint8_t byte, int64_t bytes);
  void wait();  // until all is done
  // Everything put into the queue between these two becomes a graph, and does not run. abandon_recording()
  // after a failure.
  void begin_recording();
  Graph end_recording();
  void abandon_recording() noexcept;

 private:
  Stream stream_ = nullptr;
};

}  // namespace autodeploy::cuda
