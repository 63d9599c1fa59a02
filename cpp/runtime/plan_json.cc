#include "runtime/plan_json.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace autodeploy {

nlohmann::ordered_json limits_json(const CacheLimits& limits, const ProgramLimits& program,
                                   size_t num_prefix_tokens, const EngineOptions& options) {
  return {{"vocab_size", program.vocab_size},
          {"max_positions", program.max_positions},
          {"max_seq_len", limits.max_seq_len - static_cast<int64_t>(num_prefix_tokens)},
          {"num_prefix_tokens", num_prefix_tokens},
          {"max_num_seqs", limits.max_num_seqs},
          {"max_batch_tokens", limits.max_batch_tokens},
          {"max_open_steps", limits.max_open_steps},
          {"cache_bytes", limits.max_bytes},
          {"page_size", limits.page_size},
          {"exact", options.exact},
          {"load_format", options.load_format == LoadFormat::kDummy ? "dummy" : "auto"}};
}

nlohmann::ordered_json caches_json(const CachePlan& plan) {
  using Json = nlohmann::ordered_json;
  Json groups = Json::array();
  for (const PageGroupPlan& group : plan.groups) {
    groups.push_back({{"window", group.window},
                      {"chunk", group.chunk},
                      {"page_size", group.page_size},
                      {"page_bytes", group.page_bytes},
                      {"num_pages", group.num_pages},
                      {"pages_per_sequence", group.pages_for(plan.limits.max_seq_len)},
                      {"states", group.states},
                      {"bytes", group.bytes()}});
  }
  return {{"groups", std::move(groups)},
          {"slots",
           {{"slot_bytes", plan.slots.slot_bytes},
            {"num_slots", plan.slots.num_slots},
            {"states", plan.slots.states},
            {"bytes", plan.slots.bytes()}}}};
}

}  // namespace autodeploy
