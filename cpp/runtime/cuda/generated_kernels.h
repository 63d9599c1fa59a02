// Kernels of instructions that were compiled ahead of time and lie in the artifact (docs/kernels.md).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "core/dtype.h"
#include "kernels/kernel.h"
#include "runtime/compiled_kernels.h"
#include "runtime/cuda/device_api.h"
#include "runtime/cuda/device_function.h"

namespace autodeploy::cuda {

class GeneratedKernels {
 public:
  // Those of an artifact for the current device and an activation type; nullptr where it has none at all.
  // Throws Error(kInvalidArtifact) where kernels.json is malformed.
  static std::unique_ptr<GeneratedKernels> load(const std::string& artifact_dir, DType act,
                                                const DeviceInfo& device);

  // The kernel of an instruction, "region.generated" say; nullptr with the reason in *why, which stays empty
  // where none was compiled for the instruction. `body` is -1 in the Program itself. Throws
  // Error(kInvalidArtifact) where its description or its binary is wrong.
  std::unique_ptr<Kernel> make(int32_t body, std::span<const int32_t> path, const KernelSpec& spec,
                               std::string* why);

 private:
  GeneratedKernels(std::shared_ptr<const CompiledKernels> kernels, DType act, const DeviceInfo& device)
      : kernels_(std::move(kernels)), act_(act), device_(device) {}
  int32_t choose(const CompiledLaunch& launch) const;
  std::shared_ptr<const DeviceFunction> function(int32_t index);

  std::shared_ptr<const CompiledKernels> kernels_;
  DType act_;
  DeviceInfo device_;
  std::map<int32_t, std::shared_ptr<const DeviceFunction>> functions_;  // loaded when first asked for
};

}  // namespace autodeploy::cuda
