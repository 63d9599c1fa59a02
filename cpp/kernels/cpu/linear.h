// The linear kernels' heuristics, apart from the work.
#pragma once

#include <cstdint>

namespace autodeploy {

// How the outputs of a step are cut into tasks: token blocks outside, ranges of groups inside, so that a
// thread's token block stays in its cache while the weights stream by. Results do not depend on it.
struct LinearSplit {
  int64_t token_block, group_block;
};

// granule: groups that are worked on together; token_limit: tokens that fit a core's cache.
LinearSplit choose_linear_split(int64_t tokens, int64_t groups, int64_t granule, int64_t token_limit,
                                int threads);

}  // namespace autodeploy
