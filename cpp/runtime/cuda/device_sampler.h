// Chooses tokens on the device: what runtime/sampler.h says, for steps that the host does not wait for.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "core/tensor_view.h"
#include "runtime/cuda/device_api.h"
#include "scheduler/model_runner.h"

namespace autodeploy::cuda {

// Calls for a step come in this order, and those of two steps in the order of the steps: write_options,
// enqueue, download; collect when the copy has arrived. All work goes into one queue.
//
// What a row asks for is 64 bytes that go to the device with the arrays of each step. Penalties, biases and
// forbidden tokens lie in a slot on the device, an array over the vocabulary each, that a request is given
// with its first row and that its draws keep up to date there; so a token that the host does not know yet is
// counted, too. A row whose slot does not say the same number of generated tokens as the row (it was lent to
// others, or a step failed) has it filled anew.
class DeviceSampler {
 public:
  // kGreedy: the largest logit of each row, nothing else is asked for. kFull: all options.
  enum class Path { kGreedy, kFull };

  // All memory is taken here. `slots`: steps that may be in flight. Uses the calling thread's device.
  DeviceSampler(int64_t vocab_size, int64_t max_rows, int64_t max_seq_len, int slots);
  ~DeviceSampler();

  static Path path_for(std::span<const SampleRow> rows);

  // Bytes of what rows ask for.
  static int64_t options_bytes(int64_t rows, Path path);
  // Writes what the rows ask for to `to`, options_bytes(padded_rows, path) bytes of the host that the caller
  // brings to the device before enqueue(); rows beyond, up to padded_rows, are null.
  void write_options(std::span<const SampleRow> rows, int64_t padded_rows, Path path, int slot, uint8_t* to,
                     Queue& queue);
  // token_ids[i] = the token of row token_rows[i] of the step before, where that is not negative (0 where
  // that row came to none). May be recorded.
  void resolve_tokens(int64_t* token_ids, const int32_t* token_rows, int64_t num_tokens, Queue& queue);
  // Samples logits [padded_rows, >= vocab_size] on the device, of any float type, by options on the device
  // (16-byte aligned). May be recorded.
  void enqueue(const TensorView& logits, int64_t padded_rows, Path path, const uint8_t* options,
               Queue& queue);
  // Puts the copy of the results to the host into the queue.
  void download(int64_t num_rows, Path path, int slot, Queue& queue);
  // The results of a slot whose copy has arrived, valid until the slot's next download.
  std::span<const SampledRow> collect(int64_t num_rows, int slot);

  static int64_t plan_bytes(int64_t vocab_size, int64_t max_rows, int64_t max_seq_len);  // on the device
  int64_t bytes() const;                                                                 // on the device
  int64_t pinned_bytes() const;                                                          // on the host

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace autodeploy::cuda
