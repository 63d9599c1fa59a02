// Lends slots on the device to requests whose logits are edited, and fills them.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kernels/cuda/sample.h"
#include "runtime/cuda/device_api.h"
#include "scheduler/model_runner.h"

namespace autodeploy::cuda {

// Whether generated tokens are counted.
inline bool has_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}

// A slot holds what a request was given once - its prompt's tokens, biases, tokens forbidden until min_tokens
// - and counts of generated tokens, which draws go on with (kSamplePenalty). It belongs to the request of a
// row: of the same params, prompt and number of generated tokens, which grows with each step that the request
// has a row in. A request begins with none, where a slot that was ever lent has one or more, so a slot is
// never taken for that of a new request at the address of an old one.
class EditSlots {
 public:
  EditSlots() = default;
  // As many slots as rows.
  EditSlots(const SampleMemory& memory, int64_t vocab, int64_t max_rows);

  // Whether the row's logits are changed before the draw.
  static bool needs_slot(const SampleRow& row);

  // slots[r]: of row r, -1 where it needs none. Fills slots as far as they are new, in the order of the
  // queue: after the draws of the step before, and before those of the rows, which are counted ahead.
  void assign(std::span<const SampleRow> rows, Queue& queue, std::vector<int32_t>* slots);

  static int64_t plan_bytes();  // on the device, besides the SampleMemory
  int64_t bytes() const { return staging_.bytes(); }
  int64_t pinned_bytes() const;

 private:
  struct Slot {
    const SamplingParams* params = nullptr;
    const int64_t* prompt = nullptr;
    size_t prompt_len = 0;
    int64_t num_generated = -1;  // after the step assigned last
    int64_t step = -1;           // that it was used in last
  };
  // Edits on their way to the device: two halves take turns.
  struct Half {
    PinnedMemory pinned;
    std::unique_ptr<Event> free;  // the queue has passed what was put into it
  };

  bool holds(const Slot& slot, const SampleRow& row) const;
  void fill(int32_t index, const SampleRow& row, Queue& queue);
  void put(SampleEdit::Kind kind, int64_t token, float bias, int32_t slot, Queue& queue);
  void flush(int32_t slot, int64_t pending_row, Queue& queue);

  SampleMemory memory_;
  int64_t vocab_ = 0, step_ = 0;
  std::vector<Slot> slots_;
  std::vector<int32_t> last_;  // [rows] the slot of a row in the step before: often the same again
  DeviceMemory staging_;
  Half halves_[2];
  int half_ = 0;
  int64_t begin_ = 0, end_ = 0;  // edits of the half: put, and not flushed from begin_ on
  std::vector<std::pair<int64_t, float>> biases_;
};

}  // namespace autodeploy::cuda
