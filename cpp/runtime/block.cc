#include "runtime/block.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/error.h"
#include "runtime/program_schema.h"

namespace autodeploy {
namespace {

// Grants the alias permissions that hold: the operand is the whole of a value that dies here, nothing else
// reads that value through another view, and the op's kernels work in place.
void take_over_storage(const ProgramSpec& program, const InstructionSpec& ins, int32_t time,
                       std::vector<ArenaValue>* lives) {
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

}  // namespace

std::vector<ArenaValue> find_lifetimes(const ProgramSpec& program,
                                       std::span<const InstructionSpec* const> instructions,
                                       int64_t max_tokens, int64_t max_rows) {
  const int32_t end = static_cast<int32_t>(instructions.size());
  std::vector<ArenaValue> lives(program.values.size());
  for (int32_t i = 0; i < end; ++i) {
    const InstructionSpec& ins = *instructions[static_cast<size_t>(i)];
    for (const OperandRef& o : ins.in) {
      if (o.kind == OperandRef::Kind::kValue) lives[static_cast<size_t>(o.index)].last = i;
    }
    for (int32_t v : ins.out) {
      ArenaValue& life = lives[static_cast<size_t>(v)];
      const ValueSpec& value = program.values[static_cast<size_t>(v)];
      life.first = life.last = i;
      life.bytes = value.numel.eval(max_tokens, max_rows) * dtype_size(value.dtype);
      AD_CHECK(life.bytes <= kMaxArenaBytes, ErrorKind::kOutOfMemory, "[planner] expected values of at most ",
               kMaxArenaBytes, " bytes, found ", life.bytes, " for value '", value.name,
               "': lower max_tokens or max_seq_len");
    }
  }
  for (const NamedValue& n : program.outputs) {
    ArenaValue& life = lives[static_cast<size_t>(n.value)];
    if (life.first >= 0) life.last = end;
  }
  for (int32_t i = 0; i < end; ++i)
    take_over_storage(program, *instructions[static_cast<size_t>(i)], i, &lives);
  return lives;
}

void Block::bind(const ProgramSpec& program, std::vector<ChosenKernel> chosen,
                 std::span<const ParamBinding> params, std::span<const StateMemory> memory,
                 const ExecutorOptions& options) {
  program_ = &program;
  poison_ = options.poison;
  device_ = options.device;
  memory_ = nullptr;
  plan_memory(chosen, options);
  steps_.clear();
  views_.clear();
  patches_.clear();
  placed_.clear();
  pointers_.clear();
  state_refs_.clear();
  choices_.clear();
  if (input_data_.size() != program.inputs.size()) input_data_.assign(program.inputs.size(), nullptr);
  reserve(chosen);
  for (ChosenKernel& c : chosen) add_step(std::move(c), params, memory, options.pool);
  resolved_tokens_ = resolved_rows_ = -1;
}

void Block::plan_memory(const std::vector<ChosenKernel>& chosen, const ExecutorOptions& options) {
  std::vector<const InstructionSpec*> instructions;
  for (const ChosenKernel& c : chosen) instructions.push_back(c.instruction);
  lifetimes_ = find_lifetimes(*program_, instructions, options.max_tokens, options.max_rows);
  plan_ = plan_arena(lifetimes_, !options.poison);
  for (const ChosenKernel& c : chosen)
    plan_.workspace_bytes = std::max(plan_.workspace_bytes, c.choice.workspace_bytes);
  plan_.workspace_bytes = (plan_.workspace_bytes + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment;
  AD_CHECK(plan_.arena_bytes <= kMaxArenaBytes && plan_.workspace_bytes <= kMaxArenaBytes,
           ErrorKind::kOutOfMemory, "[planner] expected an arena of at most ", kMaxArenaBytes,
           " bytes, found ", plan_.arena_bytes, " and a workspace of ", plan_.workspace_bytes,
           ": lower max_tokens or max_seq_len");
}

void Block::reserve(const std::vector<ChosenKernel>& chosen) {
  size_t num_views = 0, num_states = 0;
  for (const ChosenKernel& c : chosen) {
    num_views += c.instruction->in.size() + c.instruction->out.size();
    num_states += c.instruction->states.size();
  }
  views_.reserve(num_views);  // steps and patches point into it
  state_refs_.reserve(num_states);
  steps_.reserve(chosen.size());
}

void Block::add_view(const OperandRef& ref, DType dtype, bool weight, std::span<const ParamBinding> params) {
  views_.emplace_back();
  TensorView& view = views_.back();
  if (ref.kind == OperandRef::Kind::kAbsent) return;
  view.dtype = dtype;
  view.ndim = static_cast<int>(ref.shape.size());
  const auto set = [&](const Dim& d, int64_t* target) {
    *target = d.constant;
    if (!d.is_static()) patches_.push_back({target, d});
  };
  for (size_t i = 0; i < ref.shape.size(); ++i) {
    set(ref.shape[i], &view.shape[i]);
    set(ref.stride[i], &view.stride[i]);
  }
  if (weight && !device_) return;
  Pointer p{&view.data, nullptr, -1, -1, ref.offset, dtype_size(dtype)};
  if (ref.kind == OperandRef::Kind::kParam) {
    p.base = static_cast<const uint8_t*>(params[static_cast<size_t>(ref.index)].plain);
    if (!p.base) return;
    view.data = const_cast<uint8_t*>(p.base) + ref.offset.constant * p.size;
  } else if (plan_.values[static_cast<size_t>(ref.index)].offset >= 0) {
    p.arena = plan_.values[static_cast<size_t>(ref.index)].offset;
    placed_.push_back(p);
  } else {
    p.input = input_of(ref.index);
    AD_ICHECK(p.input >= 0, "value ", ref.index, " is in the arena or an input");
  }
  if (p.input >= 0 || !ref.offset.is_static()) pointers_.push_back(p);
}

void Block::add_step(ChosenKernel chosen, std::span<const ParamBinding> params,
                     std::span<const StateMemory> memory, ThreadPool* pool) {
  const InstructionSpec& ins = *chosen.instruction;
  Step step;
  const size_t first_view = views_.size(), first_state = state_refs_.size();
  for (size_t i = 0; i < ins.in.size(); ++i) {
    const OperandRef& o = ins.in[i];
    const DType dtype =
        o.kind == OperandRef::Kind::kValue   ? program_->values[static_cast<size_t>(o.index)].dtype
        : o.kind == OperandRef::Kind::kParam ? program_->params[static_cast<size_t>(o.index)].dtype
                                             : DType::kF32;
    add_view(o, dtype, o.weight, params);
  }
  step.needs_rows = ins.states.empty() && !ins.out.empty();
  for (int32_t v : ins.out) {
    const ValueSpec& value = program_->values[static_cast<size_t>(v)];
    add_view(whole_value(v), value.dtype, false, params);
    if (value.numel.constant != 0 || value.numel.t != 0) step.needs_rows = false;
  }
  for (int32_t s : ins.states) state_refs_.push_back(&memory[static_cast<size_t>(s)]);
  step.call.in = {views_.data() + first_view, ins.in.size()};
  step.call.out = {views_.data() + first_view + ins.in.size(), ins.out.size()};
  step.call.states = {state_refs_.data() + first_state, ins.states.size()};
  step.call.pool = pool;
  step.instruction = &ins;
  step.kernel = std::move(chosen.kernel);
  steps_.push_back(std::move(step));
  choices_.push_back(std::move(chosen.choice));
}

void Block::attach(uint8_t* memory) {
  memory_ = memory;
  for (const Pointer& p : placed_) *p.target = memory + p.arena + p.offset.constant * p.size;
  for (Step& step : steps_) step.call.workspace = memory + plan_.arena_bytes;
}

OperandRef Block::whole_value(int32_t v) const {
  const ValueSpec& value = program_->values[static_cast<size_t>(v)];
  OperandRef ref;
  ref.kind = OperandRef::Kind::kValue;
  ref.index = v;
  ref.whole = true;
  ref.shape = value.shape;
  ref.stride = contiguous_strides(value.shape);
  return ref;
}

int32_t Block::input_of(int32_t value) const {
  for (size_t i = 0; i < program_->inputs.size(); ++i) {
    if (program_->inputs[i].value == value) return static_cast<int32_t>(i);
  }
  return -1;
}

void Block::resolve(int64_t tokens, int64_t rows) {
  if (tokens != resolved_tokens_ || rows != resolved_rows_) {
    for (const Patch& p : patches_) *p.target = p.dim.eval(tokens, rows);
    resolved_tokens_ = tokens;
    resolved_rows_ = rows;
  }
  for (const Pointer& p : pointers_) {
    const uint8_t* base = p.input >= 0
                              ? static_cast<const uint8_t*>(input_data_[static_cast<size_t>(p.input)])
                          : p.arena >= 0 ? memory_ + p.arena
                                         : p.base;
    *p.target = const_cast<uint8_t*>(base) + p.offset.eval(tokens, rows) * p.size;
  }
}

void Block::run(const StepBatch& batch, int64_t tokens, int64_t rows, const StepExecutor::Tap* tap,
                const cuda::DeviceStep* device_step) {
  resolve(tokens, rows);
  if (poison_ && memory_) {
    if (device_)
      device_->fill(memory_, 0xff, memory_bytes());
    else
      std::memset(memory_, 0xff, static_cast<size_t>(memory_bytes()));
  }
  for (Step& step : steps_) {
    if (mark_) (*mark_)(static_cast<size_t>(&step - steps_.data()));
    if (rows == 0 && step.needs_rows) continue;
    step.call.batch = &batch;
    step.call.device = device_step;
    step.kernel->run(step.call);
    if (tap) {
      for (size_t i = 0; i < step.call.out.size(); ++i) (*tap)(step.instruction->out[i], step.call.out[i]);
    }
  }
}

TensorView Block::value_view(int32_t v) const {
  const ValueSpec& value = program_->values[static_cast<size_t>(v)];
  TensorView view;
  view.dtype = value.dtype;
  view.ndim = static_cast<int>(value.shape.size());
  int64_t stride = 1;
  for (int i = view.ndim; i-- > 0;) {
    const size_t d = static_cast<size_t>(i);
    view.shape[d] = value.shape[d].eval(resolved_tokens_, resolved_rows_);
    view.stride[d] = stride;
    stride *= view.shape[d];
  }
  const int64_t offset = plan_.values[static_cast<size_t>(v)].offset;
  if (view.numel() == 0) return view;
  if (offset >= 0)
    view.data = memory_ + offset;
  else if (const int32_t i = input_of(v); i >= 0)
    view.data = const_cast<void*>(input_data_[static_cast<size_t>(i)]);
  return view;
}

}  // namespace autodeploy
