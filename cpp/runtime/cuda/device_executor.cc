#include "runtime/cuda/device_executor.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "core/error.h"
#include "kernels/cuda/spec.h"
#include "runtime/cuda/fusion.h"
#include "runtime/cuda/over_keys_device.h"
#include "runtime/executor_checks.h"
#include "runtime/executor_choice.h"
#include "runtime/executor_plan.h"
#include "runtime/plugins.h"

namespace autodeploy::cuda {

DeviceExecutor::DeviceExecutor(ProgramSpec program, Queue* queue, std::unique_ptr<GeneratedKernels> generated)
    : program_(fuse(std::move(program))), queue_(queue), generated_(std::move(generated)) {
  for (const NamedValue& n : program_.inputs) {
    input_kinds_.push_back(n.name == "token_ids"   ? InputKind::kTokenIds
                           : n.name == "positions" ? InputKind::kPositions
                                                   : InputKind::kExtra);
  }
  logits_ = program_.output("logits");
  block_.declare_inputs(program_.inputs.size());
}

void DeviceExecutor::bind(std::span<const ParamBinding> params, std::vector<StateSpec> states,
                          std::span<const StateMemory> memory, const ExecutorOptions& options) {
  check_options(options);
  check_params(program_, params, true);
  check_states(program_, states, memory);
  options_ = options;
  options_.device = this;
  bindings_.assign(params.begin(), params.end());
  states_ = std::move(states);
  block_.bind(program_, choose_kernels({program_, program_.regions, bindings_, states_, options_}), bindings_,
              memory, options_);
}

void DeviceExecutor::allocate() {
  arena_ = DeviceMemory(block_.memory_bytes(), "the values of a step");
  block_.attach(arena_.data());
}

void DeviceExecutor::enqueue(const StepBatch& batch, const DeviceStep& step, const StepExecutor::Tap* tap) {
  for (size_t i = 0; i < program_.inputs.size(); ++i) {
    if (input_kinds_[i] == InputKind::kTokenIds) block_.set_input(i, step.token_ids);
    if (input_kinds_[i] == InputKind::kPositions) block_.set_input(i, step.positions);
    AD_CHECK(block_.input(i), ErrorKind::kInvalidArgument, "[executor] expected data for the input '",
             program_.inputs[i].name, "', found none: set_input before run");
  }
  block_.run(batch, step.num_tokens, step.num_rows, tap, &step);
  if (const char* error = take_launch_error())
    throw Error(ErrorKind::kInternal,
                detail::concat("[cuda] expected every kernel to start, found: ", error));
}

void DeviceExecutor::set_input(const std::string& name, const void* data) {
  for (size_t i = 0; i < program_.inputs.size(); ++i) {
    if (program_.inputs[i].name == name && input_kinds_[i] == InputKind::kExtra)
      return block_.set_input(i, data);
  }
  throw Error(ErrorKind::kInvalidArgument,
              detail::concat("[executor] expected an input of the program, found '", name, "'"));
}

std::vector<double> DeviceExecutor::profile(const StepBatch& batch, const DeviceStep& step, int repeats) {
  const size_t count = block_.choices().size();
  std::vector<std::unique_ptr<Event>> events;
  for (size_t i = 0; i <= count; ++i) events.push_back(std::make_unique<Event>(true));
  const std::function<void(size_t)> mark = [&](size_t i) { events[i]->record(queue_->stream()); };
  std::vector<double> least(count, 1e30);
  for (int r = 0; r <= repeats; ++r) {
    // The device is kept busy until all is in the queue, so that no launch is waited for.
    constexpr int kFills = 24;
    for (int f = 0; f < kFills; ++f) queue_->fill(arena_.data(), 0, arena_.bytes());
    block_.set_mark(&mark);
    enqueue(batch, step);
    block_.set_mark(nullptr);
    mark(count);
    queue_->wait();
    for (size_t i = 0; i < count && r > 0; ++i)
      least[i] = std::min(least[i], 1e3 * static_cast<double>(events[i + 1]->milliseconds_since(*events[i])));
  }
  return least;
}

TensorView DeviceExecutor::logits() const { return logits_ < 0 ? TensorView{} : block_.value_view(logits_); }

std::string DeviceExecutor::plan_json() const {
  return executor_plan_json(program_, options_, bindings_, states_, block_);
}

std::span<const KernelEntry> DeviceExecutor::kernels() const { return kernel_table(); }

std::unique_ptr<Kernel> DeviceExecutor::make_compiled(const ChoiceContext& context,
                                                      std::span<const int32_t> path, const KernelSpec& spec,
                                                      std::string* why) {
  // Binaries are for what has no kernel of ours that is as good: they never take the place of other ops.
  if (!generated_ || (spec.op != "region" && !is_author_op(spec.op))) return nullptr;
  int32_t body = -1;
  if (context.body) {
    for (size_t b = 0; b < program_.bodies.size(); ++b) {
      if (context.body == &program_.bodies[b]) body = static_cast<int32_t>(b);
    }
    AD_ICHECK(body >= 0, "a body is one of its program's");
  }
  return generated_->make(body, path, spec, why);
}

std::unique_ptr<Kernel> DeviceExecutor::make_over_keys(const ChoiceContext& context,
                                                       const InstructionSpec& instruction,
                                                       KernelChoice* choice) {
  return make_over_keys_on_device(context, instruction, choice);
}

void DeviceExecutor::fill(void* memory, uint8_t byte, int64_t bytes) { queue_->fill(memory, byte, bytes); }

}  // namespace autodeploy::cuda
