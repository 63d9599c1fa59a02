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
  std::vector<void*> data;  // one per param of the Program; empty params have an address, too
  std::vector<int64_t> bytes;
  std::vector<std::string>
      notes;  // what a user should know: weights that take more room than they are stored in
};

// What loading takes, known without opening a file.
struct DeviceWeightPlan {
  int64_t bytes = 0;          // of the device
  int64_t pinned_bytes = 0;   // of the host, while loading
  int64_t scratch_bytes = 0;  // of the host besides, at most: what is made of cut rows, mapped pages
  std::vector<std::string> notes;
};

// Checks that the weight program gives every param, as plan_weights of runtime/weight_loader.h.
DeviceWeightPlan plan_device_weights(const WeightProgram& weights, std::span<const ParamSpec> params,
                                     int num_threads);

// Loads all params; errors and progress as load_weights of runtime/weight_loader.h. Several threads read rows
// into pinned buffers, from which the device copies meanwhile; block formats are dequantized on the way, and
// weights that with_dummy_weights made up are made by the device. After an error nothing stays allocated.
DeviceWeights load_device_weights(const WeightProgram& weights, const std::string& artifact_dir,
                                  std::span<const ParamSpec> params, ThreadPool& pool, Queue& queue,
                                  const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace autodeploy::cuda
