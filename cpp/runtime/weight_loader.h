// Evaluates a weight program straight from memory-mapped files into the layouts that the kernels read.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "kernels/cpu/packed_weight.h"
#include "runtime/program_spec.h"
#include "runtime/weight_program.h"

namespace autodeploy {

// Bytes of one param, known without opening a file.
struct ParamPlan {
  std::string name;
  int64_t packed_bytes = 0;  // as a weight operand: each segment in its stored format
  int64_t plain_bytes = 0;   // as a plain array of its dtype
};

struct WeightPlan {
  std::vector<ParamPlan> params;  // in the order of the Program
  int64_t resident_bytes = 0;     // everything that stays, alignment included
  int64_t scratch_bytes = 0;      // most that loading needs besides, mapped pages included
};

// Checks that the weight program gives every param of the Program with the right shape, and says what loading
// will take. `params` are those of the Program; each is packed where used_as_weight and plain where
// used_as_plain, or both. Throws Error(kInvalidArtifact) naming the param.
WeightPlan plan_weights(const WeightProgram& weights, std::span<const ParamSpec> params, int num_threads);

// All params of a Program in memory. Views and PackedWeights stay valid as long as this object lives; it may
// be moved.
class LoadedWeights {
 public:
  LoadedWeights();
  ~LoadedWeights();
  LoadedWeights(LoadedWeights&&) noexcept;
  LoadedWeights& operator=(LoadedWeights&&) noexcept;

  // Row-major [shape] of the param's dtype; empty (data == nullptr) where the param is not used as plain.
  TensorView plain(const std::string& name) const;
  // nullptr where the param is not used as a weight.
  const PackedWeight* packed(const std::string& name) const;
  const WeightPlan& plan() const;

 private:
  friend LoadedWeights load_weights(const WeightProgram&, const std::string&, std::span<const ParamSpec>,
                                    ThreadPool&, const std::function<void(int64_t, int64_t)>&);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Loads all params. `progress(done, total)` counts resident bytes and is called now and then from the calling
// thread, at the end with done == total; it may throw to give up. Peak memory is plan.resident_bytes plus at
// most plan.scratch_bytes. Throws Error(kIo) where a source cannot be read and Error(kInvalidArtifact) where
// it is not the file that was compiled (size or fingerprint), naming the file and what to do.
LoadedWeights load_weights(const WeightProgram& weights, const std::string& artifact_dir,
                           std::span<const ParamSpec> params, ThreadPool& pool,
                           const std::function<void(int64_t, int64_t)>& progress = {});

}  // namespace autodeploy
