// The engine: one thread that owns scheduler, caches and runner; requests come in through a queue and results
// leave through another.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <thread>
#include <unordered_set>
#include <variant>
#include <vector>

#include "runtime/engine_backend.h"
#include "scheduler/scheduler.h"
#include "scheduler/step_loop.h"

namespace autodeploy {

// Counters since the start, and the state after the last step.
struct EngineStats {
  int64_t num_requests = 0;  // accepted by add_request
  int64_t num_waiting = 0, num_running = 0;
  int64_t num_stopped = 0, num_length = 0, num_cancelled = 0, num_errors = 0;  // ended, by reason
  int64_t num_steps = 0, num_failed_steps = 0;
  int64_t num_prefill_tokens = 0, num_decode_tokens = 0;  // computed by the model
  int64_t num_generated_tokens = 0;
  int64_t cache_used_bytes = 0, cache_total_bytes = 0;
  // What the engine's thread spends on a step: less than the step takes where steps overlap.
  double step_seconds_total = 0, step_seconds_last = 0, step_seconds_max = 0;
  double uptime_seconds = 0;
  RunnerStats runner;
};

// All members may be called from any thread, except that close() and the destructor may not run beside
// others' calls of the destructor. Outputs go to whoever waits first.
class Engine {
 public:
  explicit Engine(std::unique_ptr<EngineBackend> backend);
  // Cancels what runs and ends the thread.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Opens an artifact on the device that the options name. Throws Error.
  static std::unique_ptr<Engine> open(const std::string& artifact_dir, const EngineOptions& options = {},
                                      const LoadProgress& progress = {});

  // Queues a request and returns its id, 1 and up. Throws Error(kInvalidArgument) for a malformed request,
  // which leaves the engine and other requests as they are, and Error(kInternal) or Error(kCancelled) once
  // the engine has stopped or was closed.
  RequestId add_request(std::span<const int64_t> prompt, SamplingParams params);
  // Ends a request at the next step in whatever state it is; its last output says "cancelled". Unknown and
  // ended ids are ignored.
  void cancel(RequestId id);

  // The outputs of one step, as soon as there are any: at most one for each request. Empty when the time is
  // up or the engine was closed. Throws Error(kInternal) with health() when the engine has stopped and
  // everything was delivered.
  std::vector<StepOutput> wait_outputs(double timeout_seconds);

  // JSON; see EngineBackend::plan_json.
  const std::string& plan() const { return plan_; }
  EngineStats stats() const;
  // Why the engine has stopped; nothing while it works.
  std::optional<std::string> health() const;
  // Cancels what runs, delivers the last outputs and ends the thread. May be called again.
  void close();

  int64_t vocab_size() const { return vocab_size_; }
  // max_seq_len counts prompt and answer, not the model's prefix.
  const CacheLimits& limits() const { return limits_; }

 private:
  struct Add {
    RequestId id;
    std::vector<int64_t> prompt;
    SamplingParams params;
  };
  struct Cancel {
    RequestId id;
  };
  using Command = std::variant<Add, Cancel>;

  void run();
  // Takes what has come in; waits for it when there is nothing else to do. False when the engine was closed.
  bool take_commands(std::vector<Command>& commands);
  void serve();
  void publish(std::vector<StepOutput> outputs, double step_seconds);
  void stop(const std::string& reason);
  // Ends every live request, those included that are still in the queue. Under the mutex.
  void end_requests(FinishReason reason, const std::string& error);
  uint64_t fresh_seed();

  std::unique_ptr<EngineBackend> backend_;
  Scheduler scheduler_;
  std::unique_ptr<StepLoop> loop_;
  const std::string plan_;
  const int64_t vocab_size_;
  const CacheLimits limits_;
  const std::chrono::steady_clock::time_point start_;
  const uint64_t seed_base_;

  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable commands_ready_, outputs_ready_;
  std::vector<Command> commands_;
  std::deque<std::vector<StepOutput>> outputs_;  // one entry per step
  std::unordered_set<RequestId> live_;           // accepted and not ended
  EngineStats stats_;
  std::optional<std::string> failure_;
  RequestId next_id_ = 1;
  bool closing_ = false, ended_ = false;

  std::mutex close_mutex_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace autodeploy
