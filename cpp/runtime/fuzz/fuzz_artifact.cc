// Fuzz target: the JSON files of an artifact. Whatever the bytes, a reader either accepts them or throws an
// Error that names the place; launches of compiled kernels that were accepted can be evaluated; a Program
// that was accepted and is small enough is bound to weights of zeros and ones and run, so that what the
// reader lets pass is also what the executor and the kernels can trust.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cache_manager/cache_plan.h"
#include "cache_manager/state_pools.h"
#include "core/error.h"
#include "kernels/cpu/packed_weight.h"
#include "runtime/compiled_kernels.h"
#include "runtime/executor.h"
#include "runtime/fuzz/mutate_json.h"
#include "runtime/program_reader.h"
#include "runtime/weight_program.h"

namespace autodeploy::fuzz {
namespace {

constexpr int64_t kMaxTokens = 6, kMaxSeqLen = 16;
constexpr int64_t kMaxElements = 1 << 14;  // of anything that is run
constexpr int64_t kMaxParamBytes = 16 << 20;

// Memory of a param in each form that the program asks for.
struct OwnedParam {
  std::vector<float> plain;
  PackedWeight packed;
  std::unique_ptr<uint8_t, void (*)(void*)> data{nullptr, std::free};
};

int64_t numel(const std::vector<Dim>& shape, int64_t rows = kMaxTokens) {
  int64_t n = 1;
  for (const Dim& d : shape) {
    n *= d.eval(kMaxTokens, rows);
    if (n > kMaxElements) return kMaxElements + 1;
  }
  return n;
}

bool is_small(const InstructionSpec& ins, const ProgramSpec& program) {
  for (const OperandRef& o : ins.in) {
    if (o.kind != OperandRef::Kind::kAbsent && numel(o.shape) > kMaxElements) return false;
  }
  for (int32_t v : ins.out) {
    if (numel(program.values[static_cast<size_t>(v)].shape) > kMaxElements) return false;
  }
  // Ids of a table are trusted to be below its rows: here they are the token ids, all 0, or positions below
  // kMaxSeqLen.
  if (ins.op == "embedding") {
    if (ins.in[0].kind != OperandRef::Kind::kValue || ins.in[1].kind != OperandRef::Kind::kParam)
      return false;
    const bool ids = ins.in[0].index == program.input("token_ids"),
               positions = ins.in[0].index == program.input("positions");
    const std::vector<int64_t>& table = program.params[static_cast<size_t>(ins.in[1].index)].shape;
    if (!(ids || positions) || table.empty() || table[0] < (positions ? kMaxSeqLen : 1)) return false;
  }
  return std::all_of(ins.parts.begin(), ins.parts.end(),
                     [&](const InstructionSpec& p) { return is_small(p, program); });
}

bool is_small(const BodySpec& body) {
  const int64_t blocks = body.num_blocks(kMaxSeqLen);
  if (blocks > kMaxElements || body.block > kMaxElements || body.program.values.size() > 1000) return false;
  for (const BodyInputSpec& input : body.inputs) {
    if (input.token_numel > kMaxElements || input.token_numel * blocks * body.block > kMaxElements)
      return false;
  }
  for (const ValueSpec& v : body.program.values) {
    if (numel(v.shape, blocks) > kMaxElements) return false;
  }
  for (const InstructionSpec& ins : body.program.instructions) {
    for (const OperandRef& o : ins.in) {
      if (o.kind != OperandRef::Kind::kAbsent && numel(o.shape, blocks) > kMaxElements) return false;
    }
  }
  return true;
}

bool is_small(const ProgramSpec& program) {
  int64_t bytes = 0;
  for (const ParamSpec& p : program.params) {
    bytes += p.numel() > kMaxParamBytes ? kMaxParamBytes : p.numel() * dtype_size(p.dtype);
    if (bytes > kMaxParamBytes) return false;
  }
  for (const StateSpec& s : program.states) {
    for (const StateComponentSpec& c : s.components) {
      int64_t n = 1;
      for (int64_t d : c.shape) n = std::min<int64_t>(n * d, 1 << 20);
      if (n > kMaxElements) return false;
    }
  }
  return program.values.size() < 1000 &&
         std::all_of(program.bodies.begin(), program.bodies.end(),
                     [](const BodySpec& b) { return is_small(b); }) &&
         std::all_of(program.instructions.begin(), program.instructions.end(),
                     [&](const InstructionSpec& i) { return is_small(i, program); });
}

// Quantized where rows allow it, by a rule that depends on the place alone.
OwnedParam make_param(const ParamSpec& spec, size_t index) {
  OwnedParam p;
  if (spec.used_as_plain) {
    p.plain.assign(static_cast<size_t>(spec.numel() * dtype_size(spec.dtype) / 4 + 2), 1.0f);
    if (spec.dtype != DType::kF32) std::memset(p.plain.data(), 0, p.plain.size() * 4);
  }
  if (!spec.used_as_weight || spec.shape.size() < 2 || spec.numel() == 0) return p;
  constexpr Format kFormats[] = {Format::kF32, Format::kQ4_1, Format::kF16, Format::kQ8_0, Format::kBF16};
  const int64_t cols = spec.shape.back(), rows = spec.numel() / cols;
  Format format = kFormats[index % std::size(kFormats)];
  if (cols % format_info(format).block_len != 0) format = Format::kF32;
  PackedSegment segment =
      plan_packed_segment(format, rows, cols, spec.shape.size() == 3 ? spec.shape[1] : rows);
  p.data.reset(
      static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((segment.bytes + 127) / 64 * 64))));
  const std::vector<uint8_t> stored(static_cast<size_t>(format_row_bytes(format, cols) * rows), uint8_t{0});
  pack_rows(segment, 0, rows, stored.data(), p.data.get());
  segment.data = p.data.get();
  p.packed = {spec.name, spec.shape, {segment}};
  return p;
}

void run_step(Executor& executor, const std::vector<StateSpec>& states, const CachePlan& plan, int64_t tokens,
              int64_t past) {
  std::vector<int64_t> ids(static_cast<size_t>(tokens), 0), positions;
  std::vector<int32_t> rows;
  for (int64_t i = 0; i < tokens; ++i) {
    positions.push_back(past + i);
    if (i % 2 == 0) rows.push_back(static_cast<int32_t>(i));
  }
  const std::vector<int32_t> query_start = {0, static_cast<int32_t>(tokens)},
                             kv_len = {static_cast<int32_t>(past + tokens)},
                             slot = {plan.slots.num_slots > 0 ? 1 : 0};
  const std::vector<uint8_t> has_state = {past > 0};
  std::vector<std::vector<int32_t>> pages;
  std::vector<StepBatch::PageTable> tables;
  for (const PageGroupPlan& g : plan.groups) {
    pages.emplace_back();
    for (int32_t p = 1; p < g.num_pages && (p - 1) * g.page_size < kMaxSeqLen; ++p) pages.back().push_back(p);
  }
  for (size_t g = 0; g < pages.size(); ++g) {
    tables.push_back({plan.groups[g].page_size, static_cast<int32_t>(pages[g].size()), pages[g]});
  }
  StepBatch batch;
  batch.num_tokens = tokens;
  batch.num_seqs = 1;
  batch.num_decodes = tokens == 1;
  batch.num_rows = static_cast<int64_t>(rows.size());
  batch.token_ids = ids;
  batch.positions = positions;
  batch.query_start = query_start;
  batch.kv_len = kv_len;
  batch.page_tables = tables;
  batch.slot = slot;
  batch.has_state = has_state;
  batch.rows = rows;
  static_cast<void>(states);
  executor.run(batch);
}

void run_program(ProgramSpec program) {
  static ThreadPool pool(1);
  std::vector<OwnedParam> owned;
  std::vector<ParamBinding> params;
  for (size_t i = 0; i < program.params.size(); ++i) owned.push_back(make_param(program.params[i], i));
  for (const OwnedParam& p : owned) {
    params.push_back(
        {p.plain.empty() ? nullptr : p.plain.data(), p.packed.segments.empty() ? nullptr : &p.packed, 0});
  }
  std::vector<StateSpec> states = program.states;
  CacheLimits limits;
  limits.max_seq_len = kMaxSeqLen;
  limits.max_num_seqs = 1;
  limits.max_batch_tokens = kMaxTokens;
  limits.page_size = 16;
  limits.max_bytes = int64_t{64} << 20;
  const CachePlan plan = plan_caches(states, limits);
  HostStatePools pools(plan);
  std::vector<std::vector<int64_t>> inputs;
  Executor executor(std::move(program));
  ExecutorOptions options;
  options.max_tokens = options.max_rows = kMaxTokens;
  options.max_seqs = 1;
  options.max_seq_len = kMaxSeqLen;
  options.pool = &pool;
  executor.bind(params, states, pools.memory(), options);
  for (const NamedValue& n : executor.program().inputs) {
    if (n.name == "token_ids" || n.name == "positions") continue;
    const ValueSpec& v = executor.program().values[static_cast<size_t>(n.value)];
    inputs.emplace_back(static_cast<size_t>(numel(v.shape) + 1), 0);
    executor.set_input(n.name, inputs.back().data());
  }
  run_step(executor, states, plan, kMaxTokens, 0);
  run_step(executor, states, plan, 1, kMaxTokens);
}

// What kernels.json of the corpus names as its program.
const std::string kAnyProgram(64, 'a');

// Every launch that is read is bound to an instruction of two operands and a result, and evaluated.
void evaluate_launches(const CompiledKernels& kernels) {
  KernelSpec spec;
  spec.op = "region";
  spec.attrs.set("eps", 0.5);
  spec.attrs.set("count", int64_t{3});
  OperandSpec operand;
  operand.present = true;
  operand.shape = {Dim{0, 1}, Dim{6}};
  operand.stride = {Dim{12}, Dim{1}};
  spec.in = {operand, operand};
  spec.out = {operand};
  for (const auto& [place, launch] : kernels.launches()) {
    for (const auto& [act, index] : launch.kernels) {
      BoundLaunch bound;
      try {
        bound = bind_launch(launch, kernels.kernel(index), spec);
      } catch (const Error& e) {
        if (e.kind() != ErrorKind::kInvalidArtifact) throw;
        continue;
      }
      for (int64_t tokens : {int64_t{0}, int64_t{1}, int64_t{1} << 40}) {
        TensorView view;
        view.ndim = 2;
        view.shape = {tokens, 6};
        view.stride = {12, 1};
        const TensorView views[] = {view, view};
        for (const LaunchExpr& e : bound.grid) evaluate(e, views, views);
        for (size_t i = 0; i < bound.args.size(); ++i) {
          const LaunchArgType type = kernels.kernel(index).args[i].type;
          if (type == LaunchArgType::kI32 || type == LaunchArgType::kI64)
            evaluate(bound.args[i], views, views);
        }
      }
    }
  }
}

template <class F>
void expect_error_or_success(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::kInternal && std::string_view(e.what()).rfind('[', 0) == 0) return;
    std::fprintf(stderr, "not an error of the user's: %s\n", e.what());
    std::abort();
  }
}

}  // namespace
}  // namespace autodeploy::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace autodeploy;
  const std::string text(reinterpret_cast<const char*>(data), size);
  fuzz::expect_error_or_success([&] { read_weight_program(text); });
  fuzz::expect_error_or_success(
      [&] { fuzz::evaluate_launches(CompiledKernels::read(text, fuzz::kAnyProgram)); });
  fuzz::expect_error_or_success([&] {
    ProgramSpec program = read_program(text);
    if (fuzz::is_small(program)) fuzz::run_program(std::move(program));
  });
  return 0;
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::mt19937_64 rng(seed);
  const std::string text =
      autodeploy::fuzz::mutate_json(std::string(reinterpret_cast<char*>(data), size), rng);
  const size_t n = std::min(text.size(), max_size);
  std::memcpy(data, text.data(), n);
  return n;
}
