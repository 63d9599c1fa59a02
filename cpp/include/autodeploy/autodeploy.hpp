// The C++ API of autodeploy: a header-only wrapper over autodeploy.h, with RAII and exceptions.
//
//   autodeploy::Engine engine("my-artifact");
//   autodeploy::Params params;
//   params.max_tokens = 32;
//   autodeploy::Request request = engine.add_request({1, 2, 3}, params);
//   while (auto output = request.next()) use(output->token_ids);
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "autodeploy/autodeploy.h"

namespace autodeploy {
inline namespace v1 {

// what() reads "[stage] what was expected, what was found, what to do".
class Exception : public std::runtime_error {
 public:
  Exception(autodeploy_status status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  autodeploy_status status() const { return status_; }

 private:
  autodeploy_status status_;
};

namespace detail {
inline void check(autodeploy_status status) {
  if (status != AUTODEPLOY_OK) throw Exception(status, autodeploy_last_error());
}
}  // namespace detail

// 0 leaves a choice to the engine; see autodeploy_engine_options.
struct Options {
  std::int64_t max_seq_len = 0, max_num_seqs = 0, max_batch_tokens = 0, cache_bytes = 0;
  std::int32_t page_size = 0, num_threads = 0;
  bool exact = false, prefault = false;
  autodeploy_load_format load_format = AUTODEPLOY_LOAD_AUTO;
  std::uint64_t dummy_seed = 0;
  double gpu_memory_fraction = 0;
  std::string device, dtype;  // empty: the defaults
  // (done, total) bytes of weights; returns false to give up. May throw, which gives up too.
  std::function<bool(std::int64_t, std::int64_t)> progress;
};

// How the tokens of a request are chosen and when it ends; see autodeploy_request_params.
struct Params {
  std::int64_t max_tokens = 16;
  double temperature = 1.0;
  std::int64_t top_k = 0;
  double top_p = 1.0, min_p = 0.0;
  double repetition_penalty = 1.0, presence_penalty = 0.0, frequency_penalty = 0.0;
  std::map<std::int64_t, double> logit_bias;
  std::int64_t min_tokens = 0;
  bool ignore_eos = false;
  std::optional<std::uint64_t> seed;
  std::optional<std::int32_t> logprobs;
  std::vector<std::int64_t> stop_token_ids;
  std::vector<std::int64_t> eos_token_ids;  // empty: those of the artifact
};

struct Logprob {
  autodeploy_token_logprob chosen{};
  std::int32_t rank = 0;
  std::vector<autodeploy_token_logprob> top;
};

// What one step brought to one request.
struct Output {
  std::int64_t request_id = 0;
  std::vector<std::int64_t> token_ids;
  std::vector<Logprob> logprobs;
  autodeploy_finish_reason finish_reason = AUTODEPLOY_FINISH_NONE;
  std::optional<std::int64_t> stop_token_id;
  std::string error;

  bool finished() const { return finish_reason != AUTODEPLOY_FINISH_NONE; }
};

class Engine;

namespace detail {

// The engine's handle and the outputs that were received for requests whose turn to ask has not come. Whoever
// waits first listens for everybody.
class Hub {
 public:
  explicit Hub(autodeploy_engine* engine) : engine_(engine) {}
  ~Hub() { autodeploy_engine_destroy(engine_); }
  Hub(const Hub&) = delete;
  Hub& operator=(const Hub&) = delete;

  autodeploy_engine* get() const { return engine_; }

  // The lock is held until the request is known here, so that a listener on another thread cannot miss its
  // outputs.
  std::int64_t add(const std::vector<std::int64_t>& prompt, const autodeploy_request_params& params) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::int64_t id = 0;
    check(autodeploy_engine_add_request(engine_, prompt.data(), prompt.size(), &params, &id));
    inbox_.try_emplace(id);
    return id;
  }
  void close(std::int64_t id) {
    const std::lock_guard<std::mutex> lock(mutex_);
    inbox_.erase(id);
  }

  // The next output of a request; nothing when the time is up.
  std::optional<Output> next(std::int64_t id, double seconds) {
    using Clock = std::chrono::steady_clock;
    const std::chrono::duration<double> wanted(seconds < 1e9 ? seconds : 1e9);
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(wanted);
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      const auto found = inbox_.find(id);
      if (found == inbox_.end()) return std::nullopt;
      if (!found->second.empty()) {
        Output output = std::move(found->second.front());
        found->second.pop_front();
        return output;
      }
      const double left = std::chrono::duration<double>(end - Clock::now()).count();
      if (left <= 0) return std::nullopt;
      if (listening_) {
        received_.wait_for(lock, std::chrono::duration<double>(left));
      } else {
        listen(lock, left);
      }
    }
  }

 private:
  void listen(std::unique_lock<std::mutex>& lock, double seconds) {
    listening_ = true;
    lock.unlock();
    autodeploy_outputs* raw = nullptr;
    const autodeploy_status status = autodeploy_engine_wait(engine_, seconds, &raw);
    const std::string error = status == AUTODEPLOY_OK ? "" : autodeploy_last_error();
    const std::unique_ptr<autodeploy_outputs, void (*)(autodeploy_outputs*)> outputs(raw,
                                                                                     autodeploy_outputs_free);
    lock.lock();
    listening_ = false;
    for (std::size_t i = 0; outputs && i < autodeploy_outputs_size(outputs.get()); ++i) {
      const autodeploy_output& o = *autodeploy_outputs_get(outputs.get(), i);
      const auto to = inbox_.find(o.request_id);
      if (to != inbox_.end()) to->second.push_back(convert(o));
    }
    received_.notify_all();
    if (status != AUTODEPLOY_OK) throw Exception(status, error);
  }

  static Output convert(const autodeploy_output& o) {
    Output out;
    out.request_id = o.request_id;
    out.token_ids.assign(o.token_ids, o.token_ids + o.num_tokens);
    for (std::size_t i = 0; o.logprobs != nullptr && i < o.num_tokens; ++i) {
      const autodeploy_chosen_logprob& l = o.logprobs[i];
      out.logprobs.push_back({l.chosen, l.rank, {l.top, l.top + l.num_top}});
    }
    out.finish_reason = static_cast<autodeploy_finish_reason>(o.finish_reason);
    if (o.stop_token_id >= 0) out.stop_token_id = o.stop_token_id;
    if (o.error != nullptr) out.error = o.error;
    return out;
  }

  autodeploy_engine* engine_;
  std::mutex mutex_;
  std::condition_variable received_;
  bool listening_ = false;
  std::map<std::int64_t, std::deque<Output>> inbox_;
};

}  // namespace detail

// One running request; cancelled when it is destroyed before its end. May outlive the Engine object. One
// thread at a time.
class Request {
 public:
  Request(Request&& other) noexcept
      : hub_(std::move(other.hub_)), id_(other.id_), finished_(other.finished_) {}
  Request& operator=(Request&& other) noexcept {
    std::swap(hub_, other.hub_);
    std::swap(id_, other.id_);
    std::swap(finished_, other.finished_);
    return *this;
  }
  ~Request() {
    if (!hub_) return;
    if (!finished_) autodeploy_engine_cancel(hub_->get(), id_);
    hub_->close(id_);
  }

  std::int64_t id() const { return id_; }
  bool finished() const { return finished_; }

  // What the next step brings, waiting up to `seconds`; nothing when the time is up or the request has ended.
  // Throws Exception when the engine has stopped.
  std::optional<Output> next(double seconds = 1e6) {
    if (finished_) return std::nullopt;
    std::optional<Output> output = hub_->next(id_, seconds);
    if (output) finished_ = output->finished();
    return output;
  }

  // Everything up to the end, joined.
  Output wait() {
    Output all;
    all.request_id = id_;
    while (auto output = next()) {
      all.token_ids.insert(all.token_ids.end(), output->token_ids.begin(), output->token_ids.end());
      all.logprobs.insert(all.logprobs.end(), output->logprobs.begin(), output->logprobs.end());
      all.finish_reason = output->finish_reason;
      all.stop_token_id = output->stop_token_id;
      all.error = output->error;
    }
    return all;
  }

  // Its last output will say AUTODEPLOY_FINISH_CANCELLED.
  void cancel() { detail::check(autodeploy_engine_cancel(hub_->get(), id_)); }

 private:
  friend class Engine;
  Request(std::shared_ptr<detail::Hub> hub, std::int64_t id) : hub_(std::move(hub)), id_(id) {}

  std::shared_ptr<detail::Hub> hub_;
  std::int64_t id_ = 0;
  bool finished_ = false;
};

// Serves an artifact. Any thread may call it. Throws Exception.
class Engine {
 public:
  explicit Engine(const std::string& artifact_dir, const Options& options = {}) {
    autodeploy_engine_options o;
    autodeploy_engine_options_init(&o, sizeof(o));
    o.max_seq_len = options.max_seq_len;
    o.max_num_seqs = options.max_num_seqs;
    o.max_batch_tokens = options.max_batch_tokens;
    o.cache_bytes = options.cache_bytes;
    o.page_size = options.page_size;
    o.num_threads = options.num_threads;
    o.exact = options.exact;
    o.prefault = options.prefault;
    o.load_format = options.load_format;
    o.dummy_seed = options.dummy_seed;
    o.gpu_memory_fraction = options.gpu_memory_fraction;
    if (!options.device.empty()) o.device = options.device.c_str();
    if (!options.dtype.empty()) o.dtype = options.dtype.c_str();
    Progress progress{&options.progress, nullptr};
    if (options.progress) {
      o.progress = &Progress::call;
      o.progress_user_data = &progress;
    }
    autodeploy_engine* engine = nullptr;
    const autodeploy_status status = autodeploy_engine_create(artifact_dir.c_str(), &o, &engine);
    if (progress.thrown) std::rethrow_exception(progress.thrown);
    detail::check(status);
    hub_ = std::make_shared<detail::Hub>(engine);
  }

  // Queues a request; a malformed one throws and touches no others.
  Request add_request(const std::vector<std::int64_t>& prompt_token_ids, const Params& params = {}) {
    autodeploy_request_params p;
    autodeploy_request_params_init(&p, sizeof(p));
    std::vector<std::int64_t> bias_ids;
    std::vector<double> bias_values;
    for (const auto& [token, bias] : params.logit_bias) {
      bias_ids.push_back(token);
      bias_values.push_back(bias);
    }
    p.max_tokens = params.max_tokens;
    p.temperature = params.temperature;
    p.top_k = params.top_k;
    p.top_p = params.top_p;
    p.min_p = params.min_p;
    p.repetition_penalty = params.repetition_penalty;
    p.presence_penalty = params.presence_penalty;
    p.frequency_penalty = params.frequency_penalty;
    p.logit_bias_token_ids = bias_ids.data();
    p.logit_bias_values = bias_values.data();
    p.num_logit_bias = bias_ids.size();
    p.min_tokens = params.min_tokens;
    p.ignore_eos = params.ignore_eos;
    p.has_seed = params.seed.has_value();
    p.seed = params.seed.value_or(0);
    p.logprobs = params.logprobs.value_or(-1);
    p.stop_token_ids = params.stop_token_ids.data();
    p.num_stop_token_ids = params.stop_token_ids.size();
    p.eos_token_ids = params.eos_token_ids.data();
    p.num_eos_token_ids = params.eos_token_ids.size();
    return Request(hub_, hub_->add(prompt_token_ids, p));
  }

  // JSON objects: every byte and every kernel; counters since the start.
  std::string plan() const {
    const char* json = nullptr;
    detail::check(autodeploy_engine_plan(hub_->get(), &json));
    return json;
  }
  std::string stats() const { return take_string(autodeploy_engine_stats).value_or("{}"); }
  // Why the engine has stopped; nothing while it works.
  std::optional<std::string> health() const { return take_string(autodeploy_engine_health); }

  std::int64_t vocab_size() const { return autodeploy_engine_vocab_size(hub_->get()); }
  std::int64_t max_seq_len() const { return autodeploy_engine_max_seq_len(hub_->get()); }

 private:
  struct Progress {
    const std::function<bool(std::int64_t, std::int64_t)>* report;
    std::exception_ptr thrown;
    static int call(std::int64_t done, std::int64_t total, void* user_data) {
      auto& self = *static_cast<Progress*>(user_data);
      try {
        return (*self.report)(done, total) ? 0 : 1;
      } catch (...) {
        self.thrown = std::current_exception();
        return 1;
      }
    }
  };

  std::optional<std::string> take_string(autodeploy_status (*get)(autodeploy_engine*, char**)) const {
    char* raw = nullptr;
    detail::check(get(hub_->get(), &raw));
    const std::unique_ptr<char, void (*)(char*)> owned(raw, autodeploy_string_free);
    return owned ? std::optional<std::string>(owned.get()) : std::nullopt;
  }

  std::shared_ptr<detail::Hub> hub_;
};

}  // namespace v1
}  // namespace autodeploy
