#include <cstdlib>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "autodeploy/autodeploy.h"
#include "core/error.h"
#include "runtime/api/api_error.h"
#include "runtime/api/api_struct.h"
#include "runtime/api/outputs.h"
#include "runtime/artifact_info.h"
#include "runtime/engine.h"

struct autodeploy_engine {
  std::unique_ptr<autodeploy::Engine> engine;
  std::vector<int64_t> eos_token_ids;  // of the artifact
};

namespace autodeploy {
namespace {

constexpr size_t kMaxArray = size_t{1} << 31;  // bound of every count that a caller gives

template <class T>
void require(const T* pointer, const char* name) {
  AD_CHECK(pointer != nullptr, ErrorKind::kInvalidArgument, "[api] ", name,
           ": expected a pointer, found NULL");
}

template <class T>
std::span<const T> array(const T* data, size_t size, const char* name) {
  AD_CHECK(size <= kMaxArray && (data != nullptr || size == 0), ErrorKind::kInvalidArgument, "[api] ", name,
           ": expected an array of the size given, found ", data == nullptr ? "NULL" : "a size", " and ",
           size);
  return {data, size};
}

autodeploy_engine_options default_options() {
  autodeploy_engine_options o{};
  o.struct_size = sizeof(o);
  return o;
}

autodeploy_request_params default_params() {
  const SamplingParams defaults;
  autodeploy_request_params p{};
  p.struct_size = sizeof(p);
  p.max_tokens = defaults.max_tokens;
  p.temperature = defaults.temperature;
  p.top_p = defaults.top_p;
  p.repetition_penalty = defaults.repetition_penalty;
  p.logprobs = defaults.logprobs;
  return p;
}

EngineOptions to_options(const autodeploy_engine_options& o) {
  EngineOptions options;
  options.max_seq_len = o.max_seq_len;
  options.max_num_seqs = o.max_num_seqs;
  options.max_batch_tokens = o.max_batch_tokens;
  options.cache_bytes = o.cache_bytes;
  options.page_size = o.page_size;
  options.num_threads = o.num_threads;
  options.exact = o.exact != 0;
  options.prefault = o.prefault != 0;
  AD_CHECK(o.load_format == AUTODEPLOY_LOAD_AUTO || o.load_format == AUTODEPLOY_LOAD_DUMMY,
           ErrorKind::kInvalidArgument, "[engine] load_format: expected an autodeploy_load_format, found ",
           o.load_format);
  options.load_format = o.load_format == AUTODEPLOY_LOAD_DUMMY ? LoadFormat::kDummy : LoadFormat::kAuto;
  options.dummy_seed = o.dummy_seed;
  options.gpu_memory_fraction = o.gpu_memory_fraction;
  for (const char* path : array(o.plugins, o.num_plugins, "plugins")) {
    require(path, "plugins");
    options.plugins.emplace_back(path);
  }
  if (o.device) options.device = o.device;
  if (o.dtype) options.dtype = o.dtype;
  return options;
}

SamplingParams to_params(const autodeploy_request_params& p, const std::vector<int64_t>& default_eos) {
  SamplingParams params;
  params.max_tokens = p.max_tokens;
  params.temperature = p.temperature;
  params.top_k = p.top_k;
  params.top_p = p.top_p;
  params.min_p = p.min_p;
  params.repetition_penalty = p.repetition_penalty;
  params.presence_penalty = p.presence_penalty;
  params.frequency_penalty = p.frequency_penalty;
  const auto bias_ids = array(p.logit_bias_token_ids, p.num_logit_bias, "logit_bias_token_ids");
  const auto bias_values = array(p.logit_bias_values, p.num_logit_bias, "logit_bias_values");
  for (size_t i = 0; i < bias_ids.size(); ++i) params.logit_bias.emplace_back(bias_ids[i], bias_values[i]);
  params.min_tokens = p.min_tokens;
  params.ignore_eos = p.ignore_eos != 0;
  if (p.has_seed != 0) params.seed = p.seed;
  params.logprobs = p.logprobs;
  const auto stop = array(p.stop_token_ids, p.num_stop_token_ids, "stop_token_ids");
  params.stop_token_ids.assign(stop.begin(), stop.end());
  const auto eos = array(p.eos_token_ids, p.num_eos_token_ids, "eos_token_ids");
  params.eos_token_ids.assign(eos.begin(), eos.end());
  if (eos.empty()) params.eos_token_ids = default_eos;
  return params;
}

char* copy_string(const std::string& text) {
  auto* out = static_cast<char*>(std::malloc(text.size() + 1));
  if (out == nullptr) throw std::bad_alloc();
  std::memcpy(out, text.c_str(), text.size() + 1);
  return out;
}

nlohmann::ordered_json times_json(const TimesSummary& t) {
  return {{"count", t.count}, {"median", t.median}, {"p95", t.p95}};
}

std::string stats_json(const EngineStats& s) {
  return nlohmann::ordered_json{{"num_requests", s.num_requests},
                                {"num_waiting", s.num_waiting},
                                {"num_running", s.num_running},
                                {"num_stopped", s.num_stopped},
                                {"num_length", s.num_length},
                                {"num_cancelled", s.num_cancelled},
                                {"num_errors", s.num_errors},
                                {"num_steps", s.num_steps},
                                {"num_failed_steps", s.num_failed_steps},
                                {"num_prefill_tokens", s.num_prefill_tokens},
                                {"num_decode_tokens", s.num_decode_tokens},
                                {"num_generated_tokens", s.num_generated_tokens},
                                {"cache_used_bytes", s.cache_used_bytes},
                                {"cache_total_bytes", s.cache_total_bytes},
                                {"step_seconds_total", s.step_seconds_total},
                                {"step_seconds_last", s.step_seconds_last},
                                {"step_seconds_max", s.step_seconds_max},
                                {"uptime_seconds", s.uptime_seconds},
                                {"num_decode_steps", s.runner.num_decode_steps},
                                {"num_replayed_steps", s.runner.num_replayed_steps},
                                {"decode_step_us", times_json(s.runner.decode_step_us)},
                                {"step_gap_us", times_json(s.runner.step_gap_us)}}
      .dump();
}

LoadProgress to_progress(const autodeploy_engine_options& o) {
  if (o.progress == nullptr) return {};
  return [report = o.progress, data = o.progress_user_data](int64_t done, int64_t total) {
    AD_CHECK(report(done, total, data) == 0, ErrorKind::kCancelled, "[engine] loading was given up after ",
             done, " of ", total, " bytes");
  };
}

}  // namespace
}  // namespace autodeploy

using autodeploy::guarded;
using autodeploy::require;

extern "C" {

const char* autodeploy_version(void) { return AUTODEPLOY_VERSION; }

int32_t autodeploy_api_version(void) {
  return 1000 * AUTODEPLOY_API_VERSION_MAJOR + AUTODEPLOY_API_VERSION_MINOR;
}

void autodeploy_engine_options_init(autodeploy_engine_options* options, size_t struct_size) {
  autodeploy::init_struct(options, struct_size, autodeploy::default_options());
}

void autodeploy_request_params_init(autodeploy_request_params* params, size_t struct_size) {
  autodeploy::init_struct(params, struct_size, autodeploy::default_params());
}

autodeploy_status autodeploy_engine_create(const char* artifact_dir, const autodeploy_engine_options* options,
                                           autodeploy_engine** engine) {
  return guarded([&] {
    require(engine, "engine");
    *engine = nullptr;
    require(artifact_dir, "artifact_dir");
    const auto o =
        autodeploy::take_struct(options, autodeploy::default_options(), "autodeploy_engine_options");
    auto handle = std::make_unique<autodeploy_engine>();
    handle->eos_token_ids = autodeploy::read_eos_token_ids(artifact_dir);
    handle->engine =
        autodeploy::Engine::open(artifact_dir, autodeploy::to_options(o), autodeploy::to_progress(o));
    *engine = handle.release();
  });
}

void autodeploy_engine_destroy(autodeploy_engine* engine) { delete engine; }

autodeploy_status autodeploy_engine_add_request(autodeploy_engine* engine, const int64_t* prompt_token_ids,
                                                size_t num_prompt_tokens,
                                                const autodeploy_request_params* params,
                                                int64_t* request_id) {
  return guarded([&] {
    require(engine, "engine");
    require(request_id, "request_id");
    const auto prompt = autodeploy::array(prompt_token_ids, num_prompt_tokens, "prompt_token_ids");
    const auto p = autodeploy::take_struct(params, autodeploy::default_params(), "autodeploy_request_params");
    *request_id = engine->engine->add_request(prompt, autodeploy::to_params(p, engine->eos_token_ids));
  });
}

autodeploy_status autodeploy_engine_cancel(autodeploy_engine* engine, int64_t request_id) {
  return guarded([&] {
    require(engine, "engine");
    engine->engine->cancel(request_id);
  });
}

autodeploy_status autodeploy_engine_wait(autodeploy_engine* engine, double timeout_seconds,
                                         autodeploy_outputs** outputs) {
  return guarded([&] {
    require(outputs, "outputs");
    *outputs = nullptr;
    require(engine, "engine");
    auto steps = engine->engine->wait_outputs(timeout_seconds);
    if (!steps.empty()) *outputs = std::make_unique<autodeploy_outputs>(std::move(steps)).release();
  });
}

autodeploy_status autodeploy_engine_plan(autodeploy_engine* engine, const char** json) {
  return guarded([&] {
    require(json, "json");
    require(engine, "engine");
    *json = engine->engine->plan().c_str();
  });
}

autodeploy_status autodeploy_engine_stats(autodeploy_engine* engine, char** json) {
  return guarded([&] {
    require(json, "json");
    *json = nullptr;
    require(engine, "engine");
    *json = autodeploy::copy_string(autodeploy::stats_json(engine->engine->stats()));
  });
}

autodeploy_status autodeploy_engine_health(autodeploy_engine* engine, char** reason) {
  return guarded([&] {
    require(reason, "reason");
    *reason = nullptr;
    require(engine, "engine");
    if (const auto failure = engine->engine->health()) *reason = autodeploy::copy_string(*failure);
  });
}

void autodeploy_string_free(char* string) { std::free(string); }

int64_t autodeploy_engine_vocab_size(const autodeploy_engine* engine) {
  return engine == nullptr ? 0 : engine->engine->vocab_size();
}

int64_t autodeploy_engine_max_seq_len(const autodeploy_engine* engine) {
  return engine == nullptr ? 0 : engine->engine->limits().max_seq_len;
}

}  // extern "C"
