// A list of instructions made ready to run: kernels, a plan of memory, and views that only wait for the
// numbers of a step. A program has one, and so has each body of an `over_keys` instruction.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "kernels/kernel.h"
#include "runtime/executor.h"
#include "runtime/executor_choice.h"
#include "runtime/planner.h"

namespace autodeploy {

constexpr int64_t kMaxArenaBytes = int64_t{1} << 46;

// When each value lives and how large it gets, over the final instructions at the largest step. Throws
// Error(kOutOfMemory) where a value alone is beyond all bounds.
std::vector<ArenaValue> find_lifetimes(const ProgramSpec& program,
                                       std::span<const InstructionSpec* const> instructions,
                                       int64_t max_tokens, int64_t max_rows);

class Block {
 public:
  // Everything but memory. `program` and what the spans refer to outlive the block; `memory` has one entry
  // per state and is kept by pointer.
  void bind(const ProgramSpec& program, std::vector<ChosenKernel> chosen,
            std::span<const ParamBinding> params, std::span<const StateMemory> memory,
            const ExecutorOptions& options);

  // Bytes to attach: the arena of values, then the workspace of kernels.
  int64_t memory_bytes() const { return plan_.arena_bytes + plan_.workspace_bytes; }
  // Gives the block its memory, 64-byte aligned; allocates nothing.
  void attach(uint8_t* memory);

  // Makes room for inputs that are set before bind.
  void declare_inputs(size_t count) { input_data_.assign(count, nullptr); }
  // Where the value of program.inputs[i] lies in the following runs: row-major.
  void set_input(size_t i, const void* data) { input_data_[i] = data; }
  const void* input(size_t i) const { return input_data_[i]; }

  // Runs all instructions for so many tokens and rows. Allocates nothing.
  // `step` is that of the device, where the options name one: kernels are then put into its queue.
  void run(const StepBatch& batch, int64_t tokens, int64_t rows, const StepExecutor::Tap* tap,
           const cuda::DeviceStep* step = nullptr);

  // Called before each instruction of the following runs, with its place in choices(); nullptr: nobody.
  void set_mark(const std::function<void(size_t)>* mark) { mark_ = mark; }
  // Makes the views those of a run of these sizes: run() does, and who repeats one that a device has
  // recorded.
  void resolve(int64_t tokens, int64_t rows);

  // A value as the last run left it; valid until memory is used otherwise.
  TensorView value_view(int32_t v) const;
  bool has_run() const { return resolved_tokens_ >= 0; }

  const MemoryPlan& plan() const { return plan_; }
  const std::vector<ArenaValue>& lifetimes() const { return lifetimes_; }
  const std::vector<KernelChoice>& choices() const { return choices_; }  // one per instruction

 private:
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
  // A data pointer: into the arena, to an input, or into a param.
  struct Pointer {
    void** target;
    const uint8_t* base;  // of a param
    int64_t arena;        // offset of the value in the arena, or -1
    int32_t input;        // index into program.inputs, or -1
    Dim offset;
    int64_t size;  // of an element
  };

  void plan_memory(const std::vector<ChosenKernel>& chosen, const ExecutorOptions& options);
  void reserve(const std::vector<ChosenKernel>& chosen);
  void add_view(const OperandRef& ref, DType dtype, bool weight, std::span<const ParamBinding> params);
  void add_step(ChosenKernel chosen, std::span<const ParamBinding> params,
                std::span<const StateMemory> memory, ThreadPool* pool);
  OperandRef whole_value(int32_t v) const;
  int32_t input_of(int32_t value) const;

  const ProgramSpec* program_ = nullptr;
  const std::function<void(size_t)>* mark_ = nullptr;
  bool poison_ = false;
  ExecutionDevice* device_ = nullptr;
  uint8_t* memory_ = nullptr;
  std::vector<ArenaValue> lifetimes_;
  MemoryPlan plan_;
  std::vector<Step> steps_;
  std::vector<KernelChoice> choices_;
  std::vector<TensorView> views_;  // of all steps
  std::vector<Patch> patches_;
  std::vector<Pointer> placed_;    // set when memory is attached
  std::vector<Pointer> pointers_;  // set for each run
  std::vector<const StateMemory*> state_refs_;
  std::vector<const void*> input_data_;
  int64_t resolved_tokens_ = -1, resolved_rows_ = -1;  // what the patches hold
};

}  // namespace autodeploy
