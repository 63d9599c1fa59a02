// Runs a program step by step, wherever it runs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/step_batch.h"
#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "runtime/program_spec.h"

namespace autodeploy {

class StepExecutor {
 public:
  virtual ~StepExecutor() = default;
  virtual const ProgramSpec& program() const = 0;

  // Runs one step; T >= 1. Returns the logits [R, vocab] in the host's memory, valid until the next run (no
  // data when R is 0 or the program has no output "logits"). The caller guarantees what StepBatch says; sizes
  // beyond the options throw Error(kInvalidArgument).
  virtual TensorView run(const StepBatch& batch) = 0;

  // Called with each value right after the instruction that wrote it; the view is in the host's memory and
  // valid during the call only. Values that only live inside a composite's kernel are not seen.
  using Tap = FunctionRef<void(int32_t value, const TensorView& view)>;
  virtual TensorView run(const StepBatch& batch, Tap tap) = 0;

  // Sets an input other than token_ids and positions for the following runs; `data` is row-major, of the
  // value's dtype, and stays valid meanwhile. Throws Error(kInvalidArgument) on an unknown name.
  virtual void set_input(const std::string& name, const void* data) = 0;

  // An output of the last run, by name; valid until the next run.
  virtual TensorView output(const std::string& name) = 0;

  // Microseconds that each instruction of the plan takes in a step like this one, launched alone: the least
  // of so many repeats, in the order of the plan. Throws Error(kUnsupported) where the device has no clock.
  virtual std::vector<double> profile(const StepBatch& batch, int repeats) {
    (void)batch, (void)repeats;
    throw Error(ErrorKind::kUnsupported, "[executor] expected a device to profile, found the CPU");
  }

  // Every byte and every choice, as a JSON object: {"limits", "memory", "weights", "states", "values",
  // "instructions"}.
  virtual std::string plan_json() const = 0;
};

}  // namespace autodeploy
