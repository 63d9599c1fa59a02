// Which waiting request is admitted next.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "scheduler/request.h"

namespace autodeploy {

enum class PolicyKind : uint8_t {
  kFcfs,  // policy_fcfs.cc: first come, first served
};

class Policy {
 public:
  virtual ~Policy() = default;
  // Index of the request to admit next; `waiting` is not empty and in order of arrival. When it cannot be
  // admitted for want of memory, nobody is in this step.
  virtual size_t next(std::span<Request* const> waiting) const = 0;
};

std::unique_ptr<Policy> make_fcfs_policy();
std::unique_ptr<Policy> make_policy(PolicyKind kind);

}  // namespace autodeploy
