// Parts of plans in words that backends share.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "cache_manager/cache_plan.h"

namespace autodeploy {

// {"groups": [...], "slots": {...}}
nlohmann::ordered_json caches_json(const CachePlan& plan);

}  // namespace autodeploy
