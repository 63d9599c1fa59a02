// The entry of the library.
#include <nlohmann/json.hpp>

#include "kernels/cuda/cublaslt.h"
#include "runtime/cuda/cuda_backend.h"
#include "runtime/cuda/device_api.h"
#include "runtime/cuda/device_step_executor.h"
#include "runtime/cuda/rates.h"
#include "runtime/device_library.h"

namespace autodeploy::cuda {
namespace {

// 12080 as "12.8".
std::string cuda_version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

std::string describe(int index) {
  const DeviceInfo info = use_device(index);
  std::string why;
  if (LtLinear::make(DType::kBF16, 8, 8, false, &why)) why.clear();
  return nlohmann::ordered_json{
      {"name", info.name},
      {"compute_capability", std::to_string(info.major) + "." + std::to_string(info.minor)},
      {"processors", info.num_sms},
      {"total_bytes", info.total_bytes},
      {"free_bytes", info.free_bytes},
      {"devices", info.num_devices},
      {"driver", cuda_version(info.driver_version)},
      {"runtime", cuda_version(info.runtime_version)},
      {"cublaslt", why.empty() ? nlohmann::ordered_json(true) : nlohmann::ordered_json(why)}}
      .dump();
}

}  // namespace
}  // namespace autodeploy::cuda

extern "C" __attribute__((visibility("default"))) const autodeploy::DeviceLibrary*
autodeploy_device_library() {
  static const autodeploy::DeviceLibrary library = {
      autodeploy::device_library_abi(), autodeploy::cuda::open_step_executor, autodeploy::cuda::open_backend,
      autodeploy::cuda::describe, autodeploy::cuda::measure_rates};
  return &library;
}
