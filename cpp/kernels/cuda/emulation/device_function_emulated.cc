// The emulation has sources to run, and nothing for machine code.
#include "core/error.h"
#include "runtime/cuda/device_function.h"

namespace autodeploy::cuda {

DeviceFunction::DeviceFunction(std::span<const uint8_t>, const std::string& symbol, const FunctionConfig&,
                               std::span<const size_t>) {
  throw Error(ErrorKind::kUnsupported,
              "[cuda] expected a GPU to run the kernel " + symbol + ", found its emulation");
}
DeviceFunction::~DeviceFunction() = default;
void DeviceFunction::launch(const dim3&, void**, Stream) const {}

}  // namespace autodeploy::cuda
