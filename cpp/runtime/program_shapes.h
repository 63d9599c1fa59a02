// Sizes of shapes and bounds of views, proved for every step (in a body: for every tile) at once.
#pragma once

#include <string>
#include <vector>

#include "runtime/program_spec.h"

namespace autodeploy::program_format {

// What the symbols of dims can be: T and R of a program, or N (in Dim::t) and S (in Dim::r) of a body.
struct DimScope {
  bool in_body = false;
  int64_t least_rows = 0;  // the least R or S

  int64_t max_tokens() const { return in_body ? kMaxTileQueries : kMaxProgramTokens; }
  int64_t max_rows() const { return kMaxProgramTokens; }
};

// "[T, 9, 64]", in a body "[N, 9, 8*S]".
std::string shape_text(const std::vector<Dim>& shape, const DimScope& scope);
std::string dim_text(const Dim& dim, const DimScope& scope);

// Number of elements. Throws Error(kInvalidArtifact) where it is no multiple of one symbol (in a body: of one
// N and one S), or is more than 2^53 at the largest step, not counting dims that are 0: no partial product of
// a shape overflows later.
Dim shape_numel(const std::vector<Dim>& shape, const DimScope& scope, const std::string& where);

// Throws Error(kInvalidArtifact) unless the view lies within a storage of that many elements at every step. A
// view without elements reads nothing.
void check_bounds(const OperandRef& view, const Dim& storage, const DimScope& scope,
                  const std::string& where);

}  // namespace autodeploy::program_format
