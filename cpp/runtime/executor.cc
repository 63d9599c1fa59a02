#include "runtime/executor.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "kernels/kernel.h"
#include "runtime/executor_checks.h"
#include "runtime/executor_choice.h"
#include "runtime/executor_impl.h"

namespace autodeploy {

// ---- binding ----

void Executor::Impl::bind(std::span<const ParamBinding> params, std::vector<StateSpec> state_specs,
                          std::span<const StateMemory> memory, const ExecutorOptions& opts) {
  check_options(opts);
  check_params(program, params, false);
  check_states(program, state_specs, memory);
  options = opts;
  bindings.assign(params.begin(), params.end());
  states = std::move(state_specs);

  block.bind(program, choose_kernels({program, program.regions, params, states, options}), bindings, memory,
             options);
  allocate_arena();
  block.attach(arena.data());
}

// ---- running ----

void Executor::Impl::run(const StepBatch& batch, const Tap* tap) {
  AD_CHECK(options.pool, ErrorKind::kInvalidArgument, "[executor] expected bind before run");
  check_batch(batch, options);
  for (size_t i = 0; i < program.inputs.size(); ++i) {
    if (input_kinds[i] == InputKind::kTokenIds) block.set_input(i, batch.token_ids.data());
    if (input_kinds[i] == InputKind::kPositions) block.set_input(i, batch.positions.data());
    AD_CHECK(block.input(i), ErrorKind::kInvalidArgument, "[executor] expected data for the input '",
             program.inputs[i].name, "', found none: set_input before run");
  }
  struct StepScope {
    ThreadPool& pool;
    explicit StepScope(ThreadPool& p) : pool(p) { pool.begin_step(); }
    ~StepScope() { pool.end_step(); }
  } scope(*options.pool);
  block.run(batch, batch.num_tokens, batch.num_rows, tap);
}

// ---- the face ----

Executor::Executor(ProgramSpec program) : impl_(std::make_unique<Impl>()) {
  impl_->program = std::move(program);
  for (const NamedValue& n : impl_->program.inputs) {
    impl_->input_kinds.push_back(n.name == "token_ids"   ? InputKind::kTokenIds
                                 : n.name == "positions" ? InputKind::kPositions
                                                         : InputKind::kExtra);
  }
  impl_->logits = impl_->program.output("logits");
  impl_->block.declare_inputs(impl_->program.inputs.size());
}

Executor::~Executor() = default;

const ProgramSpec& Executor::program() const { return impl_->program; }

void Executor::bind(std::span<const ParamBinding> params, std::vector<StateSpec> states,
                    std::span<const StateMemory> memory, const ExecutorOptions& options) {
  impl_->bind(params, std::move(states), memory, options);
}

TensorView Executor::run(const StepBatch& batch) {
  impl_->run(batch, nullptr);
  const int32_t v = impl_->logits;
  return v < 0 ? TensorView{} : impl_->block.value_view(v);
}

TensorView Executor::run(const StepBatch& batch, Tap tap) {
  impl_->run(batch, &tap);
  const int32_t v = impl_->logits;
  return v < 0 ? TensorView{} : impl_->block.value_view(v);
}

void Executor::set_input(const std::string& name, const void* data) {
  for (size_t i = 0; i < impl_->program.inputs.size(); ++i) {
    if (impl_->program.inputs[i].name != name || impl_->input_kinds[i] != InputKind::kExtra) continue;
    impl_->block.set_input(i, data);
    return;
  }
  throw Error(ErrorKind::kInvalidArgument,
              detail::concat("[executor] expected an input of the program, found '", name, "'"));
}

TensorView Executor::output(const std::string& name) {
  const int32_t v = impl_->program.output(name);
  AD_CHECK(v >= 0, ErrorKind::kInvalidArgument, "[executor] expected an output of the program, found '", name,
           "'");
  AD_CHECK(impl_->block.has_run(), ErrorKind::kInvalidArgument, "[executor] expected run before output");
  return impl_->block.value_view(v);
}

const MemoryPlan& Executor::memory_plan() const { return impl_->block.plan(); }

const std::vector<KernelChoice>& Executor::choices() const { return impl_->block.choices(); }

}  // namespace autodeploy
