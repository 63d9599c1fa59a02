#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "runtime/philox.h"
#include "runtime/row_math.h"
#include "runtime/token_filter.h"

namespace autodeploy {
namespace {

constexpr float kForbidden = -std::numeric_limits<float>::infinity();

bool edits_logits(const SampleRow& row) {
  const SamplingParams& p = *row.params;
  return !p.logit_bias.empty() || p.repetition_penalty != 1 || p.presence_penalty != 0 ||
         p.frequency_penalty != 0 || row.num_generated() < p.min_tokens;
}

}  // namespace

struct Sampler::Scratch {
  explicit Scratch(int64_t vocab_size)
      : logits(static_cast<size_t>(vocab_size)),
        counts(static_cast<size_t>(vocab_size)),
        filter(vocab_size) {}

  std::vector<float> logits;    // [vocab_size] edited ones
  std::vector<int32_t> counts;  // [vocab_size] all 0 between rows
  TokenFilter filter;

  int64_t bytes() const {
    return static_cast<int64_t>(logits.size() * sizeof(logits[0]) + counts.size() * sizeof(counts[0])) +
           filter.bytes();
  }

  // Steps 2 and 3 of the order above.
  void edit(const SampleRow& row) {
    const SamplingParams& p = *row.params;
    for (const auto& [token, bias] : p.logit_bias)
      logits[static_cast<size_t>(token)] += static_cast<float>(bias);
    if (row.num_generated() < p.min_tokens) {
      forbid(p.stop_token_ids);
      if (!p.ignore_eos) forbid(p.eos_token_ids);
    }
    if (p.repetition_penalty == 1 && p.presence_penalty == 0 && p.frequency_penalty == 0) return;
    constexpr int32_t kInPrompt = 1 << 30;
    for (int64_t token : row.generated) ++counts[static_cast<size_t>(token)];
    if (p.repetition_penalty != 1) {
      for (int64_t token : row.prompt) counts[static_cast<size_t>(token)] |= kInPrompt;
    }
    const auto penalise = [&](int64_t token) {
      int32_t& count = counts[static_cast<size_t>(token)];
      if (count == 0) return;
      float& logit = logits[static_cast<size_t>(token)];
      const auto repetition = static_cast<float>(p.repetition_penalty);
      logit = logit > 0 ? logit / repetition : logit * repetition;
      const int32_t generated = count & ~kInPrompt;
      if (generated > 0) {
        logit -= static_cast<float>(p.frequency_penalty) * static_cast<float>(generated) +
                 static_cast<float>(p.presence_penalty);
      }
      count = 0;
    };
    for (int64_t token : row.generated) penalise(token);
    if (p.repetition_penalty != 1) {
      for (int64_t token : row.prompt) penalise(token);
    }
  }

  void forbid(const std::vector<int64_t>& tokens) {
    for (int64_t token : tokens) {
      if (token < static_cast<int64_t>(logits.size())) logits[static_cast<size_t>(token)] = kForbidden;
    }
  }
};

Sampler::Sampler(int64_t vocab_size, int64_t max_rows, int num_threads)
    : vocab_size_(vocab_size), results_(static_cast<size_t>(max_rows)) {
  for (int i = 0; i < num_threads; ++i) scratch_.push_back(std::make_unique<Scratch>(vocab_size));
  const auto most = static_cast<size_t>(std::min<int64_t>(kMaxLogprobs, vocab_size));
  for (SampledRow& row : results_) row.logprob.top.reserve(most);
}

Sampler::~Sampler() = default;

int64_t Sampler::bytes() const {
  int64_t total = 0;
  for (const auto& scratch : scratch_) total += scratch->bytes();
  for (const SampledRow& row : results_) {
    total += static_cast<int64_t>(sizeof(row) + row.logprob.top.capacity() * sizeof(TokenLogprob));
  }
  return total;
}

std::span<const SampledRow> Sampler::sample(const TensorView& logits, std::span<const SampleRow> rows,
                                            ThreadPool& pool) {
  AD_ICHECK(
      rows.empty() || (logits.ndim == 2 && logits.dtype == DType::kF32 && logits.shape[1] == vocab_size_ &&
                       logits.stride[1] == 1 && logits.shape[0] == static_cast<int64_t>(rows.size())),
      "logits are float32 [rows, vocab_size] with contiguous rows");
  AD_ICHECK(rows.size() <= results_.size() && pool.num_threads() <= static_cast<int>(scratch_.size()),
            "a step has the rows and threads that the sampler was made for");
  pool.parallel_for(static_cast<int64_t>(rows.size()), 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t r = begin; r < end; ++r) {
      sample_row(logits.as<const float>() + r * logits.stride[0], rows[static_cast<size_t>(r)],
                 *scratch_[static_cast<size_t>(thread)], results_[static_cast<size_t>(r)]);
    }
  });
  return {results_.data(), rows.size()};
}

void Sampler::sample_row(const float* logits, const SampleRow& row, Scratch& scratch, SampledRow& out) const {
  const SamplingParams& params = *row.params;
  const RowMath& math = row_math();
  out.token = -1;
  out.logprob.top.clear();

  const float* edited = logits;
  RowMax best = math.find_max(logits, vocab_size_);
  if (best.token >= 0 && edits_logits(row)) {
    std::memcpy(scratch.logits.data(), logits, static_cast<size_t>(vocab_size_) * sizeof(float));
    scratch.edit(row);
    edited = scratch.logits.data();
    best = math.find_max(edited, vocab_size_);
  }
  if (best.token < 0 || !std::isfinite(best.value)) return;
  out.token = params.temperature == 0
                  ? best.token
                  : scratch.filter.draw(edited, best.value, params,
                                        philox_uniform(params.seed.value_or(0), row.position()));
  if (params.logprobs >= 0) scratch.filter.logprobs(logits, out.token, params.logprobs, out.logprob);
}

}  // namespace autodeploy
