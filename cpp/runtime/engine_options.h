// What a user may choose about an engine, and what becomes of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "core/state.h"

namespace autodeploy {

// Where weights come from.
enum class LoadFormat : uint8_t {
  kAuto,   // the checkpoint, or the artifact that holds them
  kDummy,  // nowhere: they are made up (runtime/dummy_weights.h)
};

// Which experts rows go to where weights are made up.
enum class DummyRouting : uint8_t {
  kModel,    // those that the made-up router chooses
  kUniform,  // any of them alike, drawn from the seed (runtime/uniform_routing.h)
};

// Whether a step is scheduled and launched while the one before it runs. The tokens are the same.
enum class Overlap : uint8_t {
  kAuto,  // where the backend can
  kOn,    // refused where it cannot
  kOff,
};

// 0 leaves a choice to the engine; defaults are those of the CPU, and of a GPU where they differ.
struct EngineOptions {
  std::string device = "cpu";  // or "cuda", "cuda:N"
  std::string dtype = "auto";  // of activations: the model's own on a GPU, float32 on the CPU
  int64_t max_seq_len = 0;     // tokens of prompt and output together: the model's, or what the caches hold
  int64_t max_num_seqs =
      0;  // sequences that run together: 8 (256), fewer where their recurrent states are large
  int64_t max_batch_tokens = 0;    // tokens of one step: 512 (8192), at least max_num_seqs
  int64_t cache_bytes = 0;         // limit of the caches: half (all) of the memory that is left
  double gpu_memory_fraction = 0;  // of a GPU's memory that may be in use, by anybody, with this engine: 0.9
  int32_t page_size = 0;           // tokens per cache page: 32
  int num_threads = 0;             // the processors that affinity and cgroup allow
  bool exact = false;     // no int8 activations: results equal those of dequantized weights in float32
  bool prefault = false;  // back the caches with memory at the start rather than at first use
  LoadFormat load_format = LoadFormat::kAuto;
  uint64_t dummy_seed = 0;  // of made-up weights
  DummyRouting dummy_routing = DummyRouting::kModel;
  bool time_steps = false;                // on a GPU: measure steps and the gaps between them, for the stats
  std::vector<std::string> plugins = {};  // libraries with kernels for operators of an author's own, by path
  Overlap overlap = Overlap::kAuto;
};

inline constexpr int kMaxThreads = 1024;

// "auto" or "dummy"; throws Error(kInvalidArgument).
LoadFormat parse_load_format(std::string_view text);
// "model" or "uniform"; likewise.
DummyRouting parse_dummy_routing(std::string_view text);
// Throws Error(kInvalidArgument) where routing is forced and weights are not made up.
void check_dummy_routing(const EngineOptions& options);

// Facts that the limits follow from.
struct ModelFacts {
  int64_t vocab_size = 0;
  int64_t max_positions = 0;  // 0: the model does not say
  int64_t prefix_len = 0;     // tokens that stand before every prompt; max_seq_len does not count them
  int64_t weight_bytes = 0;   // resident, and what loading needs besides
  int32_t max_in_flight = 1;  // of the backend's runner
};

// Checks the options and fills in what they leave open. `available_bytes` is the memory that may be taken, 0
// when unknown. Throws Error(kInvalidArgument) "[engine] option: expected ..., found ..." and
// Error(kOutOfMemory) with the numbers.
// The result's max_seq_len is that of the caches: it counts the prefix. Its max_open_steps says whether steps
// overlap: the engine goes by it.
CacheLimits resolve_limits(const EngineOptions& options, const ModelFacts& model,
                           std::vector<StateSpec> states, int64_t available_bytes);

// A device's memory in bytes: what it has, before anything was loaded, and what the engine takes of it beside
// the caches.
struct DeviceMemoryFacts {
  int64_t total = 0, free = 0;
  int64_t weights = 0;  // all params, as they are laid out there
  int64_t arena = 0;    // values and workspaces of the largest step
  int64_t graphs = 0;   // recorded steps
  int64_t other = 0;    // sampler, uploads, what belongs to steps under way
};

// Bytes that the engine may take in all: the fraction of the total, less what is in use already.
int64_t device_memory_limit(const EngineOptions& options, const DeviceMemoryFacts& memory);

// As resolve_limits, for a device: caches take what the others leave under the limit (model.weight_bytes is
// not looked at). The arena follows from the limits: ask once without it to learn the sizes of steps, and
// again with it for the caches, giving the limits that it was planned for as `before`, of which none is then
// exceeded. Throws Error(kOutOfMemory) with all of the numbers where the device is too small.
CacheLimits resolve_device_limits(const EngineOptions& options, const ModelFacts& model,
                                  std::vector<StateSpec> states, const DeviceMemoryFacts& memory,
                                  const CacheLimits* before = nullptr);

}  // namespace autodeploy
