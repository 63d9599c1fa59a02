// Runs an artifact from token ids: `autodeploy_run ARTIFACT --tokens 1,2,3 --max-tokens 16`. Token ids are
// printed as they come. Uses nothing but the public API.
#include <cerrno>
#include <chrono>
#include <climits>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "autodeploy/autodeploy.hpp"

namespace {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

constexpr const char* kUsage = R"(usage: autodeploy_run ARTIFACT --tokens IDS [options]

Generates from token ids and prints the new ones as they come.

  --tokens IDS              prompt: ids separated by commas or blanks, or @FILE
  --max-tokens N            tokens to generate (default 16)
  --temperature X           0 is greedy (default 0)
  --top-k N, --top-p X, --min-p X
  --repetition-penalty X, --presence-penalty X, --frequency-penalty X
  --seed N                  reproduces the draws
  --min-tokens N            tokens before an end token may come
  --stop-tokens IDS         ids that end the output
  --eos-tokens IDS          end tokens (default: those of the artifact)
  --ignore-eos              go on after end tokens
  --logprobs N              print the log probability of each token and of the N most likely ones
  --parallel N              N requests of the same prompt together (default 1); the first one is printed
  --threads N               default: the processors that may be used
  --max-seq-len N           default: what the request needs
  --max-batch-tokens N      tokens of a step (default: the prompt, at most 512)
  --cache-bytes N, --page-size N
  --device NAME             cpu (default), cuda or cuda:N
  --dtype NAME              of activations: auto, float32, bfloat16, float16
  --gpu-memory-fraction X   of a GPU's memory that may be in use (default 0.9)
  --exact                   no int8 activations
  --prefault                back the caches with memory at the start
  --load-format FORMAT      auto, or dummy: made-up weights, which need no checkpoint
  --dummy-seed N            what they are made from (default 0)
  --stats                   print timings, and memory beside the plan, as JSON on stderr
  --plan                    print the plan as JSON and generate nothing
  --version, --help
)";

struct Arguments {
  std::string artifact;
  std::vector<std::int64_t> tokens;
  autodeploy::Options options;
  autodeploy::Params params;
  std::int64_t parallel = 1;
  bool stats = false, plan = false;
};

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument("[arguments] " + message); }

std::int64_t to_integer(const std::string& name, const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long long value = std::strtoll(text.c_str(), &end, 10);
  if (text.empty() || *end != 0 || errno != 0) fail(name + ": expected an integer, found '" + text + "'");
  return value;
}

std::uint64_t to_seed(const std::string& name, const std::string& text) {
  const std::int64_t seed = to_integer(name, text);
  if (seed < 0) fail(name + ": expected at least 0, found '" + text + "'");
  return static_cast<std::uint64_t>(seed);
}

double to_number(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != 0 || !std::isfinite(value))
    fail(name + ": expected a number, found '" + text + "'");
  return value;
}

std::vector<std::int64_t> to_ids(const std::string& name, std::string text) {
  if (!text.empty() && text[0] == '@') {
    std::ifstream in(text.substr(1));
    if (!in) fail(name + ": expected a readable file, found '" + text.substr(1) + "'");
    text.assign(std::istreambuf_iterator<char>(in), {});
  }
  std::vector<std::int64_t> ids;
  constexpr const char* kSeparators = ", \t\r\n";
  for (std::size_t begin = text.find_first_not_of(kSeparators); begin != std::string::npos;) {
    const std::size_t end = text.find_first_of(kSeparators, begin);
    ids.push_back(to_integer(name, text.substr(begin, end == std::string::npos ? end : end - begin)));
    begin = text.find_first_not_of(kSeparators, end);
  }
  return ids;
}

Arguments parse(int argc, char** argv) {
  Arguments a;
  a.params.temperature = 0;
  autodeploy::Options& o = a.options;
  autodeploy::Params& p = a.params;
  using Setter = std::function<void(const std::string&, const std::string&)>;
  const auto integer = [](auto& field) -> Setter {
    return [&field](const std::string& name, const std::string& text) {
      const std::int64_t value = to_integer(name, text);
      field = static_cast<std::decay_t<decltype(field)>>(value);
      if (static_cast<std::int64_t>(field) != value) fail(name + ": expected less, found '" + text + "'");
    };
  };
  const auto number = [](double& field) -> Setter {
    return [&field](const std::string& name, const std::string& text) { field = to_number(name, text); };
  };
  const auto ids = [](std::vector<std::int64_t>& field) -> Setter {
    return [&field](const std::string& name, const std::string& text) { field = to_ids(name, text); };
  };
  const std::map<std::string, Setter> values = {
      {"--tokens", ids(a.tokens)},
      {"--max-tokens", integer(p.max_tokens)},
      {"--temperature", number(p.temperature)},
      {"--top-k", integer(p.top_k)},
      {"--top-p", number(p.top_p)},
      {"--min-p", number(p.min_p)},
      {"--repetition-penalty", number(p.repetition_penalty)},
      {"--presence-penalty", number(p.presence_penalty)},
      {"--frequency-penalty", number(p.frequency_penalty)},
      {"--seed", [&](const std::string& name, const std::string& text) { p.seed = to_seed(name, text); }},
      {"--min-tokens", integer(p.min_tokens)},
      {"--stop-tokens", ids(p.stop_token_ids)},
      {"--eos-tokens", ids(p.eos_token_ids)},
      {"--logprobs",
       [&](const std::string& name, const std::string& text) {
         const std::int64_t n = to_integer(name, text);
         if (n < 0 || n > INT32_MAX) fail(name + ": expected at least 0, found '" + text + "'");
         p.logprobs = static_cast<std::int32_t>(n);
       }},
      {"--parallel", integer(a.parallel)},
      {"--threads", integer(o.num_threads)},
      {"--max-seq-len", integer(o.max_seq_len)},
      {"--max-batch-tokens", integer(o.max_batch_tokens)},
      {"--cache-bytes", integer(o.cache_bytes)},
      {"--page-size", integer(o.page_size)},
      {"--load-format",
       [&](const std::string& name, const std::string& text) {
         if (text != "auto" && text != "dummy") fail(name + ": expected auto or dummy, found '" + text + "'");
         o.load_format = text == "dummy" ? AUTODEPLOY_LOAD_DUMMY : AUTODEPLOY_LOAD_AUTO;
       }},
      {"--dummy-seed",
       [&](const std::string& name, const std::string& text) { o.dummy_seed = to_seed(name, text); }},
      {"--gpu-memory-fraction", number(o.gpu_memory_fraction)},
      {"--device", [&](const std::string&, const std::string& text) { o.device = text; }},
      {"--dtype", [&](const std::string&, const std::string& text) { o.dtype = text; }},
  };
  const std::map<std::string, bool*> flags = {{"--ignore-eos", &p.ignore_eos},
                                              {"--exact", &o.exact},
                                              {"--prefault", &o.prefault},
                                              {"--stats", &a.stats},
                                              {"--plan", &a.plan}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (const auto flag = flags.find(name); flag != flags.end()) {
      *flag->second = true;
    } else if (const auto value = values.find(name); value != values.end()) {
      if (i + 1 == argc) fail(name + ": expected a value, found none");
      value->second(name, argv[++i]);
    } else if (name.rfind("--", 0) == 0 || !a.artifact.empty()) {
      fail("expected an option of --help, found '" + name + "'");
    } else {
      a.artifact = name;
    }
  }
  if (a.artifact.empty()) fail("expected an artifact folder, found none; see --help");
  if (a.tokens.empty() && !a.plan) fail("expected a prompt, found no --tokens; see --help");
  if (a.parallel < 1 || a.parallel > 65536) fail("--parallel: expected a value in [1, 65536]");
  return a;
}

// An engine that holds just these requests, unless the user says more.
void size_engine(Arguments& a) {
  const auto prompt = static_cast<std::int64_t>(a.tokens.size());
  autodeploy::Options& o = a.options;
  if (a.plan && prompt == 0) return;
  if (o.max_seq_len == 0 && a.params.max_tokens > 0) o.max_seq_len = prompt + a.params.max_tokens;
  if (o.max_num_seqs == 0) o.max_num_seqs = a.parallel;
  if (o.max_batch_tokens == 0)
    o.max_batch_tokens = std::max(std::min<std::int64_t>(prompt, 512), o.max_num_seqs);
}

double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// A line "Name:  123 kB" of /proc/self/status, in bytes.
std::int64_t status_bytes(const char* name) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(name, 0) == 0) return std::strtoll(line.c_str() + std::strlen(name), nullptr, 10) * 1024;
  }
  return 0;
}

void print_output(const autodeploy::Output& output, bool& first) {
  for (std::size_t i = 0; i < output.token_ids.size(); ++i) {
    if (output.logprobs.empty()) {
      std::printf("%s%lld", first ? "" : " ", static_cast<long long>(output.token_ids[i]));
    } else {
      const autodeploy::Logprob& l = output.logprobs[i];
      std::printf("%s%lld %.6f rank %d:", first ? "" : "\n", static_cast<long long>(l.chosen.token_id),
                  static_cast<double>(l.chosen.logprob), l.rank);
      for (const auto& t : l.top) {
        std::printf(" %lld %.6f", static_cast<long long>(t.token_id), static_cast<double>(t.logprob));
      }
    }
    first = false;
  }
  std::fflush(stdout);
}

struct Times {
  Clock::time_point start, ready, added, first, last;
};

void print_stats(const Arguments& a, const autodeploy::Engine& engine, const Times& t,
                 std::int64_t generated) {
  const Json plan = Json::parse(engine.plan());
  const Json& memory = plan["memory"];
  const auto planned = memory["total"].get<std::int64_t>() + memory["process_at_start"].get<std::int64_t>();
  const std::int64_t peak = status_bytes("VmHWM:"), resident = status_bytes("VmRSS:");
  const double decode_seconds = seconds(t.first, t.last);
  Json stats;
  stats["prompt_tokens"] = a.tokens.size();
  stats["generated_tokens"] = generated;
  stats["seconds_to_load"] = seconds(t.start, t.ready);
  stats["seconds_from_start_to_first_token"] = seconds(t.start, t.first);
  stats["seconds_to_first_token"] = seconds(t.added, t.first);
  stats["prefill_tokens_per_second"] = static_cast<double>(a.tokens.size()) / seconds(t.added, t.first);
  if (generated > a.parallel && decode_seconds > 0) {
    stats["decode_tokens_per_second"] = static_cast<double>(generated - a.parallel) / decode_seconds;
  }
  stats["planned_bytes"] = planned;
  stats["resident_bytes"] = resident;
  stats["peak_resident_bytes"] = peak;
  stats["peak_resident_to_planned"] = static_cast<double>(peak) / static_cast<double>(planned);
  stats["memory_plan"] = memory;
  stats["engine"] = Json::parse(engine.stats());
  std::fprintf(stderr, "%s\n", stats.dump(2).c_str());
}

int run(Arguments a) {
  Times t;
  t.start = Clock::now();
  size_engine(a);
  autodeploy::Engine engine(a.artifact, a.options);
  if (a.plan) {
    std::printf("%s\n", Json::parse(engine.plan()).dump(2).c_str());
    return 0;
  }
  t.ready = Clock::now();
  t.added = Clock::now();
  std::vector<autodeploy::Request> requests;
  for (std::int64_t i = 0; i < a.parallel; ++i) requests.push_back(engine.add_request(a.tokens, a.params));
  std::int64_t generated = 0;
  bool first = true;
  std::string error;
  for (autodeploy::Request& request : requests) {
    while (auto output = request.next()) {
      t.last = Clock::now();
      if (generated == 0) t.first = t.last;
      generated += static_cast<std::int64_t>(output->token_ids.size());
      if (&request == &requests.front()) print_output(*output, first);
      if (!output->error.empty()) error = output->error;
    }
  }
  std::printf("\n");
  if (!error.empty()) throw std::runtime_error(error);
  if (a.stats) print_stats(a, engine, t, generated);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--help") == 0) return std::fputs(kUsage, stdout) < 0;
    if (std::strcmp(argv[i], "--version") == 0)
      return std::printf("autodeploy_run %s\n", autodeploy_version()) < 0;
  }
  try {
    return run(parse(argc, argv));
  } catch (const std::invalid_argument& error) {
    std::fprintf(stderr, "autodeploy_run: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "autodeploy_run: %s\n", error.what());
    return 1;
  }
}
