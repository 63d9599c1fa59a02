#include "scheduler/scheduler.h"

#include <algorithm>
#include <utility>

#include "core/error.h"

namespace autodeploy {
namespace {

bool contains(const std::vector<int64_t>& ids, int64_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

const char* finish_reason_name(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return nullptr;
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return nullptr;
}

Scheduler::Scheduler(CacheManager* cache, int64_t vocab_size, std::span<const int64_t> prefix,
                     PolicyKind policy)
    : cache_(cache),
      prefix_(prefix.begin(), prefix.end()),
      limits_{vocab_size, cache->plan().limits.max_seq_len - static_cast<int64_t>(prefix.size())},
      policy_(make_policy(policy)),
      builder_(cache->plan()) {
  const CacheLimits& limits = cache->plan().limits;
  AD_CHECK(limits.max_batch_tokens >= limits.max_num_seqs, ErrorKind::kInvalidArgument,
           "[scheduler] max_batch_tokens: expected at least max_num_seqs = ", limits.max_num_seqs, ", found ",
           limits.max_batch_tokens);
  AD_ICHECK(cache->plan().fits(limits.max_seq_len), "a request that passes the check fits into empty caches");
  running_.reserve(static_cast<size_t>(limits.max_num_seqs));
  scheduled_.reserve(static_cast<size_t>(limits.max_num_seqs));
}

Scheduler::~Scheduler() = default;

void Scheduler::check(std::span<const int64_t> prompt, const SamplingParams& params) const {
  check_request(prompt, params, limits_);
}

void Scheduler::add(RequestId id, std::span<const int64_t> prompt, SamplingParams params) {
  auto request = std::make_unique<Request>();
  request->id = id;
  request->prefix_len = static_cast<int64_t>(prefix_.size());
  request->prompt_len = static_cast<int64_t>(prefix_.size() + prompt.size());
  request->tokens.reserve(prefix_.size() + prompt.size() + static_cast<size_t>(params.max_tokens));
  request->tokens.assign(prefix_.begin(), prefix_.end());
  request->tokens.insert(request->tokens.end(), prompt.begin(), prompt.end());
  request->params = std::move(params);
  waiting_.push_back(request.get());
  const bool added = requests_.emplace(id, std::move(request)).second;
  AD_ICHECK(added, "request ids are unique, found ", id, " again");
}

bool Scheduler::cancel(RequestId id) {
  const auto found = requests_.find(id);
  if (found == requests_.end()) return false;
  Request& request = *found->second;
  const bool in_step =
      step_open_ && std::any_of(scheduled_.begin(), scheduled_.end(),
                                [&](const ScheduledSequence& s) { return s.request == &request; });
  if (in_step) {
    request.cancelled = true;
  } else {
    finish(request, FinishReason::kCancelled);
    forget_finished();
  }
  return true;
}

const Step* Scheduler::schedule() {
  AD_ICHECK(!step_open_, "a step is completed before the next one is scheduled");
  scheduled_.clear();
  int64_t budget = cache_->plan().limits.max_batch_tokens;
  plan_decodes(budget);
  const auto num_decodes = static_cast<int64_t>(scheduled_.size());
  plan_prefills(budget);
  admit(budget);
  if (scheduled_.empty()) {
    AD_ICHECK(requests_.empty(), "a request that passed the check can run when nothing else does");
    return nullptr;
  }
  step_open_ = true;
  return &builder_.build(scheduled_, num_decodes, *cache_);
}

void Scheduler::plan_decodes(int64_t& budget) {
  for (Request* request : running_) {
    if (request->is_decode()) plan(*request, 1, budget);
  }
}

void Scheduler::plan_prefills(int64_t& budget) {
  for (Request* request : running_) {
    if (budget == 0) return;
    if (!request->is_decode()) plan(*request, request->len() - request->num_computed, budget);
  }
}

void Scheduler::admit(int64_t& budget) {
  while (budget > 0 && !waiting_.empty()) {
    const size_t index = policy_->next(waiting_);
    Request& request = *waiting_[index];
    const std::optional<SequenceId> sequence = cache_->reserve(request.max_cached());
    if (!sequence) return;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
    request.sequence = *sequence;
    request.status = Request::Status::kRunning;
    running_.push_back(&request);
    plan(request, request.len(), budget);
  }
}

void Scheduler::plan(Request& request, int64_t len, int64_t& budget) {
  len = std::min(len, budget);
  budget -= len;
  scheduled_.push_back({&request, request.num_computed, len});
  cache_->extend(request.sequence, request.num_computed + len);
}

void Scheduler::complete(const BatchResult& result) {
  AD_ICHECK(step_open_, "a step is scheduled before it is completed");
  step_open_ = false;
  ++counters_.num_steps;
  size_t row = 0;
  for (const ScheduledSequence& seq : scheduled_) {
    Request& request = *seq.request;
    const bool has_row = seq.has_row();
    (request.is_decode() ? counters_.num_decode_tokens : counters_.num_prefill_tokens) += seq.len;
    const size_t this_row = row;
    row += has_row;
    request.num_computed = seq.end();
    cache_->commit(request.sequence, request.num_computed);
    if (request.cancelled) {
      finish(request, FinishReason::kCancelled);
    } else if (has_row) {
      AD_ICHECK(this_row < result.rows.size(), "a result has a row for every row of its batch");
      take_token(request, result.rows[this_row]);
    }
  }
  AD_ICHECK(row == result.rows.size(), "a result has ", row, " rows like its batch, not ",
            result.rows.size());
  scheduled_.clear();
  forget_finished();
}

void Scheduler::take_token(Request& request, const SampledRow& row) {
  if (row.token < 0 || row.token >= limits_.vocab_size) {
    finish(request, FinishReason::kError,
           detail::concat(
               "[step] expected finite logits, found none to choose from (NaN or infinite) at position ",
               request.len(), "; check the weights, or report the model"));
    return;
  }
  const SamplingParams& params = request.params;
  request.tokens.push_back(row.token);
  StepOutput output;
  output.request_id = request.id;
  output.new_token_ids.push_back(row.token);
  if (params.logprobs >= 0) output.logprobs.push_back(row.logprob);
  const bool stops = contains(params.stop_token_ids, row.token) ||
                     (!params.ignore_eos && contains(params.eos_token_ids, row.token));
  if (stops && request.num_generated() >= params.min_tokens) {
    output.finish_reason = FinishReason::kStop;
    output.stop_token_id = row.token;
  } else if (request.num_generated() >= params.max_tokens) {
    output.finish_reason = FinishReason::kLength;
  }
  if (output.finish_reason == FinishReason::kNone) {
    outputs_.push_back(std::move(output));
  } else {
    finish(request, std::move(output));
  }
}

void Scheduler::fail(const std::string& error) {
  AD_ICHECK(step_open_, "a step is scheduled before it fails");
  step_open_ = false;
  ++counters_.num_steps;
  ++counters_.num_failed_steps;
  for (const ScheduledSequence& seq : scheduled_) {
    cache_->rollback(seq.request->sequence);
    if (seq.request->cancelled) {
      finish(*seq.request, FinishReason::kCancelled);
    } else {
      finish(*seq.request, FinishReason::kError, error);
    }
  }
  scheduled_.clear();
  forget_finished();
}

void Scheduler::fail_all(const std::string& error) { finish_all(FinishReason::kError, error); }

void Scheduler::cancel_all() { finish_all(FinishReason::kCancelled, {}); }

void Scheduler::finish_all(FinishReason reason, const std::string& error) {
  AD_ICHECK(!step_open_, "no step is open when all requests end");
  for (Request* request : running_) finish(*request, reason, error);
  for (Request* request : waiting_) finish(*request, reason, error);
  forget_finished();
}

void Scheduler::finish(Request& request, FinishReason reason, const std::string& error) {
  StepOutput output;
  output.request_id = request.id;
  output.finish_reason = reason;
  output.error = error;
  finish(request, std::move(output));
}

void Scheduler::finish(Request& request, StepOutput output) {
  if (request.status == Request::Status::kRunning) cache_->release(std::exchange(request.sequence, -1));
  request.status = Request::Status::kFinished;
  finished_.push_back(request.id);
  outputs_.push_back(std::move(output));
}

void Scheduler::forget_finished() {
  if (finished_.empty()) return;
  const auto is_finished = [](const Request* request) {
    return request->status == Request::Status::kFinished;
  };
  std::erase_if(running_, is_finished);
  std::erase_if(waiting_, is_finished);
  for (RequestId id : finished_) requests_.erase(id);
  finished_.clear();
}

std::vector<StepOutput> Scheduler::take_outputs() { return std::exchange(outputs_, {}); }

void Scheduler::audit() const {
  cache_->audit();
  AD_ICHECK(requests_.size() == waiting_.size() + running_.size(), "every request waits or runs");
  AD_ICHECK(cache_->num_sequences() == num_running(), "running requests own the ", cache_->num_sequences(),
            " sequences of the caches, not ", num_running());
  for (const Request* request : waiting_) {
    AD_ICHECK(request->status == Request::Status::kWaiting && request->sequence < 0,
              "waiting requests own nothing");
  }
  for (const Request* request : running_) {
    AD_ICHECK(request->status == Request::Status::kRunning &&
                  cache_->committed(request->sequence) == request->num_computed &&
                  request->num_computed < request->len() &&
                  request->len() <= limits_.max_seq_len + request->prefix_len,
              "a running request has computed less than it knows, and the caches agree");
  }
}

}  // namespace autodeploy
