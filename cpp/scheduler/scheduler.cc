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
      policy_(make_policy(policy)) {
  const CacheLimits& limits = cache->plan().limits;
  AD_CHECK(limits.max_batch_tokens >= limits.max_num_seqs, ErrorKind::kInvalidArgument,
           "[scheduler] max_batch_tokens: expected at least max_num_seqs = ", limits.max_num_seqs, ", found ",
           limits.max_batch_tokens);
  AD_ICHECK(cache->plan().fits(limits.max_seq_len), "a request that passes the check fits into empty caches");
  running_.reserve(static_cast<size_t>(limits.max_num_seqs));
  steps_.reserve(static_cast<size_t>(limits.max_open_steps));
  for (int32_t i = 0; i < limits.max_open_steps; ++i) steps_.emplace_back(cache->plan());
}

Scheduler::OpenStep::OpenStep(const CachePlan& plan) : builder(plan) {
  sequences.reserve(static_cast<size_t>(plan.limits.max_num_seqs));
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
  if (request.status == Request::Status::kFinished) return false;
  if (request.num_open_steps > 0) {
    request.cancelled = true;
  } else {
    finish(request, FinishReason::kCancelled);
    forget_finished();
  }
  return true;
}

const Step* Scheduler::schedule() {
  AD_ICHECK(num_open_ < max_open_steps(), "at most ", max_open_steps(), " steps are open at a time");
  OpenStep& step = open_step(num_open_);
  step.sequences.clear();
  step.num_rows = 0;
  int64_t budget = cache_->plan().limits.max_batch_tokens;
  plan_decodes(step, budget);
  const auto num_decodes = static_cast<int64_t>(step.sequences.size());
  plan_prefills(step, budget);
  admit(step, budget);
  if (step.sequences.empty()) {
    AD_ICHECK(num_open_ > 0 || requests_.empty(),
              "a request that passed the check can run when nothing else does");
    return nullptr;
  }
  ++num_open_;
  return &step.builder.build(step.sequences, num_decodes, *cache_);
}

void Scheduler::plan_decodes(OpenStep& step, int64_t& budget) {
  for (Request* request : running_) {
    if (request->is_decode() && !request->fully_scheduled() && !request->cancelled) {
      plan(step, *request, budget);
    }
  }
}

void Scheduler::plan_prefills(OpenStep& step, int64_t& budget) {
  for (Request* request : running_) {
    if (budget == 0) return;
    if (!request->is_decode() && !request->cancelled) plan(step, *request, budget);
  }
}

void Scheduler::admit(OpenStep& step, int64_t& budget) {
  while (budget > 0 && !waiting_.empty()) {
    const size_t index = policy_->next(waiting_);
    Request& request = *waiting_[index];
    const std::optional<SequenceId> sequence = cache_->reserve(request.max_cached());
    if (!sequence) return;
    waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
    request.sequence = *sequence;
    request.status = Request::Status::kRunning;
    running_.push_back(&request);
    plan(step, request, budget);
  }
}

void Scheduler::plan(OpenStep& step, Request& request, int64_t& budget) {
  const int64_t known = request.len() + request.num_pending;
  ScheduledSequence seq{&request, request.num_scheduled, std::min(known - request.num_scheduled, budget)};
  budget -= seq.len;
  seq.is_decode = request.is_decode();
  if (request.num_pending > 0) seq.pending_row = request.pending_row;
  if (seq.end() == known) {
    seq.row = step.num_rows++;
    request.pending_row = seq.row;
    ++request.num_pending;
  }
  ++request.num_open_steps;
  request.num_scheduled = seq.end();
  cache_->extend(request.sequence, seq.end());
  step.sequences.push_back(seq);
}

Scheduler::OpenStep& Scheduler::close_oldest() {
  AD_ICHECK(num_open_ > 0, "a step is scheduled before it is closed");
  OpenStep& step = open_step(0);
  oldest_ = (oldest_ + 1) % max_open_steps();
  --num_open_;
  ++counters_.num_steps;
  for (const ScheduledSequence& seq : step.sequences) {
    --seq.request->num_open_steps;
    seq.request->num_pending -= seq.row >= 0;
  }
  return step;
}

void Scheduler::complete(const BatchResult& result) {
  const OpenStep& step = close_oldest();
  AD_ICHECK(static_cast<size_t>(step.num_rows) == result.rows.size(), "a result has ", step.num_rows,
            " rows like its batch, not ", result.rows.size());
  for (const ScheduledSequence& seq : step.sequences) {
    Request& request = *seq.request;
    (seq.is_decode ? counters_.num_decode_tokens : counters_.num_prefill_tokens) += seq.len;
    if (request.status == Request::Status::kFinished) {
      counters_.num_wasted_decodes += seq.is_decode;
      continue;
    }
    request.num_computed = seq.end();
    cache_->commit(request.sequence, request.num_computed);
    if (request.cancelled) {
      finish(request, FinishReason::kCancelled);
    } else if (seq.row >= 0) {
      take_token(request, result.rows[static_cast<size_t>(seq.row)]);
    }
  }
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
  const OpenStep& step = close_oldest();
  ++counters_.num_failed_steps;
  for (const ScheduledSequence& seq : step.sequences) {
    Request& request = *seq.request;
    if (request.status == Request::Status::kFinished) continue;
    // What a newer step has of it goes with its pages, when that one is closed.
    if (request.num_open_steps == 0) cache_->rollback(request.sequence);
    if (request.cancelled) {
      finish(request, FinishReason::kCancelled);
    } else {
      finish(request, FinishReason::kError, error);
    }
  }
  forget_finished();
}

void Scheduler::fail_all(const std::string& error) { finish_all(FinishReason::kError, error); }

void Scheduler::cancel_all() { finish_all(FinishReason::kCancelled, {}); }

void Scheduler::finish_all(FinishReason reason, const std::string& error) {
  AD_ICHECK(num_open_ == 0, "no step is open when all requests end");
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
  request.status = Request::Status::kFinished;
  finished_.push_back(&request);
  outputs_.push_back(std::move(output));
}

void Scheduler::forget_finished() {
  if (finished_.empty()) return;
  const auto is_finished = [](const Request* request) {
    return request->status == Request::Status::kFinished;
  };
  std::erase_if(running_, is_finished);
  std::erase_if(waiting_, is_finished);
  std::erase_if(finished_, [&](Request* request) {
    if (request->num_open_steps > 0) return false;
    if (request->sequence >= 0) cache_->release(request->sequence);
    requests_.erase(request->id);
    return true;
  });
}

std::vector<StepOutput> Scheduler::take_outputs() { return std::exchange(outputs_, {}); }

int64_t Scheduler::bytes() const {
  int64_t bytes = cache_->book_bytes();
  for (const OpenStep& step : steps_) bytes += step.builder.bytes();
  return bytes;
}

void Scheduler::audit() const {
  cache_->audit();
  AD_ICHECK(requests_.size() == waiting_.size() + running_.size() + finished_.size(),
            "every request waits, runs or has ended in an open step");
  const auto num_sequences = static_cast<int64_t>(running_.size() + finished_.size());
  AD_ICHECK(cache_->num_sequences() == num_sequences, "requests own the ", cache_->num_sequences(),
            " sequences of the caches, not ", num_sequences);
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
    int32_t open_steps = 0, pending = 0;
    int64_t end = request->num_computed;
    for (int32_t i = 0; i < num_open_; ++i) {
      for (const ScheduledSequence& seq : open_step(i).sequences) {
        if (seq.request != request) continue;
        AD_ICHECK(seq.begin == end, "open steps go on where the ones before them end");
        ++open_steps;
        pending += seq.row >= 0;
        end = seq.end();
      }
    }
    AD_ICHECK(request->num_open_steps == open_steps && request->num_pending == pending &&
                  request->num_scheduled == end &&
                  request->num_generated() + pending <= request->params.max_tokens,
              "a running request knows what the open steps do for it");
  }
  for (const Request* request : finished_) {
    AD_ICHECK(request->status == Request::Status::kFinished && request->num_open_steps > 0 &&
                  request->num_open_steps <= num_open_ && request->sequence >= 0,
              "a request that has ended is kept for an open step alone");
  }
}

}  // namespace autodeploy
