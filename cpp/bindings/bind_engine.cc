// _native.Engine: requests in, one batch of outputs per step out.
#include <pybind11/functional.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/bind.h"
#include "core/error.h"
#include "runtime/engine.h"

namespace py = pybind11;

namespace autodeploy {
namespace {

// A value of a dict, or an error that names the key.
template <class T>
T take(const char* what, const std::string& key, py::handle value, const char* expected) {
  try {
    return py::cast<T>(value);
  } catch (const py::cast_error&) {
    const std::string found = py::repr(value).cast<std::string>().substr(0, 200);
    throw Error(ErrorKind::kInvalidArgument,
                detail::concat("[", what, "] ", key, ": expected ", expected, ", found ", found));
  }
}

// Fields by key; each setter gets the dict's value.
using Setters = std::map<std::string, std::function<void(py::handle)>>;

void apply(const char* what, const py::dict& values, const Setters& setters) {
  for (const auto& [key, value] : values) {
    const auto name = take<std::string>(what, "keys", key, "strings");
    const auto setter = setters.find(name);
    if (setter == setters.end()) {
      std::string known;
      for (const auto& [each, unused] : setters) known += (known.empty() ? "" : ", ") + each;
      throw Error(ErrorKind::kInvalidArgument,
                  detail::concat("[", what, "] expected fields among ", known, "; found '", name, "'"));
    }
    setter->second(value);
  }
}

constexpr const char* kInteger = "an integer";
constexpr const char* kNumber = "a number";
constexpr const char* kBool = "True or False";
constexpr const char* kTokenIds = "a list of token ids";

EngineOptions to_options(const py::dict& values) {
  EngineOptions o;
  const auto integer = [](const char* key, auto& field) {
    return [key, &field](py::handle v) {
      field = take<std::decay_t<decltype(field)>>("engine", key, v, kInteger);
    };
  };
  const auto boolean = [](const char* key, bool& field) {
    return [key, &field](py::handle v) { field = take<bool>("engine", key, v, kBool); };
  };
  apply("engine", values,
        {{"max_seq_len", integer("max_seq_len", o.max_seq_len)},
         {"max_num_seqs", integer("max_num_seqs", o.max_num_seqs)},
         {"max_batch_tokens", integer("max_batch_tokens", o.max_batch_tokens)},
         {"cache_bytes", integer("cache_bytes", o.cache_bytes)},
         {"page_size", integer("page_size", o.page_size)},
         {"num_threads", integer("num_threads", o.num_threads)},
         {"exact", boolean("exact", o.exact)},
         {"prefault", boolean("prefault", o.prefault)},
         {"gpu_memory_fraction",
          [&](py::handle v) {
            o.gpu_memory_fraction = take<double>("engine", "gpu_memory_fraction", v, kNumber);
          }},
         {"load_format",
          [&](py::handle v) {
            o.load_format = parse_load_format(take<std::string>("engine", "load_format", v, "a string"));
          }},
         {"dummy_seed", integer("dummy_seed", o.dummy_seed)},
         {"dummy_routing",
          [&](py::handle v) {
            o.dummy_routing =
                parse_dummy_routing(take<std::string>("engine", "dummy_routing", v, "a string"));
          }},
         {"time_steps", boolean("time_steps", o.time_steps)},
         {"device", [&](py::handle v) { o.device = take<std::string>("engine", "device", v, "a string"); }},
         {"dtype", [&](py::handle v) { o.dtype = take<std::string>("engine", "dtype", v, "a string"); }},
         {"plugins", [&](py::handle v) {
            o.plugins = take<std::vector<std::string>>("engine", "plugins", v, "a list of paths");
          }}});
  return o;
}

SamplingParams to_params(const py::dict& values) {
  SamplingParams p;
  const auto integer = [](const char* key, int64_t& field) {
    return [key, &field](py::handle v) { field = take<int64_t>("request", key, v, kInteger); };
  };
  const auto number = [](const char* key, double& field) {
    return [key, &field](py::handle v) { field = take<double>("request", key, v, kNumber); };
  };
  const auto ids = [](const char* key, std::vector<int64_t>& field) {
    return [key, &field](py::handle v) { field = take<std::vector<int64_t>>("request", key, v, kTokenIds); };
  };
  apply("request", values,
        {{"max_tokens", integer("max_tokens", p.max_tokens)},
         {"temperature", number("temperature", p.temperature)},
         {"top_k", integer("top_k", p.top_k)},
         {"top_p", number("top_p", p.top_p)},
         {"min_p", number("min_p", p.min_p)},
         {"repetition_penalty", number("repetition_penalty", p.repetition_penalty)},
         {"presence_penalty", number("presence_penalty", p.presence_penalty)},
         {"frequency_penalty", number("frequency_penalty", p.frequency_penalty)},
         {"min_tokens", integer("min_tokens", p.min_tokens)},
         {"stop_token_ids", ids("stop_token_ids", p.stop_token_ids)},
         {"eos_token_ids", ids("eos_token_ids", p.eos_token_ids)},
         {"ignore_eos", [&](py::handle v) { p.ignore_eos = take<bool>("request", "ignore_eos", v, kBool); }},
         {"seed",
          [&](py::handle v) {
            if (!v.is_none())
              p.seed = take<uint64_t>("request", "seed", v, "None or an integer in [0, 2**64)");
          }},
         {"logprobs",
          [&](py::handle v) {
            if (v.is_none()) return;
            p.logprobs = take<int32_t>("request", "logprobs", v, "None or an integer");
            AD_CHECK(p.logprobs >= 0, ErrorKind::kInvalidArgument,
                     "[request] logprobs: expected None or a value of at least 0, found ", p.logprobs);
          }},
         {"logit_bias", [&](py::handle v) {
            const auto biases = take<std::map<int64_t, double>>("request", "logit_bias", v,
                                                                "a dict of token ids and numbers");
            p.logit_bias.assign(biases.begin(), biases.end());
          }}});
  return p;
}

py::list to_list(const std::vector<ChosenLogprob>& logprobs) {
  py::list out;
  for (const ChosenLogprob& entry : logprobs) {
    py::list top;
    for (const TokenLogprob& t : entry.top) top.append(py::make_tuple(t.token, t.logprob));
    out.append(py::make_tuple(entry.chosen.token, entry.chosen.logprob, entry.rank, std::move(top)));
  }
  return out;
}

py::dict to_dict(const EngineStats& s) {
  py::dict d;
  d["num_requests"] = s.num_requests;
  d["num_waiting"] = s.num_waiting;
  d["num_running"] = s.num_running;
  d["num_stopped"] = s.num_stopped;
  d["num_length"] = s.num_length;
  d["num_cancelled"] = s.num_cancelled;
  d["num_errors"] = s.num_errors;
  d["num_steps"] = s.num_steps;
  d["num_failed_steps"] = s.num_failed_steps;
  d["num_prefill_tokens"] = s.num_prefill_tokens;
  d["num_decode_tokens"] = s.num_decode_tokens;
  d["num_generated_tokens"] = s.num_generated_tokens;
  d["cache_used_bytes"] = s.cache_used_bytes;
  d["cache_total_bytes"] = s.cache_total_bytes;
  d["step_seconds_total"] = s.step_seconds_total;
  d["step_seconds_last"] = s.step_seconds_last;
  d["step_seconds_max"] = s.step_seconds_max;
  d["uptime_seconds"] = s.uptime_seconds;
  d["num_decode_steps"] = s.runner.num_decode_steps;
  d["num_replayed_steps"] = s.runner.num_replayed_steps;
  const auto times = [](const TimesSummary& t) {
    py::dict entry;
    entry["count"] = t.count;
    entry["median"] = t.median;
    entry["p95"] = t.p95;
    return entry;
  };
  d["decode_step_us"] = times(s.runner.decode_step_us);
  d["step_gap_us"] = times(s.runner.step_gap_us);
  return d;
}

std::unique_ptr<Engine> open_engine(const std::string& artifact_dir, const py::dict& options,
                                    const py::object& progress) {
  const EngineOptions native = to_options(options);
  LoadProgress report;
  if (!progress.is_none()) {
    report = [&](int64_t done, int64_t total) {
      const py::gil_scoped_acquire acquire;
      progress(done, total);
    };
  }
  const py::gil_scoped_release release;
  return Engine::open(artifact_dir, native, report);
}

}  // namespace

void bind_engine(py::module_& m) {
  py::class_<StepOutput>(m, "Output", "What one step brought to one request.")
      .def_readonly("request_id", &StepOutput::request_id)
      .def_readonly("new_token_ids", &StepOutput::new_token_ids, "A token that ended the request included.")
      .def_property_readonly(
          "logprobs", [](const StepOutput& o) { return to_list(o.logprobs); },
          "(token id, log probability, rank, [(token id, log probability)...]) of each new token, where "
          "asked for.")
      .def_property_readonly(
          "finish_reason", [](const StepOutput& o) { return finish_reason_name(o.finish_reason); },
          R"(None while it runs, else "stop", "length", "cancelled" or "error".)")
      .def_readonly("stop_token_id", &StepOutput::stop_token_id, "The EOS or stop id that ended it, or None.")
      .def_readonly("error", &StepOutput::error, R"(What went wrong, where the finish reason is "error".)");

  py::class_<Engine>(m, "Engine", "Serves an artifact: one thread of its own runs all requests together.")
      .def(py::init(&open_engine), py::arg("artifact_dir"), py::arg("options") = py::dict(),
           py::arg("progress") = py::none(),
           R"(Loads an artifact.

options: max_seq_len, max_num_seqs, max_batch_tokens, cache_bytes, page_size, num_threads, exact, prefault,
load_format ("auto" or "dummy"), dummy_seed, dummy_routing ("model" or "uniform"), time_steps, device, dtype,
gpu_memory_fraction, plugins;
what is left out is chosen from the model and the machine. progress(done, total) is called with bytes of weights;
what it raises ends the loading.
Raises ValueError, OSError or MemoryError.)")
      .def(
          "add_request",
          [](Engine& e, const py::object& prompt_token_ids, const py::dict& params) {
            const auto prompt = take<std::vector<int64_t>>("request", "prompt", prompt_token_ids, kTokenIds);
            SamplingParams native = to_params(params);
            const py::gil_scoped_release release;
            return e.add_request(prompt, std::move(native));
          },
          py::arg("prompt_token_ids"), py::arg("params"),
          R"(Queues a request and returns its id.

params: max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty,
logit_bias {id: bias}, min_tokens, ignore_eos, seed, logprobs, stop_token_ids, eos_token_ids. Raises ValueError
naming the field, the range and what was found, and RuntimeError once the engine has stopped or was closed.)")
      .def("cancel", &Engine::cancel, py::arg("request_id"), py::call_guard<py::gil_scoped_release>(),
           "Ends a request at the next step; ids that have ended are ignored.")
      .def(
          "wait_outputs", &Engine::wait_outputs, py::arg("timeout_seconds"),
          py::call_guard<py::gil_scoped_release>(),
          R"(The outputs of one step, as soon as there are any; empty when the time is up or the engine was closed.

Raises RuntimeError when the engine has stopped and everything was delivered.)")
      .def("plan", &Engine::plan, "Every byte and every choice, as JSON.")
      .def(
          "stats", [](const Engine& e) { return to_dict(e.stats()); }, "Counters since the start.")
      .def("health", &Engine::health, "Why the engine has stopped, or None.")
      .def("close", &Engine::close, py::call_guard<py::gil_scoped_release>(),
           "Cancels what runs and ends the thread. May be called again.");
}

}  // namespace autodeploy
