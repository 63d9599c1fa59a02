// Facts of an artifact that lie beside its program.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace autodeploy {

// eos_token_id of `<dir>/generation_config.json`, one id or a list; none where the file or the field is
// absent. Throws Error(kInvalidArtifact) where it is malformed.
std::vector<int64_t> read_eos_token_ids(const std::string& artifact_dir);

}  // namespace autodeploy
