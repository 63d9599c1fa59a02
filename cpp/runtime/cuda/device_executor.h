// Runs a Program on the device.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "runtime/block.h"
#include "runtime/cuda/device_api.h"
#include "runtime/cuda/generated_kernels.h"
#include "runtime/cuda/step_upload.h"
#include "runtime/executor.h"

namespace autodeploy::cuda {

// The instructions of a Program as launches into a queue. Memory and states belong to others.
class DeviceExecutor final : private ExecutionDevice {
 public:
  // `generated` are the kernels that were compiled for the program; nullptr: none.
  DeviceExecutor(ProgramSpec program, Queue* queue, std::unique_ptr<GeneratedKernels> generated = nullptr);

  const ProgramSpec& program() const { return program_; }

  // See Executor::bind; params and memory are on the device, and may be filled in until allocate(): what is
  // planned depends on their sizes alone. options.device is set here.
  void bind(std::span<const ParamBinding> params, std::vector<StateSpec> states,
            std::span<const StateMemory> memory, const ExecutorOptions& options);

  int64_t arena_bytes() const { return block_.memory_bytes(); }
  void allocate();

  // Puts a step into the queue: its arrays are on the device or on their way there. A tap sees views of the
  // device's memory, while the queue still works. Throws Error(kInternal) where a launch fails.
  void enqueue(const StepBatch& batch, const DeviceStep& step, const StepExecutor::Tap* tap = nullptr);

  // Says that a recorded step of these sizes was put into the queue, for value() and logits().
  void replayed(const DeviceStep& step) { block_.resolve(step.num_tokens, step.num_rows); }

  // Of an input other than token_ids and positions, on the device.
  void set_input(const std::string& name, const void* data);
  // A value of the last step put into the queue, on the device.
  TensorView value(int32_t v) const { return block_.value_view(v); }
  TensorView logits() const;

  const Block& block() const { return block_; }
  // See StepExecutor::profile; the step's arrays are on the device.
  std::vector<double> profile(const StepBatch& batch, const DeviceStep& step, int repeats);
  const std::vector<StateSpec>& states() const { return states_; }
  std::string plan_json() const;

 private:
  enum class InputKind : uint8_t { kTokenIds, kPositions, kExtra };

  std::span<const KernelEntry> kernels() const override;
  std::unique_ptr<Kernel> make_compiled(const ChoiceContext& context, std::span<const int32_t> path,
                                        const KernelSpec& spec, std::string* why) override;
  std::unique_ptr<Kernel> make_over_keys(const ChoiceContext& context, const InstructionSpec& instruction,
                                         KernelChoice* choice) override;
  void fill(void* memory, uint8_t byte, int64_t bytes) override;

  ProgramSpec program_;
  Queue* queue_;
  std::unique_ptr<GeneratedKernels> generated_;
  ExecutorOptions options_;
  std::vector<ParamBinding> bindings_;
  std::vector<StateSpec> states_;
  Block block_;
  DeviceMemory arena_;
  std::vector<InputKind> input_kinds_;
  int32_t logits_ = -1;
};

}  // namespace autodeploy::cuda
