#include "runtime/cuda/device_function.h"

#include <cuda_runtime.h>

#include "core/error.h"

namespace autodeploy::cuda {

DeviceFunction::DeviceFunction(std::span<const uint8_t> image, const std::string& symbol,
                               const FunctionConfig& config, std::span<const size_t> param_bytes)
    : config_(config) {
  const auto check = [&](cudaError_t error, ErrorKind kind, const char* what) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();
    if (library_) (void)cudaLibraryUnload(static_cast<cudaLibrary_t>(library_));
    throw Error(kind, detail::concat("[cuda] ", what, " ", symbol, ": ", cudaGetErrorString(error)));
  };
  cudaLibrary_t library = nullptr;
  check(cudaLibraryLoadData(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        ErrorKind::kUnsupported, "loading the kernel");
  library_ = library;
  cudaKernel_t kernel = nullptr;
  check(cudaLibraryGetKernel(&kernel, library, symbol.c_str()), ErrorKind::kInvalidArtifact,
        "looking up the kernel");
  kernel_ = kernel;
  const auto refuse = [&](const std::string& found) {
    (void)cudaLibraryUnload(library);
    throw Error(ErrorKind::kInvalidArtifact,
                detail::concat("[cuda] expected the kernel ", symbol, " to take ", param_bytes.size(),
                               " parameters as described, found ", found));
  };
  for (size_t i = 0; i <= param_bytes.size(); ++i) {
    size_t offset = 0, bytes = 0;
    const cudaError_t error = cudaFuncGetParamInfo(kernel, i, &offset, &bytes);
    if (i == param_bytes.size()) {
      if (error == cudaSuccess) refuse("more");
    } else if (error != cudaSuccess) {
      refuse(detail::concat(i));
    } else if (bytes != param_bytes[i]) {
      refuse(detail::concat("number ", i, " of ", bytes, " bytes"));
    }
  }
  (void)cudaGetLastError();
  if (config_.shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(config_.shared_bytes)),
          ErrorKind::kUnsupported, "making room in shared memory for the kernel");
  }
  const int cluster = config_.cluster[0] * config_.cluster[1] * config_.cluster[2];
  if (cluster > 8) {  // beyond what every device of the architecture promises
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
          ErrorKind::kUnsupported, "allowing the cluster of the kernel");
  }
}

DeviceFunction::~DeviceFunction() {
  if (library_) (void)cudaLibraryUnload(static_cast<cudaLibrary_t>(library_));
}

void DeviceFunction::launch(const dim3& grid, void** params, Stream stream) const {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  const auto& c = config_.cluster;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(grid.x * static_cast<unsigned>(c[0]), grid.y * static_cast<unsigned>(c[1]),
                        grid.z * static_cast<unsigned>(c[2]));
  config.blockDim = dim3(static_cast<unsigned>(config_.threads));
  config.dynamicSmemBytes = config_.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(c[0]);
  attribute.val.clusterDim.y = static_cast<unsigned>(c[1]);
  attribute.val.clusterDim.z = static_cast<unsigned>(c[2]);
  config.attrs = &attribute;
  config.numAttrs = c[0] * c[1] * c[2] > 1 ? 1 : 0;
  const cudaError_t error = cudaLaunchKernelExC(&config, kernel_, params);
  if (error != cudaSuccess) note_launch_error(cudaGetErrorString(error));
}

}  // namespace autodeploy::cuda
