// Draws from a filtered distribution over the vocabulary, and ranks tokens, without sorting the vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/row_math.h"
#include "scheduler/request.h"
#include "scheduler/sampling_params.h"

namespace autodeploy {

// Scratch memory for one row at a time.
class TokenFilter {
 public:
  explicit TokenFilter(int64_t vocab_size);

  // A token of softmax(logits / temperature) after top_k, top_p and min_p; `max` is the largest logit and
  // finite, `uniform` in [0, 1).
  int64_t draw(const float* logits, float max, const SamplingParams& params, double uniform);

  // Log probability and rank (1 + the number of tokens with a larger logit) of `token`, and the `num_top`
  // most likely tokens, ties to the lower id. Allocates nothing where out.top has the capacity.
  void logprobs(const float* logits, int64_t token, int64_t num_top, ChosenLogprob& out);

  int64_t bytes() const;

 private:
  // Fills candidates_ with the k largest elements of x and all that equal the k-th, in order of tokens.
  int64_t collect_largest(const float* x, int64_t k);
  int64_t draw_any(const float* logits, float max, float scale, double uniform);
  int64_t draw_candidate(int64_t count, double target) const;

  int64_t vocab_size_;
  std::vector<float> probs_;           // [vocab_size]
  std::vector<double> block_sums_;     // [num_row_blocks]
  std::vector<float> block_max_;       // [num_row_blocks]
  std::vector<Candidate> candidates_;  // [vocab_size]
};

}  // namespace autodeploy
