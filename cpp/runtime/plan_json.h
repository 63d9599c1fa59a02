// Parts of plans in words that backends share.
#pragma once

#include <nlohmann/json_fwd.hpp>

#include "cache_manager/cache_plan.h"
#include "runtime/engine_options.h"
#include "runtime/program_limits.h"

namespace autodeploy {

// The limits that caches were planned for, and what the user chose; max_seq_len counts prompt and answer, not
// the model's prefix.
nlohmann::ordered_json limits_json(const CacheLimits& limits, const ProgramLimits& program,
                                   size_t num_prefix_tokens, const EngineOptions& options);

// {"groups": [...], "slots": {...}}
nlohmann::ordered_json caches_json(const CachePlan& plan);

}  // namespace autodeploy
