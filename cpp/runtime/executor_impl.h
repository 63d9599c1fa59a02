// Insides of the executor, shared by its source files.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache_manager/state_pools.h"
#include "kernels/kernel.h"
#include "runtime/executor.h"
#include "runtime/executor_choice.h"

namespace autodeploy {

enum class InputKind : uint8_t { kTokenIds, kPositions, kExtra };

struct Executor::Impl {
  // One kernel call, resolved but for the numbers that depend on the step.
  struct Step {
    std::unique_ptr<Kernel> kernel;
    KernelCall call;
    const InstructionSpec* instruction = nullptr;
    bool needs_rows = false;  // every result has R as a dim: nothing to do in steps without logits
  };
  // A dim or stride of a view that depends on T or R.
  struct Patch {
    int64_t* target;
    Dim dim;
  };
  // A data pointer that depends on T or R, or on what the caller passed.
  struct PointerPatch {
    void** target;
    const uint8_t* base;
    int32_t input;  // index into program.inputs, or -1
    Dim offset;
    int64_t size;  // of an element
  };

  ProgramSpec program;
  ExecutorOptions options;
  std::vector<ParamBinding> bindings;
  std::vector<StateSpec> states;
  std::vector<ArenaValue> lifetimes;
  MemoryPlan plan;
  HostMemory arena;  // values, then the workspace
  std::vector<Step> steps;
  std::vector<KernelChoice> choices;  // one per step
  std::vector<TensorView> views;      // of all steps
  std::vector<Patch> patches;
  std::vector<PointerPatch> pointers;
  std::vector<const StateMemory*> state_refs;
  std::vector<InputKind> input_kinds;                // one per program input
  std::vector<const void*> input_data;               // one per program input
  int64_t resolved_tokens = -1, resolved_rows = -1;  // what the patches hold
  int32_t logits = -1;

  void bind(std::span<const ParamBinding> params, std::vector<StateSpec> state_specs,
            std::span<const StateMemory> memory, const ExecutorOptions& opts);
  void plan_memory(const std::vector<ChosenKernel>& chosen);
  void allocate_arena();
  void take_over_storage(const InstructionSpec& ins, int32_t time, std::vector<ArenaValue>* lives) const;
  void reserve(const std::vector<ChosenKernel>& chosen);
  void add_view(const OperandRef& ref, DType dtype, bool weight);
  void add_step(ChosenKernel chosen, std::span<const StateMemory> memory);
  OperandRef whole_value(int32_t v) const;
  int32_t input_of(int32_t value) const;
  void check_batch(const StepBatch& batch) const;
  void resolve(const StepBatch& batch);
  void run(const StepBatch& batch, const Tap* tap);
  TensorView value_view(int32_t v) const;
};

}  // namespace autodeploy
