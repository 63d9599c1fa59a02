#include "runtime/token_filter.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>

namespace autodeploy {
namespace {

// Most likely first, ties by token.
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.value != b.value ? a.value > b.value : a.token < b.token;
}

// Moves the smallest set of most likely candidates that holds `mass` to the front and returns its size, at
// least 1. A candidate is in it when those before it hold less than `mass`. Expected linear time: halves are
// weighed, never sorted.
int64_t select_mass(Candidate* first, int64_t count, double mass) {
  int64_t low = 0, high = count;  // the boundary lies in (low, high]; `before` is held by [0, low)
  double before = 0;
  while (high - low > 32) {
    const int64_t mid = low + (high - low) / 2;
    std::nth_element(first + low, first + mid, first + high, more_likely);
    double half = 0;
    for (int64_t i = low; i < mid; ++i) half += static_cast<double>(first[i].value);
    if (before + half >= mass) {
      high = mid;
    } else {
      before += half;
      low = mid;
    }
  }
  std::sort(first + low, first + high, more_likely);
  while (low < high && (before < mass || low == 0)) before += static_cast<double>(first[low++].value);
  return low;
}

}  // namespace

TokenFilter::TokenFilter(int64_t vocab_size)
    : vocab_size_(vocab_size),
      probs_(static_cast<size_t>(vocab_size)),
      block_sums_(static_cast<size_t>(num_row_blocks(vocab_size))),
      block_max_(static_cast<size_t>(num_row_blocks(vocab_size))),
      candidates_(static_cast<size_t>(vocab_size)) {}

int64_t TokenFilter::bytes() const {
  return static_cast<int64_t>(probs_.size() * sizeof(float) + block_sums_.size() * sizeof(double) +
                              block_max_.size() * sizeof(float) + candidates_.size() * sizeof(Candidate));
}

int64_t TokenFilter::draw(const float* logits, float max, const SamplingParams& params, double uniform) {
  const RowMath& math = row_math();
  const auto scale = static_cast<float>(1.0 / params.temperature);
  const bool has_top_k = params.top_k > 0 && params.top_k < vocab_size_;
  const auto min_p =
      static_cast<float>(params.min_p);  // probabilities below are relative to the most likely token
  if (!has_top_k && params.top_p >= 1 && min_p <= 0) return draw_any(logits, max, scale, uniform);

  int64_t count = 0;
  double total = 0;
  if (has_top_k) {
    count = collect_largest(logits, params.top_k);
    for (int64_t i = 0; i < count; ++i)
      probs_[static_cast<size_t>(i)] = candidates_[static_cast<size_t>(i)].value;
    total = math.exp_shifted(probs_.data(), count, max, scale, probs_.data(), block_sums_.data());
    for (int64_t i = 0; i < count; ++i)
      candidates_[static_cast<size_t>(i)].value = probs_[static_cast<size_t>(i)];
  } else {
    total = math.exp_shifted(logits, vocab_size_, max, scale, probs_.data(), block_sums_.data());
    // The first of a few thresholds above which there is mass enough; most rows need a handful of candidates.
    constexpr std::array<float, 5> kThresholds = {0.1F, 0.01F, 1e-3F, 1e-4F, 1e-6F};
    float threshold = 0;
    if (params.top_p < 1) {
      std::array<double, kThresholds.size()> sums{};
      math.sum_at_least(probs_.data(), vocab_size_, kThresholds, sums.data());
      for (size_t j = kThresholds.size(); j-- > 0;) {
        if (sums[j] >= params.top_p * total) threshold = kThresholds[j];
      }
    }
    count = math.collect_at_least(probs_.data(), vocab_size_, std::max(threshold, min_p), candidates_.data());
  }
  if (params.top_p < 1) {
    count = select_mass(candidates_.data(), count, params.top_p * total);
    // Draws go along the tokens, whatever order the selection left.
    std::sort(candidates_.data(), candidates_.data() + count,
              [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  }
  double kept = 0;
  int64_t num_kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Candidate candidate = candidates_[static_cast<size_t>(i)];
    if (candidate.value < min_p) continue;
    candidates_[static_cast<size_t>(num_kept++)] = candidate;
    kept += static_cast<double>(candidate.value);
  }
  return draw_candidate(num_kept, uniform * kept);
}

int64_t TokenFilter::draw_candidate(int64_t count, double target) const {
  double before = 0;
  int64_t last = 0;  // the last one with any probability, should rounding carry the target to the end
  for (int64_t i = 0; i < count; ++i) {
    const Candidate& candidate = candidates_[static_cast<size_t>(i)];
    if (candidate.value <= 0) continue;
    before += static_cast<double>(candidate.value);
    last = candidate.token;
    if (before > target) break;
  }
  return last;
}

int64_t TokenFilter::draw_any(const float* logits, float max, float scale, double uniform) {
  const double total =
      row_math().exp_shifted(logits, vocab_size_, max, scale, probs_.data(), block_sums_.data());
  const double target = uniform * total;
  double before = 0;
  int64_t last = 0;
  for (size_t block = 0; block < block_sums_.size(); ++block) {
    const bool is_last = block + 1 == block_sums_.size();
    if (!is_last && before + block_sums_[block] <= target) {
      before += block_sums_[block];
      continue;
    }
    const int64_t begin = static_cast<int64_t>(block) * kRowBlock,
                  end = std::min(vocab_size_, begin + kRowBlock);
    for (int64_t i = begin; i < end; ++i) {
      const auto p = static_cast<double>(probs_[static_cast<size_t>(i)]);
      if (p <= 0) continue;
      before += p;
      last = i;
      if (before > target) return last;
    }
  }
  return last;
}

int64_t TokenFilter::collect_largest(const float* x, int64_t k) {
  const RowMath& math = row_math();
  // The k-th largest of the block maxima bounds the k-th largest element from below.
  float bound = -std::numeric_limits<float>::infinity();
  if (k <= static_cast<int64_t>(block_max_.size())) {
    math.block_maxima(x, vocab_size_, block_max_.data());
    const auto kth = block_max_.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(block_max_.begin(), kth, block_max_.end(), std::greater<>());
    bound = *kth;
  }
  int64_t count = math.collect_at_least(x, vocab_size_, bound, candidates_.data());
  if (count <= k) return count;
  for (int64_t i = 0; i < count; ++i)
    probs_[static_cast<size_t>(i)] = candidates_[static_cast<size_t>(i)].value;
  const auto kth = probs_.begin() + static_cast<std::ptrdiff_t>(k - 1);
  std::nth_element(probs_.begin(), kth, probs_.begin() + static_cast<std::ptrdiff_t>(count),
                   std::greater<>());
  const float threshold = *kth;
  const auto begin = candidates_.begin();
  const auto end = std::remove_if(begin, begin + static_cast<std::ptrdiff_t>(count),
                                  [&](const Candidate& c) { return c.value < threshold; });
  return end - begin;
}

void TokenFilter::logprobs(const float* logits, int64_t token, int64_t num_top, ChosenLogprob& out) {
  const RowMath& math = row_math();
  const float max = math.find_max(logits, vocab_size_).value;
  const double total = math.exp_shifted(logits, vocab_size_, max, 1.0F, probs_.data(), block_sums_.data());
  const double log_total = std::log(total);
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - static_cast<double>(max) - log_total);
  };
  const float chosen = logits[token];
  out.chosen = {token, logprob(chosen)};
  out.rank = static_cast<int32_t>(1 + math.count_above(logits, vocab_size_, chosen));
  out.top.clear();
  num_top = std::min(num_top, vocab_size_);
  if (num_top == 0) return;
  const int64_t count = collect_largest(logits, num_top);
  const auto begin = candidates_.begin();
  std::partial_sort(begin, begin + static_cast<std::ptrdiff_t>(num_top),
                    begin + static_cast<std::ptrdiff_t>(count), more_likely);
  for (int64_t i = 0; i < num_top; ++i) {
    const Candidate& c = candidates_[static_cast<size_t>(i)];
    out.top.push_back({c.token, logprob(c.value)});
  }
}

}  // namespace autodeploy
