#include "runtime/executor.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "kernels/kernel.h"
#include "runtime/executor_choice.h"
#include "runtime/executor_impl.h"
#include "runtime/program_schema.h"

namespace autodeploy {
namespace {

constexpr int64_t kMaxArenaBytes = int64_t{1} << 46;

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

  std::vector<ChosenKernel> chosen = choose_kernels({program, params, states, options});
  plan_memory(chosen);
  steps.clear();
  views.clear();
  patches.clear();
  pointers.clear();
  state_refs.clear();
  choices.clear();
  reserve(chosen);
  for (ChosenKernel& c : chosen) add_step(std::move(c), memory);
  resolved_tokens = resolved_rows = -1;
}

void Executor::Impl::plan_memory(const std::vector<ChosenKernel>& chosen) {
  const int32_t end = static_cast<int32_t>(chosen.size());
  std::vector<ArenaValue> lives(program.values.size());
  for (int32_t i = 0; i < end; ++i) {
    const InstructionSpec& ins = *chosen[static_cast<size_t>(i)].instruction;
    for (const OperandRef& o : ins.in) {
      if (o.kind == OperandRef::Kind::kValue) lives[static_cast<size_t>(o.index)].last = i;
    }
    for (int32_t v : ins.out) {
      ArenaValue& life = lives[static_cast<size_t>(v)];
      const ValueSpec& value = program.values[static_cast<size_t>(v)];
      life.first = life.last = i;
      life.bytes = value.numel.eval(options.max_tokens, options.max_rows) * dtype_size(value.dtype);
      AD_CHECK(life.bytes <= kMaxArenaBytes, ErrorKind::kOutOfMemory, "[planner] expected values of at most ",
               kMaxArenaBytes, " bytes, found ", life.bytes, " for value '", value.name,
               "': lower max_tokens");
    }
  }
  for (const NamedValue& n : program.outputs) {
    ArenaValue& life = lives[static_cast<size_t>(n.value)];
    if (life.first >= 0) life.last = end;
  }
  for (int32_t i = 0; i < end; ++i) take_over_storage(*chosen[static_cast<size_t>(i)].instruction, i, &lives);

  plan = plan_arena(lives, !options.poison);
  for (const ChosenKernel& c : chosen)
    plan.workspace_bytes = std::max(plan.workspace_bytes, c.choice.workspace_bytes);
  plan.workspace_bytes = (plan.workspace_bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  AD_CHECK(plan.arena_bytes <= kMaxArenaBytes && plan.workspace_bytes <= kMaxArenaBytes,
           ErrorKind::kOutOfMemory, "[planner] expected an arena of at most ", kMaxArenaBytes,
           " bytes, found ", plan.arena_bytes, " and a workspace of ", plan.workspace_bytes,
           ": lower max_tokens");
  lifetimes = std::move(lives);
  allocate_arena();
}

// Grants the alias permissions that hold: the operand is the whole of a value that dies here, nothing else
// reads that value through another view, and the op's kernels work in place.
void Executor::Impl::take_over_storage(const InstructionSpec& ins, int32_t time,
                                       std::vector<ArenaValue>* lives) const {
  const OpSchema* schema = find_op_schema(ins.op);
  if (!schema || !schema->in_place) return;
  std::vector<int32_t> taken;
  for (const auto& [out, in] : ins.alias) {
    const OperandRef& o = ins.in[static_cast<size_t>(in)];
    const ValueSpec& from = program.values[static_cast<size_t>(o.index)];
    const int32_t v = ins.out[static_cast<size_t>(out)];
    const ValueSpec& to = program.values[static_cast<size_t>(v)];
    const ArenaValue& life = (*lives)[static_cast<size_t>(o.index)];
    if (!o.whole || life.first < 0 || life.last != time || !(from.numel == to.numel)) continue;
    if (dtype_size(from.dtype) != dtype_size(to.dtype) || (*lives)[static_cast<size_t>(v)].in_place_of >= 0)
      continue;
    const bool other_view = std::any_of(ins.in.begin(), ins.in.end(), [&](const OperandRef& other) {
      return other.kind == OperandRef::Kind::kValue && other.index == o.index && !other.whole;
    });
    if (other_view || std::count(taken.begin(), taken.end(), o.index)) continue;
    (*lives)[static_cast<size_t>(v)].in_place_of = o.index;
    taken.push_back(o.index);
  }
}

void Executor::Impl::reserve(const std::vector<ChosenKernel>& chosen) {
  size_t num_views = 0, num_states = 0;
  for (const ChosenKernel& c : chosen) {
    num_views += c.instruction->in.size() + c.instruction->out.size();
    num_states += c.instruction->states.size();
  }
  views.reserve(num_views);  // steps and patches point into it
  state_refs.reserve(num_states);
  steps.reserve(chosen.size());
}

void Executor::Impl::add_view(const OperandRef& ref, DType dtype, bool weight) {
  views.emplace_back();
  TensorView& view = views.back();
  if (ref.kind == OperandRef::Kind::kAbsent) return;
  view.dtype = dtype;
  view.ndim = static_cast<int>(ref.shape.size());
  const auto set = [&](const Dim& d, int64_t* target) {
    *target = d.constant;
    if (!d.is_static()) patches.push_back({target, d});
  };
  for (size_t i = 0; i < ref.shape.size(); ++i) {
    set(ref.shape[i], &view.shape[i]);
    set(ref.stride[i], &view.stride[i]);
  }
  if (weight) return;
  const int64_t size = dtype_size(dtype);
  const uint8_t* base = nullptr;
  int32_t input = -1;
  if (ref.kind == OperandRef::Kind::kParam) {
    base = static_cast<const uint8_t*>(bindings[static_cast<size_t>(ref.index)].plain);
    if (!base) return;
  } else if (plan.values[static_cast<size_t>(ref.index)].offset >= 0) {
    base = arena.data() + plan.values[static_cast<size_t>(ref.index)].offset;
  } else {
    input = input_of(ref.index);
    AD_ICHECK(input >= 0, "value ", ref.index, " is in the arena or an input");
  }
  if (base) view.data = const_cast<uint8_t*>(base) + ref.offset.constant * size;
  if (input >= 0 || !ref.offset.is_static()) pointers.push_back({&view.data, base, input, ref.offset, size});
}

void Executor::Impl::add_step(ChosenKernel chosen, std::span<const StateMemory> memory) {
  const InstructionSpec& ins = *chosen.instruction;
  Step step;
  const size_t first_view = views.size(), first_state = state_refs.size();
  for (size_t i = 0; i < ins.in.size(); ++i) {
    const OperandRef& o = ins.in[i];
    const DType dtype =
        o.kind == OperandRef::Kind::kValue   ? program.values[static_cast<size_t>(o.index)].dtype
        : o.kind == OperandRef::Kind::kParam ? program.params[static_cast<size_t>(o.index)].dtype
                                             : DType::kF32;
    add_view(o, dtype, is_weight_operand(ins, i));
  }
  step.needs_rows = ins.states.empty() && !ins.out.empty();
  for (int32_t v : ins.out) {
    const ValueSpec& value = program.values[static_cast<size_t>(v)];
    add_view(whole_value(v), value.dtype, false);
    if (value.numel.constant != 0 || value.numel.t != 0) step.needs_rows = false;
  }
  for (int32_t s : ins.states) state_refs.push_back(&memory[static_cast<size_t>(s)]);
  step.call.in = {views.data() + first_view, ins.in.size()};
  step.call.out = {views.data() + first_view + ins.in.size(), ins.out.size()};
  step.call.states = {state_refs.data() + first_state, ins.states.size()};
  step.call.workspace = arena.data() + plan.arena_bytes;
  step.call.pool = options.pool;
  step.instruction = &ins;
  step.kernel = std::move(chosen.kernel);
  steps.push_back(std::move(step));
  choices.push_back(std::move(chosen.choice));
}

OperandRef Executor::Impl::whole_value(int32_t v) const {
  const ValueSpec& value = program.values[static_cast<size_t>(v)];
  OperandRef ref;
  ref.kind = OperandRef::Kind::kValue;
  ref.index = v;
  ref.whole = true;
  ref.shape = value.shape;
  ref.stride = contiguous_strides(value.shape);
  return ref;
}

int32_t Executor::Impl::input_of(int32_t value) const {
  for (size_t i = 0; i < program.inputs.size(); ++i) {
    if (program.inputs[i].value == value) return static_cast<int32_t>(i);
  }
  return -1;
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
               b.kv_len.size() == B && b.rows.size() == static_cast<size_t>(b.num_rows),
           ErrorKind::kInvalidArgument,
           "[executor] expected spans of num_tokens, num_seqs and num_rows entries, found others");
}

void Executor::Impl::resolve(const StepBatch& batch) {
  const int64_t T = batch.num_tokens, R = batch.num_rows;
  for (size_t i = 0; i < program.inputs.size(); ++i) {
    if (input_kinds[i] == InputKind::kTokenIds) input_data[i] = batch.token_ids.data();
    if (input_kinds[i] == InputKind::kPositions) input_data[i] = batch.positions.data();
    AD_CHECK(input_data[i], ErrorKind::kInvalidArgument, "[executor] expected data for the input '",
             program.inputs[i].name, "', found none: set_input before run");
  }
  if (T != resolved_tokens || R != resolved_rows) {
    for (const Patch& p : patches) *p.target = p.dim.eval(T, R);
    resolved_tokens = T;
    resolved_rows = R;
  }
  for (const PointerPatch& p : pointers) {
    const uint8_t* base =
        p.input >= 0 ? static_cast<const uint8_t*>(input_data[static_cast<size_t>(p.input)]) : p.base;
    *p.target = const_cast<uint8_t*>(base) + p.offset.eval(T, R) * p.size;
  }
}

void Executor::Impl::run(const StepBatch& batch, const Tap* tap) {
  check_batch(batch);
  resolve(batch);
  if (options.poison && arena.data())
    std::memset(arena.data(), 0xff, static_cast<size_t>(plan.arena_bytes + plan.workspace_bytes));
  struct StepScope {
    ThreadPool& pool;
    explicit StepScope(ThreadPool& p) : pool(p) { pool.begin_step(); }
    ~StepScope() { pool.end_step(); }
  } scope(*options.pool);
  for (Step& step : steps) {
    if (batch.num_rows == 0 && step.needs_rows) continue;
    step.call.batch = &batch;
    step.kernel->run(step.call);
    if (tap) {
      for (size_t i = 0; i < step.call.out.size(); ++i) (*tap)(step.instruction->out[i], step.call.out[i]);
    }
  }
}

TensorView Executor::Impl::value_view(int32_t v) const {
  const ValueSpec& value = program.values[static_cast<size_t>(v)];
  TensorView view;
  view.dtype = value.dtype;
  view.ndim = static_cast<int>(value.shape.size());
  int64_t stride = 1;
  for (int i = view.ndim; i-- > 0;) {
    const size_t d = static_cast<size_t>(i);
    view.shape[d] = value.shape[d].eval(resolved_tokens, resolved_rows);
    view.stride[d] = stride;
    stride *= view.shape[d];
  }
  const int64_t offset = plan.values[static_cast<size_t>(v)].offset;
  if (view.numel() == 0) return view;
  if (offset >= 0)
    view.data = arena.data() + offset;
  else if (const int32_t i = input_of(v); i >= 0)
    view.data = const_cast<void*>(input_data[static_cast<size_t>(i)]);
  return view;
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
  impl_->input_data.assign(impl_->program.inputs.size(), nullptr);
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
  return v < 0 ? TensorView{} : impl_->value_view(v);
}

TensorView Executor::run(const StepBatch& batch, Tap tap) {
  impl_->run(batch, &tap);
  const int32_t v = impl_->logits;
  return v < 0 ? TensorView{} : impl_->value_view(v);
}

void Executor::set_input(const std::string& name, const void* data) {
  for (size_t i = 0; i < impl_->program.inputs.size(); ++i) {
    if (impl_->program.inputs[i].name != name || impl_->input_kinds[i] != InputKind::kExtra) continue;
    impl_->input_data[i] = data;
    return;
  }
  throw Error(ErrorKind::kInvalidArgument,
              detail::concat("[executor] expected an input of the program, found '", name, "'"));
}

TensorView Executor::output(const std::string& name) const {
  const int32_t v = impl_->program.output(name);
  AD_CHECK(v >= 0, ErrorKind::kInvalidArgument, "[executor] expected an output of the program, found '", name,
           "'");
  AD_CHECK(impl_->resolved_tokens >= 0, ErrorKind::kInvalidArgument, "[executor] expected run before output");
  return impl_->value_view(v);
}

const MemoryPlan& Executor::memory_plan() const { return impl_->plan; }

const std::vector<KernelChoice>& Executor::choices() const { return impl_->choices; }

}  // namespace autodeploy
