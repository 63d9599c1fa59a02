#include "runtime/executor.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "kernels/kernel.h"
#include "runtime/executor_choice.h"
#include "runtime/executor_impl.h"

namespace autodeploy {
namespace {

void check_options(const ExecutorOptions& o) {
  const auto in_range = [](const char* name, int64_t v, int64_t hi) {
    AD_CHECK(v >= 1 && v <= hi, ErrorKind::kInvalidArgument, "[executor] expected ", name, " from 1 to ", hi,
             ", found ", v);
  };
  in_range("max_tokens", o.max_tokens, kMaxProgramTokens);
  in_range("max_seqs", o.max_seqs, int64_t{1} << 20);
  in_range("max_rows", o.max_rows, o.max_tokens);
  in_range("max_seq_len", o.max_seq_len, int64_t{1} << 31);
  AD_CHECK(o.pool, ErrorKind::kInvalidArgument, "[executor] expected a thread pool, found none");
}

void check_params(const ProgramSpec& program, std::span<const ParamBinding> params) {
  AD_CHECK(params.size() == program.params.size(), ErrorKind::kInvalidArgument, "[executor] expected ",
           program.params.size(), " params, found ", params.size());
  for (size_t i = 0; i < params.size(); ++i) {
    const ParamSpec& p = program.params[i];
    AD_CHECK(!p.used_as_plain || params[i].plain || p.numel() == 0, ErrorKind::kInvalidArtifact,
             "[weights] expected param '", p.name,
             "' in plain form, found none: a quantized weight serves only weight operands");
    AD_CHECK(!p.used_as_weight || params[i].packed, ErrorKind::kInvalidArgument,
             "[executor] expected param '", p.name, "' in packed form, found none");
  }
}

void check_states(const ProgramSpec& program, const std::vector<StateSpec>& states,
                  std::span<const StateMemory> memory) {
  AD_CHECK(states.size() == program.states.size() && memory.size() == program.states.size(),
           ErrorKind::kInvalidArgument, "[executor] expected ", program.states.size(),
           " states with memory, found ", states.size(), " and ", memory.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const StateSpec& s = states[i];
    AD_CHECK(s.kind == program.states[i].kind && memory[i].data.size() == s.components.size() &&
                 memory[i].bytes.size() == s.components.size(),
             ErrorKind::kInvalidArgument, "[executor] expected state '", program.states[i].name,
             "' of the program, found '", s.name, "'");
    if (s.kind != StateSpec::Kind::kPaged) continue;
    AD_CHECK(s.group >= 0 && s.page_size > 0, ErrorKind::kInvalidArgument,
             "[executor] expected a page group and size for state '", s.name, "', found group ", s.group,
             " and size ", s.page_size);
  }
}

}  // namespace

// ---- binding ----

void Executor::Impl::bind(std::span<const ParamBinding> params, std::vector<StateSpec> state_specs,
                          std::span<const StateMemory> memory, const ExecutorOptions& opts) {
  check_options(opts);
  check_params(program, params);
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

void Executor::Impl::check_batch(const StepBatch& b) const {
  AD_CHECK(options.pool, ErrorKind::kInvalidArgument, "[executor] expected bind before run");
  const auto in_range = [](const char* name, int64_t v, int64_t lo, int64_t hi) {
    AD_CHECK(v >= lo && v <= hi, ErrorKind::kInvalidArgument, "[executor] expected ", name, " from ", lo,
             " to ", hi, ", found ", v);
  };
  in_range("num_tokens", b.num_tokens, 1, options.max_tokens);
  in_range("num_seqs", b.num_seqs, 1, options.max_seqs);
  in_range("num_rows", b.num_rows, 0, std::min(options.max_rows, b.num_tokens));
  const size_t T = static_cast<size_t>(b.num_tokens), B = static_cast<size_t>(b.num_seqs);
  AD_CHECK(b.token_ids.size() == T && b.positions.size() == T && b.query_start.size() == B + 1 &&
               b.kv_len.size() == B && (b.prompt_len.empty() || b.prompt_len.size() == B) &&
               b.rows.size() == static_cast<size_t>(b.num_rows),
           ErrorKind::kInvalidArgument,
           "[executor] expected spans of num_tokens, num_seqs and num_rows entries, found others");
}

void Executor::Impl::run(const StepBatch& batch, const Tap* tap) {
  check_batch(batch);
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

TensorView Executor::output(const std::string& name) const {
  const int32_t v = impl_->program.output(name);
  AD_CHECK(v >= 0, ErrorKind::kInvalidArgument, "[executor] expected an output of the program, found '", name,
           "'");
  AD_CHECK(impl_->block.has_run(), ErrorKind::kInvalidArgument, "[executor] expected run before output");
  return impl_->block.value_view(v);
}

const MemoryPlan& Executor::memory_plan() const { return impl_->block.plan(); }

const std::vector<KernelChoice>& Executor::choices() const { return impl_->block.choices(); }

}  // namespace autodeploy
