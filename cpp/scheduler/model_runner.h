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
  // Row of the step launched just before whose token follows `generated` and has not arrived yet; -1: none.
  int32_t pending_row = -1;
  // Tokens generated before the one to be drawn, the pending one included.
  int64_t num_generated() const { return static_cast<int64_t>(generated.size()) + (pending_row >= 0); }
  // Index in the sequence of the token to be drawn: random numbers are a function of (seed, position).
  int64_t position() const { return static_cast<int64_t>(prompt.size()) + num_generated(); }
};

// Everything about a step that a backend needs. It stays as it is, with all that it points to, from its
// launch until the loop has taken its result (or its failure) in, which is after its wait().
struct Step {
  StepBatch batch;
  // [T] For a token that has not reached the host yet: the row of the step launched just before whose sampled
  // token it is, and token_ids holds 0. Else -1, and token_ids holds it. Empty: all are known.
  // A row that came to no token (-1, or its step failed) may be named, too: the request has ended and nobody
  // looks at what comes of it, so any token will do in its place, but it must be one that is safe to look up.
  std::span<const int32_t> token_rows;
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

// Times in microseconds: how many there were, and median and 95th percentile of the latest ones.
struct TimesSummary {
  int64_t count = 0;
  double median = 0, p95 = 0;
};

// What a runner has counted. Decode steps are those in which each sequence has one token.
struct RunnerStats {
  int64_t num_decode_steps = 0;    // launched
  int64_t num_replayed_steps = 0;  // of those, replayed from a recorded graph
  // Of a device that was asked to time its steps. A decode step takes from its first kernel to its last one;
  // the gap goes from there to the first kernel of the next step, where that is a decode step, too, of which
  // at least one sequence goes on: copies between the steps and a host that comes late are in it.
  TimesSummary decode_step_us, step_gap_us;
};

// Steps run one after the other in the order of their launches, and each sees what those before it left in
// the caches. Called by one thread at a time.
class ModelRunner {
 public:
  virtual ~ModelRunner() = default;
  // Steps that may be launched and not waited for: 1, or 2 where launch() returns before its step has run, so
  // that the host can prepare the next one meanwhile.
  virtual int32_t max_in_flight() const { return 1; }
  // Starts a step. An exception means that the step failed: it is not in flight, is not waited for, and those
  // in flight go on. A step launched next names none of its rows.
  virtual void launch(const Step& step) = 0;
  // Waits for the oldest step that was launched and not waited for. An exception means that this step failed,
  // as a failure in the result does; it counts as waited for, and a step launched after it is waited for all
  // the same, unless the failure is fatal: then nothing is launched or waited for any more.
  // The rows of the result are valid until as many steps have been launched after its own as may be in
  // flight, so its buffers are needed max_in_flight() times. The loops read them before they launch or wait
  // again.
  virtual BatchResult wait() = 0;
  // From any thread.
  virtual RunnerStats stats() const { return {}; }
};

}  // namespace autodeploy
