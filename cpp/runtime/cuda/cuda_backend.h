// Opens an artifact on a GPU.
#pragma once

#include <memory>
#include <string>

#include "runtime/engine_backend.h"

namespace autodeploy::cuda {

// As open_cpu_backend of runtime/engine_backend.h, for options.device.
std::unique_ptr<EngineBackend> open_backend(const std::string& artifact_dir, const EngineOptions& options,
                                            const LoadProgress& progress);

}  // namespace autodeploy::cuda
