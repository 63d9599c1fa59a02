#include "runtime/engine_options.h"

#include <algorithm>

#include "core/error.h"

namespace autodeploy {
namespace {

constexpr int64_t kDefaultNumSeqs = 8;
constexpr int64_t kDefaultBatchTokens = 512;
constexpr int64_t kDefaultSeqLen = 4096;                   // of a model that does not say its own
constexpr int64_t kUnknownMemoryCache = int64_t{1} << 30;  // bytes
constexpr int64_t kLeastCache = int64_t{16} << 20;         // bytes, for the default alone

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
  AD_CHECK(
      options.overlap != Overlap::kOn || model.max_in_flight >= 2, ErrorKind::kInvalidArgument,
      "[engine] overlap: expected a backend that takes a step while another one runs, found one that runs "
      "them one at a time; leave it to the engine, or turn it off");
}

// Bytes of the slots of one sequence.
int64_t slot_bytes(std::vector<StateSpec> states, CacheLimits limits) {
  limits.max_bytes = 0;
  return plan_caches(states, limits).slots.slot_bytes;
}

}  // namespace

LoadFormat parse_load_format(std::string_view text) {
  if (text == "auto") return LoadFormat::kAuto;
  AD_CHECK(text == "dummy", ErrorKind::kInvalidArgument,
           "[engine] load_format: expected auto or dummy, found ", text);
  return LoadFormat::kDummy;
}

CacheLimits resolve_limits(const EngineOptions& options, const ModelFacts& model,
                           std::vector<StateSpec> states, int64_t available_bytes) {
  check_options(options, model);
  AD_CHECK(available_bytes == 0 || model.weight_bytes <= available_bytes, ErrorKind::kOutOfMemory,
           "[engine] expected ", model.weight_bytes, " bytes of memory to load the weights, found ",
           available_bytes, " bytes available; free memory or use a smaller or quantized checkpoint");

  CacheLimits limits;
  limits.max_open_steps = options.overlap == Overlap::kOff ? 1 : std::min(model.max_in_flight, 2);
  limits.page_size = options.page_size;
  limits.max_bytes = options.cache_bytes;
  if (limits.max_bytes == 0) {
    limits.max_bytes =
        available_bytes == 0 ? kUnknownMemoryCache : (available_bytes - model.weight_bytes) / 2;
    limits.max_bytes = std::max(limits.max_bytes, kLeastCache);
  }
  const int64_t least = model.prefix_len + 2;  // one token of prompt and one of output
  limits.max_seq_len = options.max_seq_len > 0 ? options.max_seq_len + model.prefix_len : 0;
  if (limits.max_seq_len == 0)
    limits.max_seq_len = model.max_positions > 0 ? model.max_positions : kDefaultSeqLen;
  limits.max_seq_len = std::clamp<int64_t>(limits.max_seq_len, least, kMaxSeqLen);
  limits.max_num_seqs = options.max_num_seqs > 0 ? options.max_num_seqs : kDefaultNumSeqs;
  const auto default_batch_tokens = [&] {
    // More tokens than all sequences together have would never come.
    const int64_t most = limits.max_seq_len * limits.max_num_seqs;
    return std::max(std::min(kDefaultBatchTokens, most), limits.max_num_seqs);
  };
  limits.max_batch_tokens = options.max_batch_tokens > 0 ? options.max_batch_tokens : default_batch_tokens();
  if (options.max_num_seqs == 0) {
    const int64_t bytes = slot_bytes(states, limits);
    const int64_t affordable = bytes > 0 ? limits.max_bytes / 2 / bytes - 1 : limits.max_num_seqs;
    limits.max_num_seqs = std::clamp<int64_t>(affordable, 1, limits.max_num_seqs);
    if (options.max_batch_tokens > 0)
      limits.max_num_seqs = std::min(limits.max_num_seqs, limits.max_batch_tokens);
  }
  AD_CHECK(limits.max_batch_tokens >= limits.max_num_seqs, ErrorKind::kInvalidArgument,
           "[engine] max_batch_tokens: expected at least max_num_seqs = ", limits.max_num_seqs, ", found ",
           limits.max_batch_tokens);
  if (options.max_seq_len == 0) {
    const int64_t longest = longest_seq_len(states, limits);
    if (longest >= least) limits.max_seq_len = longest;  // else plan_caches says what is missing
    if (options.max_batch_tokens == 0) limits.max_batch_tokens = default_batch_tokens();
  }
  const int64_t cache_bytes = plan_caches(states, limits).bytes();
  AD_CHECK(available_bytes == 0 || model.weight_bytes + cache_bytes <= available_bytes,
           ErrorKind::kOutOfMemory, "[engine] expected ", model.weight_bytes, " bytes for the weights and ",
           cache_bytes, " bytes for the caches, found ", available_bytes,
           " bytes of memory available; lower cache_bytes, max_seq_len or max_num_seqs");
  return limits;
}

}  // namespace autodeploy
