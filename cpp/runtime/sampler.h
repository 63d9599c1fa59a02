// Chooses the next token of each row of logits.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "core/tensor_view.h"
#include "core/thread_pool.h"
#include "scheduler/model_runner.h"

namespace autodeploy {

// The order in which a row is processed is that of transformers' generation (and of vLLM up to min_p, which
// comes last here):
//   1. log probabilities of the raw logits, where asked for
//   2. logit_bias; EOS and stop ids forbidden until min_tokens
//   3. repetition_penalty (prompt and output), frequency_penalty and presence_penalty (output)
//   4. greedy: the largest logit, ties to the lower id; else
//   5. temperature, top_k (ties at the k-th stay), top_p (of what is left), min_p
//   6. a draw by inverse transform with the number philox_uniform(seed, position)
// A row's token depends on its logits, its request and its position alone: not on other rows, threads or
// earlier steps.
class Sampler {
 public:
  // All memory for steps of max_rows rows is taken here; see bytes().
  Sampler(int64_t vocab_size, int64_t max_rows, int num_threads);
  ~Sampler();

  // logits: float32 [R, vocab_size], inner stride 1, left as they are. rows: [R]. The result is valid until
  // the next call; a row with NaN, +inf or nothing above -inf gives the token -1. `pool` has at most
  // num_threads threads.
  std::span<const SampledRow> sample(const TensorView& logits, std::span<const SampleRow> rows,
                                     ThreadPool& pool);

  int64_t bytes() const;
  int64_t vocab_size() const { return vocab_size_; }

 private:
  struct Scratch;
  void sample_row(const float* logits, const SampleRow& row, Scratch& scratch, SampledRow& out) const;

  int64_t vocab_size_;
  std::vector<std::unique_ptr<Scratch>> scratch_;  // [num_threads]
  std::vector<SampledRow> results_;                // [max_rows]
};

}  // namespace autodeploy
