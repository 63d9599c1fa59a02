#include "runtime/plan_json.h"

#include <nlohmann/json.hpp>
#include <utility>

namespace autodeploy {

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
