#include "runtime/cuda/device_api.h"

#include <cuda_runtime.h>

#include "core/error.h"

namespace autodeploy::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw Error(
      error == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kInternal,
      detail::concat("[cuda] ", what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}

}  // namespace

DeviceInfo use_device(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  AD_CHECK(error == cudaSuccess, ErrorKind::kUnsupported,
           "[cuda] expected a GPU and its driver, found none: ", cudaGetErrorString(error));
  AD_CHECK(index >= 0 && index < count, ErrorKind::kUnsupported, "[cuda] expected a GPU from 0 to ",
           count - 1, ", found ", index);
  check(cudaSetDevice(index), "choosing the GPU");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "asking for the GPU's properties");
  size_t free_bytes = 0, total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "asking for the GPU's memory");
  DeviceInfo info;
  info.name = properties.name;
  info.major = properties.major, info.minor = properties.minor;
  info.num_sms = properties.multiProcessorCount;
  info.total_bytes = static_cast<int64_t>(total_bytes);
  info.free_bytes = static_cast<int64_t>(free_bytes);
  info.max_shared_bytes = static_cast<int64_t>(properties.sharedMemPerBlockOptin);
  info.can_overlap = properties.major >= 9;
  info.num_devices = count;
  check(cudaDriverGetVersion(&info.driver_version), "asking for the driver's version");
  check(cudaRuntimeGetVersion(&info.runtime_version), "asking for CUDA's version");
  return info;
}

void make_current(int index) { check(cudaSetDevice(index), "choosing the GPU"); }

DeviceMemory::DeviceMemory(int64_t bytes, const char* what) {
  if (bytes <= 0) return;
  void* p = nullptr;
  if (const cudaError_t error = cudaMalloc(&p, static_cast<size_t>(bytes)); error != cudaSuccess) {
    (void)cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaMemGetInfo(&free_bytes, &total_bytes);
    throw Error(ErrorKind::kOutOfMemory,
                detail::concat("[cuda] expected ", bytes, " bytes of the GPU's memory for ", what, ", found ",
                               free_bytes, " free of ", total_bytes, ": ", cudaGetErrorString(error)));
  }
  data_ = static_cast<uint8_t*>(p);
  bytes_ = bytes;
}
DeviceMemory::~DeviceMemory() {
  if (data_) (void)cudaFree(data_);
}

PinnedMemory::PinnedMemory(int64_t bytes, const char* what) {
  if (bytes <= 0) return;
  void* p = nullptr;
  const cudaError_t error = cudaHostAlloc(&p, static_cast<size_t>(bytes), cudaHostAllocDefault);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    throw Error(ErrorKind::kOutOfMemory,
                detail::concat("[cuda] expected ", bytes, " bytes of pinned host memory for ", what, ": ",
                               cudaGetErrorString(error)));
  }
  data_ = static_cast<uint8_t*>(p);
  bytes_ = bytes;
}
PinnedMemory::~PinnedMemory() {
  if (data_) (void)cudaFreeHost(data_);
}

Event::Event(bool timed) {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming),
        "making an event");
  event_ = event;
}
Event::~Event() {
  if (event_) (void)cudaEventDestroy(static_cast<cudaEvent_t>(event_));
}
void Event::record(Stream stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(event_), stream), "recording an event");
}
void Event::wait() { check(cudaEventSynchronize(static_cast<cudaEvent_t>(event_)), "waiting for the GPU"); }
float Event::milliseconds_since(const Event& earlier) const {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier.event_), static_cast<cudaEvent_t>(event_)),
        "timing events");
  return ms;
}

Graph::~Graph() {
  if (exec_) (void)cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(exec_));
}
void Graph::launch(Stream stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(exec_), stream), "launching a graph");
}

Queue::Queue() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
Queue::~Queue() {
  if (stream_) (void)cudaStreamDestroy(stream_);
}
void Queue::copy_to_device(void* dst, const void* src, int64_t bytes) {
  if (bytes > 0)
    check(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyHostToDevice, stream_),
          "copying to the GPU");
}
void Queue::copy_to_host(void* dst, const void* src, int64_t bytes) {
  if (bytes > 0)
    check(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToHost, stream_),
          "copying from the GPU");
}
void Queue::copy_on_device(void* dst, const void* src, int64_t bytes) {
  if (bytes > 0)
    check(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
          "copying on the GPU");
}
void Queue::fill(void* dst, uint8_t byte, int64_t bytes) {
  if (bytes > 0)
    check(cudaMemsetAsync(dst, byte, static_cast<size_t>(bytes), stream_), "filling the GPU's memory");
}
void Queue::wait() { check(cudaStreamSynchronize(stream_), "waiting for the GPU"); }
void Queue::begin_recording() {
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "beginning a graph");
}
Graph Queue::end_recording() {
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_, &graph), "ending a graph");
  struct Destroy {
    cudaGraph_t graph;
    ~Destroy() { (void)cudaGraphDestroy(graph); }
  } destroy{graph};
  Graph result;
  cudaGraphExec_t exec = nullptr;
  check(cudaGraphInstantiate(&exec, graph, 0), "making a graph ready");
  result.exec_ = exec;
  check(cudaGraphUpload(exec, stream_), "uploading a graph");
  return result;
}
void Queue::abandon_recording() noexcept {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream_, &status) == cudaSuccess && status == cudaStreamCaptureStatusNone) return;
  cudaGraph_t graph = nullptr;
  (void)cudaStreamEndCapture(stream_, &graph);
  if (graph) (void)cudaGraphDestroy(graph);
  (void)cudaGetLastError();
}

}  // namespace autodeploy::cuda
