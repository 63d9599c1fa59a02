#include "runtime/engine_options.h"

#include <algorithm>

#include "core/error.h"

namespace autodeploy {
namespace {

constexpr int64_t kDefaultSeqLen = 4096;                   // of a model that does not say its own
constexpr int64_t kUnknownMemoryCache = int64_t{1} << 30;  // bytes
constexpr double kDefaultFraction = 0.9;
constexpr int64_t kLeastCache = int64_t{16} << 20;  // bytes, for the default alone

void check_option(const char* name, int64_t value, int64_t low, int64_t high) {
  AD_CHECK(value == 0 || (value >= low && value <= high), ErrorKind::kInvalidArgument, "[engine] ", name,
           ": expected a value in [", low, ", ", high, "], or 0 for the default, found ", value);
}

void check_options(const EngineOptions& options, const ModelFacts& model) {
  // One token of prompt and one of output is the least.
  check_option("max_seq_len", options.max_seq_len, 2, kMaxSeqLen);
  AD_CHECK(model.max_positions == 0 || options.max_seq_len <= model.max_positions - model.prefix_len,
           ErrorKind::kInvalidArgument, "[engine] max_seq_len: expected at most the ",
           model.max_positions - model.prefix_len, " positions of the model, found ", options.max_seq_len);
  check_option("max_num_seqs", options.max_num_seqs, 1, kMaxNumSeqs);
  check_option("max_batch_tokens", options.max_batch_tokens, 1, kMaxBatchTokens);
  check_option("cache_bytes", options.cache_bytes, 1, int64_t{1} << 60);
  check_option("page_size", options.page_size, 1, kMaxPageSize);
  check_option("num_threads", options.num_threads, 1, kMaxThreads);
  AD_CHECK(options.gpu_memory_fraction >= 0 && options.gpu_memory_fraction <= 1, ErrorKind::kInvalidArgument,
           "[engine] gpu_memory_fraction: expected a number above 0, up to 1, or 0 for the default, found ",
           options.gpu_memory_fraction);
  AD_CHECK(
      options.overlap != Overlap::kOn || model.max_in_flight >= 2, ErrorKind::kInvalidArgument,
      "[engine] overlap: expected a backend that takes a step while another one runs, found one that runs "
      "them one at a time; leave it to the engine, or turn it off");
}

// Bytes of the pages of one sequence of max_seq_len, with the null pages.
int64_t least_page_bytes(const CachePlan& plan) {
  int64_t bytes = 0;
  for (const PageGroupPlan& group : plan.groups)
    bytes += (group.pages_for(plan.limits.max_seq_len) + 1) * group.page_bytes;
  return bytes;
}

// What an option is where it is left open.
struct Defaults {
  int64_t num_seqs, batch_tokens;
  bool slots_take_all;  // states of sequences may take all of the caches where there are no pages; else half
};
constexpr Defaults kHostDefaults{8, 512, false};
constexpr Defaults kDeviceDefaults{256, 8192, true};

// The sequences whose slots the caches can hold: in all of them beside no pages, else in half, and no more
// than the pages leave that one sequence must have.
int64_t affordable_seqs(std::vector<StateSpec> states, CacheLimits limits, const Defaults& defaults,
                        bool fixed_len) {
  const int64_t cache_bytes = limits.max_bytes;
  limits.max_bytes = 0;
  const CachePlan plan = plan_caches(states, limits);
  if (plan.slots.slot_bytes == 0) return limits.max_num_seqs;
  const bool all = defaults.slots_take_all && plan.groups.empty();
  int64_t bytes = all ? cache_bytes : cache_bytes / 2;
  if (fixed_len) bytes = std::min(bytes, cache_bytes - least_page_bytes(plan));
  return bytes / plan.slots.slot_bytes - 1;  // one is the null slot
}

// Bytes of caches for one sequence of max_seq_len, the others' slots included.
int64_t least_cache_bytes(std::vector<StateSpec> states, CacheLimits limits) {
  limits.max_bytes = 0;
  const CachePlan plan = plan_caches(states, limits);
  return plan.slots.bytes() + least_page_bytes(plan);
}

// Limits for checked options. max_seq_len is shortened to what the caches hold where the user left it open; a
// single shortest sequence may still not fit.
CacheLimits fill_in(const EngineOptions& options, const ModelFacts& model, std::vector<StateSpec>& states,
                    const Defaults& defaults, int64_t cache_limit) {
  CacheLimits limits;
  limits.max_open_steps = options.overlap == Overlap::kOff ? 1 : std::min(model.max_in_flight, 2);
  limits.page_size = options.page_size;
  limits.max_bytes = cache_limit;
  const int64_t least = model.prefix_len + 2;  // one token of prompt and one of output
  limits.max_seq_len = options.max_seq_len > 0 ? options.max_seq_len + model.prefix_len : 0;
  if (limits.max_seq_len == 0)
    limits.max_seq_len = model.max_positions > 0 ? model.max_positions : kDefaultSeqLen;
  limits.max_seq_len = std::clamp<int64_t>(limits.max_seq_len, least, kMaxSeqLen);
  limits.max_num_seqs = options.max_num_seqs > 0 ? options.max_num_seqs : defaults.num_seqs;
  const auto default_batch_tokens = [&] {
    // More tokens than all sequences together have would never come.
    const int64_t most = limits.max_seq_len * limits.max_num_seqs;
    return std::max(std::min(defaults.batch_tokens, most), limits.max_num_seqs);
  };
  limits.max_batch_tokens = options.max_batch_tokens > 0 ? options.max_batch_tokens : default_batch_tokens();
  if (options.max_num_seqs == 0) {
    limits.max_num_seqs = std::clamp<int64_t>(
        affordable_seqs(states, limits, defaults, options.max_seq_len > 0), 1, limits.max_num_seqs);
    if (options.max_batch_tokens > 0)
      limits.max_num_seqs = std::min(limits.max_num_seqs, limits.max_batch_tokens);
  }
  AD_CHECK(limits.max_batch_tokens >= limits.max_num_seqs, ErrorKind::kInvalidArgument,
           "[engine] max_batch_tokens: expected at least max_num_seqs = ", limits.max_num_seqs, ", found ",
           limits.max_batch_tokens);
  if (options.max_seq_len == 0) {
    const int64_t longest = longest_seq_len(states, limits);
    if (longest >= least) limits.max_seq_len = longest;  // else the caller says what is missing
    if (options.max_batch_tokens == 0) limits.max_batch_tokens = default_batch_tokens();
  }
  return limits;
}

}  // namespace

LoadFormat parse_load_format(std::string_view text) {
  if (text == "auto") return LoadFormat::kAuto;
  AD_CHECK(text == "dummy", ErrorKind::kInvalidArgument,
           "[engine] load_format: expected auto or dummy, found ", text);
  return LoadFormat::kDummy;
}

DummyRouting parse_dummy_routing(std::string_view text) {
  if (text == "model") return DummyRouting::kModel;
  AD_CHECK(text == "uniform", ErrorKind::kInvalidArgument,
           "[engine] dummy_routing: expected model or uniform, found ", text);
  return DummyRouting::kUniform;
}

void check_dummy_routing(const EngineOptions& options) {
  AD_CHECK(options.dummy_routing == DummyRouting::kModel || options.load_format == LoadFormat::kDummy,
           ErrorKind::kInvalidArgument,
           "[engine] dummy_routing: expected model where weights are loaded, found uniform: it is for "
           "load_format dummy alone");
}

CacheLimits resolve_limits(const EngineOptions& options, const ModelFacts& model,
                           std::vector<StateSpec> states, int64_t available_bytes) {
  check_options(options, model);
  AD_CHECK(available_bytes == 0 || model.weight_bytes <= available_bytes, ErrorKind::kOutOfMemory,
           "[engine] expected ", model.weight_bytes, " bytes of memory to load the weights, found ",
           available_bytes, " bytes available; free memory or use a smaller or quantized checkpoint");
  int64_t cache_limit = options.cache_bytes;
  if (cache_limit == 0) {
    cache_limit = available_bytes == 0 ? kUnknownMemoryCache : (available_bytes - model.weight_bytes) / 2;
    cache_limit = std::max(cache_limit, kLeastCache);
  }
  const CacheLimits limits = fill_in(options, model, states, kHostDefaults, cache_limit);
  const int64_t cache_bytes = plan_caches(states, limits).bytes();
  AD_CHECK(available_bytes == 0 || model.weight_bytes + cache_bytes <= available_bytes,
           ErrorKind::kOutOfMemory, "[engine] expected ", model.weight_bytes, " bytes for the weights and ",
           cache_bytes, " bytes for the caches, found ", available_bytes,
           " bytes of memory available; lower cache_bytes, max_seq_len or max_num_seqs");
  return limits;
}

int64_t device_memory_limit(const EngineOptions& options, const DeviceMemoryFacts& memory) {
  const double fraction = options.gpu_memory_fraction > 0 ? options.gpu_memory_fraction : kDefaultFraction;
  const auto share = static_cast<int64_t>(static_cast<double>(memory.total) * fraction);
  return std::max<int64_t>(share - (memory.total - memory.free), 0);
}

CacheLimits resolve_device_limits(const EngineOptions& options, const ModelFacts& model,
                                  std::vector<StateSpec> states, const DeviceMemoryFacts& memory,
                                  const CacheLimits* before) {
  check_options(options, model);
  const int64_t limit = device_memory_limit(options, memory),
                left = limit - memory.weights - memory.arena - memory.graphs - memory.other;
  // What is expected for the caches may be said as a number or in words.
  const auto refuse = [&](const auto& caches, const char* what_to_do) {
    const auto share = static_cast<int64_t>(
        100 * (options.gpu_memory_fraction > 0 ? options.gpu_memory_fraction : kDefaultFraction) + 0.5);
    throw Error(ErrorKind::kOutOfMemory,
                detail::concat(
                    "[engine] expected ", memory.weights, " bytes of the GPU's memory for the weights, ",
                    memory.arena, " for the values of a step, ", memory.graphs, " for graphs, ", memory.other,
                    " for the rest and ", caches, " for the caches, found ", limit, " bytes: ", share,
                    " % of ", memory.total, " less ", memory.total - memory.free, " in use; ", what_to_do));
  };
  constexpr const char* kAdvice =
      "lower max_seq_len, max_num_seqs or max_batch_tokens, raise gpu_memory_fraction, free the GPU's "
      "memory, or "
      "use a smaller model";
  if (left < 0) refuse("some", kAdvice);
  if (options.cache_bytes > left) refuse(options.cache_bytes, "lower cache_bytes, or leave it to the engine");
  // A limit of 0 would be none.
  const int64_t cache_limit = std::max<int64_t>(options.cache_bytes > 0 ? options.cache_bytes : left, 1);
  CacheLimits limits = fill_in(options, model, states, kDeviceDefaults, cache_limit);
  if (longest_seq_len(states, limits) < limits.max_seq_len) {
    CacheLimits boundless = limits;
    boundless.max_num_seqs = options.max_num_seqs > 0 ? limits.max_num_seqs : 1;
    if (options.max_seq_len == 0) boundless.max_seq_len = model.prefix_len + 2;
    boundless.max_batch_tokens = std::max(limits.max_batch_tokens, boundless.max_num_seqs);
    refuse(least_cache_bytes(states, boundless), kAdvice);
  }
  if (!before) return limits;
  limits.max_seq_len = std::min(limits.max_seq_len, before->max_seq_len);
  limits.max_num_seqs = std::min(limits.max_num_seqs, before->max_num_seqs);
  limits.max_batch_tokens = std::min(limits.max_batch_tokens, before->max_batch_tokens);
  return limits;
}

}  // namespace autodeploy
