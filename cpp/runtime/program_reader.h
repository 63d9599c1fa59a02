// program.json -> ProgramSpec. Everything is checked here, once.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "runtime/program_spec.h"

namespace autodeploy {

// Parses and checks a Program; `act` is what the activation type is bound to. Throws Error(kInvalidArtifact)
// "[program.json: instruction 12 (linear)] expected ..., found ..." on anything malformed, and
// Error(kUnsupported) on a version or an op that this build does not have. Operators of an author's own are
// known where one of `plugins` provides them, or all of them where the artifact has compiled kernels, which
// are looked for when kernels are chosen.
ProgramSpec read_program(std::string_view json, DType act = DType::kF32,
                         std::shared_ptr<const PluginSet> plugins = nullptr, bool compiled_kernels = false);

// Reads `<dir>/program.json`.
ProgramSpec load_program(const std::string& artifact_dir, DType act = DType::kF32,
                         std::shared_ptr<const PluginSet> plugins = nullptr, bool compiled_kernels = false);

}  // namespace autodeploy
