#include "scheduler/policy.h"

#include "core/error.h"

namespace autodeploy {

std::unique_ptr<Policy> make_policy(PolicyKind kind) {
  switch (kind) {
    case PolicyKind::kFcfs:
      return make_fcfs_policy();
  }
  throw Error(ErrorKind::kInternal, "[scheduler] expected a known policy");
}

}  // namespace autodeploy
