// The libraries that bring a device: libautodeploy_cuda, and its emulation for tests. Nothing links them;
// they are loaded when a user asks for the device, from the folder of this library or where
// AUTODEPLOY_DEVICE_LIBRARIES says.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "runtime/engine_backend.h"
#include "runtime/step_executor.h"

namespace autodeploy {

struct DeviceExecutorOptions {
  int64_t max_tokens = 0, max_seqs = 0, max_rows = 0, max_seq_len = 0;
  DType act = DType::kF32;
  bool poison = false;           // values are NaN or -1 until they are written, and share no memory
  bool replay = false;           // decode-only steps are recorded as graphs and replayed
  bool dummy = false;            // weights are made up
  bool uniform_routing = false;  // and rows go to any experts alike
  int num_threads = 0;           // of the host, for loading
};

// What is measured: a copy of so many bytes, and products [rows, depth] x [cols, depth]^T.
struct RateOptions {
  int64_t copy_bytes = 0, rows = 0, cols = 0, depth = 0;
  DType act = DType::kBF16;
};

// What such a library provides. Objects of C++ cross this border, so both sides are of one build: `abi` says
// so.
struct DeviceLibrary {
  const char* abi = nullptr;
  std::unique_ptr<StepExecutor> (*open_executor)(
      const std::string& artifact_dir, const DeviceExecutorOptions& options,
      FunctionRef<CachePlan(std::vector<StateSpec>&)> plan) = nullptr;
  std::unique_ptr<EngineBackend> (*open_backend)(const std::string& artifact_dir,
                                                 const EngineOptions& options,
                                                 const LoadProgress& progress) = nullptr;
  // JSON: name, compute capability, processors, bytes of memory, number of devices, versions of CUDA, and
  // whether cuBLASLt is there.
  std::string (*describe)(int index) = nullptr;
  // JSON: what the device reaches at most, see runtime/cuda/rates.h.
  std::string (*measure_rates)(int index, const RateOptions& options) = nullptr;
};

// `device` is "cuda" or "cuda-emulated". Throws Error(kUnsupported) saying where the library was looked for.
const DeviceLibrary& device_library(const std::string& device);

// Of this build.
const char* device_library_abi();

// "cpu", "cuda", "cuda:1" and so on as (library, index); throws Error(kInvalidArgument).
std::pair<std::string, int> parse_device(const std::string& text);

// "float32", "bfloat16", "float16", or "auto" for the device's default; throws Error(kInvalidArgument).
DType parse_act(const std::string& text, DType automatic);

}  // namespace autodeploy
