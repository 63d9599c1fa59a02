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
};

// A step is a transaction: schedule() plans it and maps its pages, then either complete() commits it or
// fail() rolls the books back and ends its requests. One step is open at a time. Owned by one thread, except
// for check().
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
  // Ends a request in whatever state it is in: at once, or when the open step that it is part of has passed.
  // False when there is no such request (any more).
  bool cancel(RequestId id);

  // Plans a step: decodes first, then prefill chunks, then admissions, within max_batch_tokens and
  // max_num_seqs. nullptr when there is nothing to run.
  const Step* schedule();
  void complete(const BatchResult& result);
  void fail(const std::string& error);
  // End every request; no step may be open.
  void fail_all(const std::string& error);
  void cancel_all();

  // What has come up since the last call, in order.
  std::vector<StepOutput> take_outputs();

  bool has_work() const { return !requests_.empty(); }
  bool step_open() const { return step_open_; }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  // Bytes that the arrays of a step and the caches' books take, from the start to the end.
  int64_t bytes() const { return builder_.bytes() + cache_->book_bytes(); }
  const SchedulerCounters& counters() const { return counters_; }
  // The caches' books, and that running requests and sequences match. Throws Error(kInternal).
  void audit() const;

 private:
  void plan_decodes(int64_t& budget);
  void plan_prefills(int64_t& budget);
  void admit(int64_t& budget);
  void plan(Request& request, int64_t len, int64_t& budget);
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
  std::vector<Request*> waiting_;             // in order of arrival
  std::vector<Request*> running_;             // in order of admission
  std::vector<ScheduledSequence> scheduled_;  // of the open step
  bool step_open_ = false;
  std::vector<RequestId> finished_;  // to be forgotten
  BatchBuilder builder_;
  std::vector<StepOutput> outputs_;
  SchedulerCounters counters_;
};

}  // namespace autodeploy
