// The entry of the library.
#include <nlohmann/json.hpp>

#include "runtime/cuda/cuda_backend.h"
#include "runtime/cuda/device_api.h"
#include "runtime/cuda/device_step_executor.h"
#include "runtime/device_library.h"

namespace autodeploy::cuda {
namespace {

std::string describe(int index) {
  const DeviceInfo info = use_device(index);
  return nlohmann::ordered_json{
      {"name", info.name},
      {"compute_capability", std::to_string(info.major) + "." + std::to_string(info.minor)},
      {"processors", info.num_sms},
      {"total_bytes", info.total_bytes},
      {"free_bytes", info.free_bytes}}
      .dump();
}

}  // namespace
}  // namespace autodeploy::cuda

extern "C" __attribute__((visibility("default"))) const autodeploy::DeviceLibrary*
autodeploy_device_library() {
  static const autodeploy::DeviceLibrary library = {
      autodeploy::device_library_abi(), autodeploy::cuda::open_step_executor, autodeploy::cuda::open_backend,
      autodeploy::cuda::describe};
  return &library;
}
