// Decides what runs in each step, and what its results mean for the requests.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cache_manager/cache_manager.h"
#include "scheduler/batch_builder.h"
#include "scheduler/model_runner.h"
#include "scheduler/policy.h"
#include "scheduler/request.h"

namespace autodeploy {

struct SchedulerCounters {
  int64_t num_steps = 0, num_failed_steps = 0;
  int64_t num_prefill_tokens = 0, num_decode_tokens = 0;  // of steps that passed
  // Decodes among them of requests that had ended before the step passed: at most one for each request.
  int64_t num_wasted_decodes = 0;
};

// A step is a transaction: schedule() plans it and maps its pages, then either complete() commits it or
// fail() rolls the books back and ends its requests. Steps are open from schedule() on, and complete() and
// fail() close the oldest one. As many may be open as the cache plan allows; a step that is scheduled while
// another one is open goes by the tokens that the other will bring, wherever the number of tokens alone does
// not end a request. A request that ends otherwise while a newer step has it keeps its pages and its slot
// until that one has been closed as well. Owned by one thread, except for check().
class Scheduler {
 public:
  // Limits are those of the cache plan; every running sequence decodes in every step, so max_batch_tokens
  // must not be less than max_num_seqs (Error(kInvalidArgument)). `prefix` is put before every prompt: it is
  // computed and cached with it, but it is no part of what a request's limits, penalties and outputs count.
  Scheduler(CacheManager* cache, int64_t vocab_size, std::span<const int64_t> prefix = {},
            PolicyKind policy = PolicyKind::kFcfs);
  ~Scheduler();

  // Throws Error(kInvalidArgument) where a request is malformed or could never run. From any thread.
  void check(std::span<const int64_t> prompt, const SamplingParams& params) const;
  // Queues a request that passed check(); params.seed is set.
  void add(RequestId id, std::span<const int64_t> prompt, SamplingParams params);
  // Ends a request in whatever state it is in: at once, or when the oldest open step that it is part of has
  // passed, whose token is dropped. False when there is no such request (any more).
  bool cancel(RequestId id);

  // Plans a step: decodes first, then prefill chunks, then admissions, within max_batch_tokens and
  // max_num_seqs. nullptr when there is nothing to run, or nothing before an open step has passed. The step
  // stays valid until it is closed.
  const Step* schedule();
  // Close the oldest open step.
  void complete(const BatchResult& result);
  void fail(const std::string& error);
  // End every request; no step may be open.
  void fail_all(const std::string& error);
  void cancel_all();

  // What has come up since the last call, in order.
  std::vector<StepOutput> take_outputs();

  // A request has not ended, or is still part of an open step.
  bool has_work() const { return !requests_.empty(); }
  int32_t num_open_steps() const { return num_open_; }
  int32_t max_open_steps() const { return static_cast<int32_t>(steps_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  // Bytes that the arrays of the steps and the caches' books take, from the start to the end.
  int64_t bytes() const;
  const SchedulerCounters& counters() const { return counters_; }
  // The caches' books, and that running requests and sequences match. Throws Error(kInternal).
  void audit() const;

 private:
  struct OpenStep {
    explicit OpenStep(const CachePlan& plan);
    std::vector<ScheduledSequence> sequences;
    int32_t num_rows = 0;
    BatchBuilder builder;
  };

  // The i-th of the open steps, oldest first; that of num_open_ is the next one.
  OpenStep& open_step(int32_t i) { return steps_[static_cast<size_t>((oldest_ + i) % max_open_steps())]; }
  const OpenStep& open_step(int32_t i) const { return const_cast<Scheduler*>(this)->open_step(i); }
  OpenStep& close_oldest();
  void plan_decodes(OpenStep& step, int64_t& budget);
  void plan_prefills(OpenStep& step, int64_t& budget);
  void admit(OpenStep& step, int64_t& budget);
  void plan(OpenStep& step, Request& request, int64_t& budget);
  void take_token(Request& request, const SampledRow& row);
  void finish(Request& request, StepOutput output);
  void finish(Request& request, FinishReason reason, const std::string& error = {});
  void finish_all(FinishReason reason, const std::string& error);
  void forget_finished();

  CacheManager* cache_;
  std::vector<int64_t> prefix_;
  RequestLimits limits_;  // of what a request brings
  std::unique_ptr<Policy> policy_;
  std::unordered_map<RequestId, std::unique_ptr<Request>> requests_;
  std::vector<Request*> waiting_;   // in order of arrival
  std::vector<Request*> running_;   // in order of admission
  std::vector<Request*> finished_;  // to be forgotten when no open step has them
  std::vector<OpenStep> steps_;     // a ring
  int32_t oldest_ = 0, num_open_ = 0;
  std::vector<StepOutput> outputs_;
  SchedulerCounters counters_;
};

}  // namespace autodeploy
