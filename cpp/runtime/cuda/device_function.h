// A kernel from a binary, which the device's driver loads: device_function.cc does this with CUDA; the
// emulation (kernels/cuda/emulation/device_function_emulated.cc) runs no machine code, and says so.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

struct FunctionConfig {
  int threads = 0;          // per block
  size_t shared_bytes = 0;  // dynamic, per block
  std::array<int, 3> cluster{1, 1, 1};
};

class DeviceFunction {
 public:
  // Loads machine code, or PTX with a NUL behind it, for the current device. `param_bytes` are the sizes of
  // the function's parameters. Throws Error(kUnsupported) where the driver does not take the image, Error(
  // kInvalidArtifact) where the function is another than described.
  DeviceFunction(std::span<const uint8_t> image, const std::string& symbol, const FunctionConfig& config,
                 std::span<const size_t> param_bytes);
  ~DeviceFunction();
  DeviceFunction(const DeviceFunction&) = delete;
  DeviceFunction& operator=(const DeviceFunction&) = delete;

  // One pointer per parameter, read before it returns. Allocates nothing; errors are kept for
  // take_launch_error(). The grid counts clusters.
  void launch(const dim3& grid, void** params, Stream stream) const;

 private:
  FunctionConfig config_;
  void* library_ = nullptr;
  void* kernel_ = nullptr;
};

}  // namespace autodeploy::cuda
