// Insides of the executor, shared by its source files.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache_manager/state_pools.h"
#include "runtime/block.h"
#include "runtime/executor.h"

namespace autodeploy {

enum class InputKind : uint8_t { kTokenIds, kPositions, kExtra };

struct Executor::Impl {
  ProgramSpec program;
  ExecutorOptions options;
  std::vector<ParamBinding> bindings;
  std::vector<StateSpec> states;
  Block block;
  HostMemory arena;                    // the block's
  std::vector<InputKind> input_kinds;  // one per program input
  int32_t logits = -1;

  void bind(std::span<const ParamBinding> params, std::vector<StateSpec> state_specs,
            std::span<const StateMemory> memory, const ExecutorOptions& opts);
  void allocate_arena();
  void run(const StepBatch& batch, const Tap* tap);
};

}  // namespace autodeploy
