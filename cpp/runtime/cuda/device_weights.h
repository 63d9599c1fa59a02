// A Program's params in the memory of the device, row-major and of their dtypes, in one allocation.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/thread_pool.h"
#include "runtime/cuda/device_api.h"
#include "runtime/program_spec.h"
#include "runtime/weight_program.h"

namespace autodeploy::cuda {

struct DeviceWeights {
  DeviceMemory memory;
  std::vector<void*> data;  // one per param of the Program
  std::vector<int64_t> bytes;
};

// Bytes that the params take.
int64_t plan_device_weights(std::span<const ParamSpec> params);

// Loads all params; errors and progress as load_weights of runtime/weight_loader.h.
DeviceWeights load_device_weights(const WeightProgram& weights, const std::string& artifact_dir,
                                  std::span<const ParamSpec> params, ThreadPool& pool, Queue& queue,
                                  const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace autodeploy::cuda
