// Runs a Program step by step. Two phases of loading let the engine size its caches in between:
//   Executor executor(load_program(dir));
//   executor.program().states            -> the cache manager builds pools, fills group and page_size
//   executor.bind(params, states, memory, options)
//   executor.run(batch)                  -> logits
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/state.h"
#include "core/step_batch.h"
#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "kernels/cpu/packed_weight.h"
#include "runtime/planner.h"
#include "runtime/program_spec.h"
#include "runtime/step_executor.h"

namespace autodeploy {

// Where a param lives. The memory belongs to the weight loader and outlives the executor.
struct ParamBinding {
  const void* plain = nullptr;  // row-major, of the param's dtype; needed where ParamSpec::used_as_plain
  const PackedWeight* packed = nullptr;  // needed where ParamSpec::used_as_weight
  int64_t bytes = 0;                     // resident bytes, for the plan
};

struct ChoiceContext;  // runtime/executor_choice.h
struct KernelChoice;
struct InstructionSpec;
class Kernel;
struct KernelEntry;
struct KernelSpec;

// A device that runs a program's instructions, where that is not the host.
class ExecutionDevice {
 public:
  virtual ~ExecutionDevice() = default;
  virtual std::span<const KernelEntry> kernels() const = 0;
  // A kernel compiled ahead of time for this very instruction, which is preferred to those of kernels();
  // nullptr with a reason, or without one where there is none. `path` is its index, and those of parts.
  virtual std::unique_ptr<Kernel> make_compiled(const ChoiceContext& context, std::span<const int32_t> path,
                                                const KernelSpec& spec, std::string* why);
  // The kernel of an `over_keys` instruction, as make_over_keys of runtime/over_keys.h.
  virtual std::unique_ptr<Kernel> make_over_keys(const ChoiceContext& context,
                                                 const InstructionSpec& instruction,
                                                 KernelChoice* choice) = 0;
  // Sets bytes of its memory, in the order of its queue.
  virtual void fill(void* memory, uint8_t byte, int64_t bytes) = 0;
};

struct ExecutorOptions {
  // Largest step: tokens, sequences, rows with logits (at most max_tokens), tokens of one sequence.
  int64_t max_tokens = 0, max_seqs = 0, max_rows = 0, max_seq_len = 0;
  bool exact = false;   // forbid int8 activations
  bool poison = false;  // for tests: no memory is shared, and every value is NaN or -1 until it is written
  ThreadPool* pool = nullptr;         // required; outlives the executor
  ExecutionDevice* device = nullptr;  // nullptr: the host
};

// Which kernel serves an instruction, and why the preferred ones do not.
struct KernelChoice {
  int32_t instruction = -1;  // index into program().instructions
  std::string op, kernel, source;
  bool part = false;            // of a composite that no kernel serves
  std::vector<int32_t> covers;  // of a composite that a backend made: all instructions that it stands for
  int64_t workspace_bytes = 0;
  std::vector<std::string> declined;  // "name: reason"
  // Of an instruction with a body: queries looked at together, bytes of the body's values and of its keys
  // (both are parts of the workspace), and the choices for its instructions.
  int64_t tile = 0, body_arena = 0, body_keys = 0;
  std::vector<KernelChoice> body;
};

class Executor final : public StepExecutor {
 public:
  explicit Executor(ProgramSpec program);
  ~Executor() override;
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  const ProgramSpec& program() const override;

  // Creates kernels, plans and allocates the arena and touches its pages. `params` stand in program order;
  // `states` are program().states with group and page_size filled; `memory` has one entry per state and is
  // kept by pointer. Throws Error(kUnsupported) naming the instruction where no kernel serves it,
  // Error(kOutOfMemory) where the arena cannot be had.
  void bind(std::span<const ParamBinding> params, std::vector<StateSpec> states,
            std::span<const StateMemory> memory, const ExecutorOptions& options);

  // Allocates nothing.
  TensorView run(const StepBatch& batch) override;
  TensorView run(const StepBatch& batch, Tap tap) override;
  void set_input(const std::string& name, const void* data) override;
  TensorView output(const std::string& name) override;

  const MemoryPlan& memory_plan() const;
  const std::vector<KernelChoice>& choices() const;
  std::string plan_json() const override;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace autodeploy
