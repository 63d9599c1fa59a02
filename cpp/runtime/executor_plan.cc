// The executor's arena, and its plan in words.
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "runtime/executor_impl.h"
#include "runtime/executor_plan.h"

namespace autodeploy {
namespace {

using Json = nlohmann::ordered_json;
constexpr int64_t kHugePagesFrom = int64_t{8} << 20;  // a smaller arena would waste too much of one

Json choice_json(const KernelChoice& c) {
  Json line = {
      {"instruction", c.instruction}, {"op", c.op}, {"kernel", c.kernel}, {"workspace", c.workspace_bytes}};
  if (c.part) line["part"] = true;
  if (!c.covers.empty()) line["covers"] = c.covers;
  if (!c.source.empty()) line["source"] = c.source;
  if (!c.declined.empty()) line["declined"] = c.declined;
  if (c.tile == 0) return line;
  line["tile"] = c.tile;
  line["body_arena"] = c.body_arena;
  line["body_keys"] = c.body_keys;
  Json body = Json::array();
  for (const KernelChoice& inner : c.body) body.push_back(choice_json(inner));
  line["body"] = std::move(body);
  return line;
}

}  // namespace

// Pages are touched now, so that no step meets a page fault.
void Executor::Impl::allocate_arena() {
  arena = {};  // before the new one, which may need the memory
  arena = HostMemory(block.memory_bytes(), "planner");
  if (arena.bytes() >= kHugePagesFrom) arena.prefer_huge_pages();
  constexpr int64_t kPiece = int64_t{1} << 20;
  options.pool->parallel_for(arena.bytes(), kPiece,
                             [&](int64_t from, int64_t to, int) { arena.populate(from, to); });
}

std::string Executor::plan_json() const {
  const Impl& p = *impl_;
  return executor_plan_json(p.program, p.options, p.bindings, p.states, p.block);
}

std::string executor_plan_json(const ProgramSpec& program, const ExecutorOptions& options,
                               std::span<const ParamBinding> bindings,
                               const std::vector<StateSpec>& state_specs, const Block& block) {
  Json plan;
  plan["limits"] = {
      {"max_tokens", options.max_tokens}, {"max_seqs", options.max_seqs},
      {"max_rows", options.max_rows},     {"max_seq_len", options.max_seq_len},
      {"exact", options.exact},           {"num_threads", options.pool ? options.pool->num_threads() : 0}};
  int64_t weight_bytes = 0;
  Json weights = Json::array();
  for (size_t i = 0; i < bindings.size(); ++i) {
    weight_bytes += bindings[i].bytes;
    weights.push_back({{"name", program.params[i].name}, {"bytes", bindings[i].bytes}});
  }
  plan["memory"] = {{"weights", weight_bytes},
                    {"arena", block.plan().arena_bytes},
                    {"arena_lower_bound", block.plan().lower_bound},
                    {"workspace", block.plan().workspace_bytes}};
  plan["weights"] = std::move(weights);
  Json states = Json::array();
  for (const StateSpec& s : state_specs) {
    int64_t bytes = 0;
    for (const StateComponentSpec& c : s.components) {
      int64_t n = dtype_size(c.dtype);
      for (int64_t d : c.shape) n *= d;
      bytes += n;
    }
    const bool paged = s.kind == StateSpec::Kind::kPaged;
    Json line = {{"name", s.name},
                 {"kind", paged                              ? "paged"
                          : s.kind == StateSpec::Kind::kSlot ? "slot"
                                                             : "conv"},
                 {paged ? "bytes_per_token" : "bytes_per_sequence", bytes}};
    if (paged) {
      line["group"] = s.group;
      line["page_size"] = s.page_size;
    }
    states.push_back(std::move(line));
  }
  plan["states"] = std::move(states);
  Json values = Json::array();
  for (size_t i = 0; i < block.plan().values.size(); ++i) {
    const PlannedValue& v = block.plan().values[i];
    if (v.offset < 0) continue;
    const ArenaValue& life = block.lifetimes()[i];
    Json line = {{"value", i},          {"name", program.values[i].name},
                 {"offset", v.offset},  {"bytes", life.bytes},
                 {"first", life.first}, {"last", life.last}};
    if (v.shares >= 0) line["in_place_of"] = v.shares;
    values.push_back(std::move(line));
  }
  plan["values"] = std::move(values);
  Json instructions = Json::array();
  for (const KernelChoice& c : block.choices()) instructions.push_back(choice_json(c));
  plan["instructions"] = std::move(instructions);
  return plan.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace autodeploy
