// What a Program itself bounds: the token ids and positions that may go in.
#pragma once

#include <cstdint>

#include "runtime/program_spec.h"

namespace autodeploy {

struct ProgramLimits {
  int64_t vocab_size = 0;     // token ids are below it, in and out, but for those of the prefix
  int64_t max_positions = 0;  // positions are below it, those of the prefix included; 0: unbounded
};

// The least of what the metadata says, the columns of the logits, and the rows of the tables that token ids
// and positions index. Throws Error(kUnsupported) for a program without logits [R, columns].
ProgramLimits find_program_limits(const ProgramSpec& program);

}  // namespace autodeploy
