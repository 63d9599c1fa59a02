// What a user may choose about an engine, and what becomes of it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "core/state.h"

namespace autodeploy {

// Whether a step is scheduled and launched while the one before it runs. The tokens are the same.
enum class Overlap : uint8_t {
  kAuto,  // where the backend can
  kOn,    // refused where it cannot
  kOff,
};

// 0 leaves a choice to the engine.
struct EngineOptions {
  std::string device = "cpu";  // or "cuda", "cuda:N"
  std::string dtype = "auto";  // of activations: the model's own on a GPU, float32 on the CPU
  int64_t max_seq_len = 0;     // tokens of prompt and output together: the model's, or what the caches hold
  int64_t max_num_seqs = 0;    // sequences that run together: 8, fewer where their recurrent states are large
  int64_t max_batch_tokens = 0;  // tokens of one step: 512, at least max_num_seqs
  int64_t cache_bytes = 0;       // limit of the caches: half of the memory that is left beside the weights
  int32_t page_size = 0;         // tokens per cache page: 32
  int num_threads = 0;           // the processors that affinity and cgroup allow
  bool exact = false;            // no int8 activations: results equal those of dequantized weights in float32
  bool prefault = false;         // back the caches with memory at the start rather than at first use
  std::vector<std::string> plugins = {};  // libraries with kernels for operators of an author's own, by path
  Overlap overlap = Overlap::kAuto;
};

inline constexpr int kMaxThreads = 1024;

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

}  // namespace autodeploy
