#include "runtime/engine.h"

#include <pthread.h>

#include <algorithm>
#include <exception>
#include <random>
#include <utility>

#include "core/error.h"
#include "runtime/philox.h"

namespace autodeploy {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

uint64_t random_base() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// Without the prefix, which nobody asks for.
CacheLimits user_limits(EngineBackend& backend) {
  CacheLimits limits = backend.cache().plan().limits;
  limits.max_seq_len -= static_cast<int64_t>(backend.prefix_tokens().size());
  return limits;
}

// The caches are planned for as many open steps as the options and the backend allow.
std::unique_ptr<StepLoop> make_loop(Scheduler& scheduler, ModelRunner& runner) {
  return scheduler.max_open_steps() >= 2 ? make_overlapped_loop(&scheduler, &runner)
                                         : make_plain_loop(&scheduler, &runner);
}

void count_end(EngineStats& stats, FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return;
    case FinishReason::kStop:
      ++stats.num_stopped;
      return;
    case FinishReason::kLength:
      ++stats.num_length;
      return;
    case FinishReason::kCancelled:
      ++stats.num_cancelled;
      return;
    case FinishReason::kError:
      ++stats.num_errors;
      return;
  }
}

}  // namespace

std::unique_ptr<Engine> Engine::open(const std::string& artifact_dir, const EngineOptions& options,
                                     const LoadProgress& progress) {
  return std::make_unique<Engine>(open_backend(artifact_dir, options, progress));
}

Engine::Engine(std::unique_ptr<EngineBackend> backend)
    : backend_(std::move(backend)),
      scheduler_(&backend_->cache(), backend_->vocab_size(), backend_->prefix_tokens()),
      loop_(make_loop(scheduler_, backend_->runner())),
      plan_(backend_->plan_json(scheduler_.bytes())),
      vocab_size_(backend_->vocab_size()),
      limits_(user_limits(*backend_)),
      start_(std::chrono::steady_clock::now()),
      seed_base_(random_base()) {
  stats_.cache_total_bytes = backend_->cache().total_bytes();
  thread_ = std::thread([this] { run(); });
}

Engine::~Engine() { close(); }

RequestId Engine::add_request(std::span<const int64_t> prompt, SamplingParams params) {
  scheduler_.check(prompt, params);  // reads constants only
  const std::lock_guard lock(mutex_);
  AD_CHECK(!failure_, ErrorKind::kInternal, "[engine] it has stopped: ", *failure_, "; make a new one");
  AD_CHECK(!closing_, ErrorKind::kCancelled, "[engine] it is closed; make a new one");
  const RequestId id = next_id_++;
  if (!params.seed) params.seed = fresh_seed();
  commands_.push_back(Add{id, {prompt.begin(), prompt.end()}, std::move(params)});
  live_.insert(id);
  ++stats_.num_requests;
  commands_ready_.notify_one();
  return id;
}

uint64_t Engine::fresh_seed() {
  const auto id = static_cast<uint64_t>(next_id_);
  const PhiloxBlock r =
      philox4x32({static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), 1, 0},
                 {static_cast<uint32_t>(seed_base_), static_cast<uint32_t>(seed_base_ >> 32)});
  return (uint64_t{r[0]} << 32) | r[1];
}

void Engine::cancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (!live_.contains(id)) return;
  commands_.emplace_back(std::in_place_type<Cancel>, Cancel{id});
  commands_ready_.notify_one();
}

std::vector<StepOutput> Engine::wait_outputs(double timeout_seconds) {
  const auto timeout =
      std::chrono::duration<double>(timeout_seconds > 0 ? std::min(timeout_seconds, 1e6) : 0.0);
  std::unique_lock lock(mutex_);
  outputs_ready_.wait_for(lock, timeout, [&] { return !outputs_.empty() || ended_; });
  if (outputs_.empty()) {
    AD_CHECK(!failure_, ErrorKind::kInternal, "[engine] it has stopped: ", *failure_, "; make a new one");
    return {};
  }
  std::vector<StepOutput> step = std::move(outputs_.front());
  outputs_.pop_front();
  return step;
}

EngineStats Engine::stats() const {
  const RunnerStats runner = backend_->runner().stats();
  const std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  stats.runner = runner;
  stats.uptime_seconds = seconds_since(start_);
  return stats;
}

std::optional<std::string> Engine::health() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

void Engine::close() {
  const std::lock_guard only_one(close_mutex_);
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
    commands_ready_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void Engine::run() {
  pthread_setname_np(pthread_self(), "autodeploy");
  try {
    serve();
  } catch (const std::exception& error) {
    stop(error.what());
  }
  {
    const std::lock_guard lock(mutex_);
    end_requests(FinishReason::kCancelled, {});  // those that came in last, when the engine was closed
    ended_ = true;
    outputs_ready_.notify_all();
  }
  loop_.reset();  // waits for what an error has left in flight, on the thread that runs the steps
}

void Engine::serve() {
  std::vector<Command> commands;
  while (take_commands(commands)) {
    for (Command& command : commands) {
      if (auto* add = std::get_if<Add>(&command)) {
        scheduler_.add(add->id, add->prompt, std::move(add->params));
      } else {
        scheduler_.cancel(std::get<Cancel>(command).id);
      }
    }
    commands.clear();
    const auto begin = std::chrono::steady_clock::now();
    const StepStatus status = loop_->step();
    publish(scheduler_.take_outputs(), status == StepStatus::kIdle ? 0 : seconds_since(begin));
    if (status == StepStatus::kStopped) return stop(loop_->failure());
  }
  for (StepStatus status; (status = loop_->drain()) != StepStatus::kIdle;) {
    publish(scheduler_.take_outputs(), 0);
    if (status == StepStatus::kStopped) return stop(loop_->failure());
  }
  scheduler_.cancel_all();
  publish(scheduler_.take_outputs(), 0);
}

bool Engine::take_commands(std::vector<Command>& commands) {
  std::unique_lock lock(mutex_);
  if (!scheduler_.has_work()) {
#ifndef NDEBUG
    scheduler_.audit();
#endif
    commands_ready_.wait(lock, [&] { return !commands_.empty() || closing_; });
  }
  commands.swap(commands_);
  return !closing_;
}

void Engine::publish(std::vector<StepOutput> outputs, double step_seconds) {
  const std::lock_guard lock(mutex_);
  const SchedulerCounters& counters = scheduler_.counters();
  stats_.num_waiting = scheduler_.num_waiting();
  stats_.num_running = scheduler_.num_running();
  stats_.num_steps = counters.num_steps;
  stats_.num_failed_steps = counters.num_failed_steps;
  stats_.num_prefill_tokens = counters.num_prefill_tokens;
  stats_.num_decode_tokens = counters.num_decode_tokens;
  stats_.cache_used_bytes = backend_->cache().used_bytes();
  if (step_seconds > 0) {
    stats_.step_seconds_total += step_seconds;
    stats_.step_seconds_last = step_seconds;
    stats_.step_seconds_max = std::max(stats_.step_seconds_max, step_seconds);
  }
  for (const StepOutput& output : outputs) {
    stats_.num_generated_tokens += static_cast<int64_t>(output.new_token_ids.size());
    count_end(stats_, output.finish_reason);
    if (output.finish_reason != FinishReason::kNone) live_.erase(output.request_id);
  }
  if (outputs.empty()) return;
  outputs_.push_back(std::move(outputs));
  outputs_ready_.notify_one();
}

void Engine::stop(const std::string& reason) {
  const std::lock_guard lock(mutex_);
  failure_ = reason;
  end_requests(FinishReason::kError, reason);
}

void Engine::end_requests(FinishReason reason, const std::string& error) {
  commands_.clear();
  std::vector<StepOutput> last;
  for (RequestId id : live_) {
    StepOutput& output = last.emplace_back();
    output.request_id = id;
    output.finish_reason = reason;
    output.error = error;
    count_end(stats_, reason);
  }
  live_.clear();
  stats_.num_waiting = stats_.num_running = 0;
  if (!last.empty()) outputs_.push_back(std::move(last));
}

}  // namespace autodeploy
