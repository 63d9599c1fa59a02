// Who runs a step: the border between the host-only rooms and a backend.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/step_batch.h"
#include "scheduler/request.h"

namespace autodeploy {

// One row of logits and the request that it is for.
struct SampleRow {
  const SamplingParams* params = nullptr;
  std::span<const int64_t> prompt, generated;
  // Index in the sequence of the token to be drawn: random numbers are a function of (seed, position).
  int64_t position() const { return static_cast<int64_t>(prompt.size() + generated.size()); }
};

// Everything about a step that a backend needs; valid until the step has been completed.
struct Step {
  StepBatch batch;
  std::span<const SampleRow> rows;  // [R], in the order of batch.rows
};

struct SampledRow {
  int64_t token = -1;     // -1: the logits held NaN, or nothing finite to choose from
  ChosenLogprob logprob;  // where params->logprobs >= 0
};

struct BatchResult {
  std::span<const SampledRow> rows;  // [R]
  std::string failure;               // not empty: the whole step failed, and the caches hold nothing of it
  bool fatal = false;                // and no later step can succeed
};

class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  // Starts a step. An exception means that the step failed.
  virtual void launch(const Step& step) = 0;
  // Waits for the step launched last; the result is valid until the next launch. An exception means that the
  // step failed.
  virtual BatchResult wait() = 0;
};

}  // namespace autodeploy
