// An engine's backend over the fake model of hashes: no artifact, no kernels.
#pragma once

#include <memory>
#include <string>

#include "../scheduler/fake_runner.h"
#include "runtime/engine.h"

namespace autodeploy::testing_fakes {

class FakeBackend final : public EngineBackend {
 public:
  FakeBackend(const FakeModel& model, CacheLimits limits) : model_(model), stack_(model, limits) {}
  ModelRunner& runner() override { return *stack_.runner; }
  CacheManager& cache() override { return *stack_.cache; }
  int64_t vocab_size() const override { return model_.vocab_size; }
  std::string plan_json(int64_t) const override { return R"({"limits": {"vocab_size": 97}, "memory": {}})"; }
  FakeRunner& fake() { return *stack_.runner; }

 private:
  FakeModel model_;
  FakeStack stack_;
};

}  // namespace autodeploy::testing_fakes
