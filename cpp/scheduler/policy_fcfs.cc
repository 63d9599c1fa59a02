#include "scheduler/policy.h"

namespace autodeploy {
namespace {

// Never overtakes, so a long request is not starved by short ones.
class FcfsPolicy final : public Policy {
 public:
  size_t next(std::span<Request* const>) const override { return 0; }
};

}  // namespace

std::unique_ptr<Policy> make_fcfs_policy() { return std::make_unique<FcfsPolicy>(); }

}  // namespace autodeploy
