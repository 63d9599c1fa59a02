#include "runtime/cuda/device_weights.h"

#include "core/error.h"
#include "runtime/weight_loader.h"

namespace autodeploy::cuda {
namespace {

constexpr int64_t kAlignment = 256;
int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
int64_t bytes_of(const ParamSpec& p) { return p.numel() * dtype_size(p.dtype); }

}  // namespace

int64_t plan_device_weights(std::span<const ParamSpec> params) {
  int64_t total = 0;
  for (const ParamSpec& p : params) total += aligned(bytes_of(p));
  return total;
}

DeviceWeights load_device_weights(const WeightProgram& weights, const std::string& artifact_dir,
                                  std::span<const ParamSpec> params, ThreadPool& pool, Queue& queue,
                                  const std::function<void(int64_t, int64_t)>& progress) {
  std::vector<ParamSpec> plain(params.begin(), params.end());
  for (ParamSpec& p : plain) {
    p.used_as_plain = true;
    p.used_as_weight = false;
  }
  const LoadedWeights host = load_weights(weights, artifact_dir, plain, pool, progress);
  DeviceWeights device;
  device.memory = DeviceMemory(plan_device_weights(params), "weights");
  uint8_t* next = device.memory.data();
  for (const ParamSpec& p : plain) {
    device.data.push_back(next);
    device.bytes.push_back(bytes_of(p));
    queue.copy_to_device(next, host.plain(p.name).data, bytes_of(p));
    next += aligned(bytes_of(p));
  }
  queue.wait();
  return device;
}

}  // namespace autodeploy::cuda
