#include "runtime/artifact_info.h"

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "scheduler/sampling_params.h"

namespace autodeploy {

std::vector<int64_t> read_eos_token_ids(const std::string& artifact_dir) {
  constexpr const char* kStage = "[generation_config.json]";
  std::ifstream in(artifact_dir + "/generation_config.json");
  if (!in) return {};
  const nlohmann::json config = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  AD_CHECK(config.is_object(), ErrorKind::kInvalidArtifact, kStage,
           " expected a JSON object, found otherwise");
  const auto field = config.find("eos_token_id");
  if (field == config.end() || field->is_null()) return {};
  const nlohmann::json list = field->is_array() ? *field : nlohmann::json::array({*field});
  AD_CHECK(list.size() <= kMaxTokenLists, ErrorKind::kInvalidArtifact, kStage,
           " eos_token_id: expected at most ", kMaxTokenLists, " ids, found ", list.size());
  std::vector<int64_t> ids;
  for (const nlohmann::json& id : list) {
    AD_CHECK(id.is_number_integer() && id >= 0 && id <= INT32_MAX, ErrorKind::kInvalidArtifact, kStage,
             " eos_token_id: expected a token id or a list of them, found ", id.dump().substr(0, 80));
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

}  // namespace autodeploy
