#include "runtime/cuda/edit_slots.h"

#include <algorithm>

#include "core/error.h"

namespace autodeploy::cuda {
namespace {

constexpr int64_t kHalfEdits = int64_t{1} << 16;  // 512 KiB

}  // namespace

EditSlots::EditSlots(const SampleMemory& memory, int64_t vocab, int64_t max_rows)
    : memory_(memory),
      vocab_(vocab),
      slots_(static_cast<size_t>(max_rows)),
      last_(static_cast<size_t>(max_rows), -1),
      staging_(plan_bytes(), "edits of logits") {
  for (Half& half : halves_) {
    half.pinned = PinnedMemory(kHalfEdits * static_cast<int64_t>(sizeof(SampleEdit)), "edits of logits");
    half.free = std::make_unique<Event>();
  }
}

int64_t EditSlots::plan_bytes() { return 2 * kHalfEdits * static_cast<int64_t>(sizeof(SampleEdit)); }

int64_t EditSlots::pinned_bytes() const { return halves_[0].pinned.bytes() + halves_[1].pinned.bytes(); }

bool EditSlots::needs_slot(const SampleRow& row) {
  const SamplingParams& p = *row.params;
  return !p.logit_bias.empty() || has_penalties(p) ||
         (row.num_generated() < p.min_tokens &&
          (!p.stop_token_ids.empty() || (!p.ignore_eos && !p.eos_token_ids.empty())));
}

bool EditSlots::holds(const Slot& slot, const SampleRow& row) const {
  return slot.params == row.params && slot.prompt == row.prompt.data() &&
         slot.prompt_len == row.prompt.size() && slot.num_generated == row.num_generated() &&
         slot.step < step_;
}

void EditSlots::assign(std::span<const SampleRow> rows, Queue& queue, std::vector<int32_t>* slots) {
  AD_ICHECK(rows.size() <= slots_.size(), "there are as many slots as rows");
  ++step_;
  slots->assign(rows.size(), -1);
  size_t missing = 0;
  const auto use = [&](size_t row, int32_t index) {
    Slot& slot = slots_[static_cast<size_t>(index)];
    slot.step = step_;
    slot.num_generated = rows[row].num_generated() + 1;
    (*slots)[row] = index;
  };
  for (size_t r = 0; r < rows.size(); ++r) {
    if (!needs_slot(rows[r])) continue;
    if (const int32_t last = last_[r]; last >= 0 && holds(slots_[static_cast<size_t>(last)], rows[r])) {
      use(r, last);
      continue;
    }
    const auto found =
        std::find_if(slots_.begin(), slots_.end(), [&](const Slot& slot) { return holds(slot, rows[r]); });
    if (found != slots_.end())
      use(r, static_cast<int32_t>(found - slots_.begin()));
    else
      ++missing;
  }
  for (size_t r = 0; missing > 0 && r < rows.size(); ++r) {
    if (!needs_slot(rows[r]) || (*slots)[r] >= 0) continue;
    // None of this step, so there is always one.
    const auto oldest = std::min_element(slots_.begin(), slots_.end(),
                                         [](const Slot& a, const Slot& b) { return a.step < b.step; });
    const auto index = static_cast<int32_t>(oldest - slots_.begin());
    fill(index, rows[r], queue);
    use(r, index);
    --missing;
  }
  std::copy(slots->begin(), slots->end(), last_.begin());
}

void EditSlots::fill(int32_t index, const SampleRow& row, Queue& queue) {
  const SamplingParams& p = *row.params;
  Slot& slot = slots_[static_cast<size_t>(index)];
  // Until all of it is in the queue the slot is nobody's.
  slot.params = nullptr;
  const int64_t bytes = vocab_ * static_cast<int64_t>(sizeof(uint32_t));
  queue.fill(memory_.counts + index * vocab_, 0, bytes);
  if (!p.logit_bias.empty()) queue.fill(memory_.bias + index * vocab_, 0, bytes);
  biases_.clear();
  for (const auto& [token, bias] : p.logit_bias) biases_.emplace_back(token, static_cast<float>(bias));
  // Entries of one token are added up, since edits have no order.
  std::stable_sort(biases_.begin(), biases_.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  for (size_t i = 0; i < biases_.size();) {
    auto [token, bias] = biases_[i];
    for (++i; i < biases_.size() && biases_[i].first == token; ++i) bias += biases_[i].second;
    put(SampleEdit::kBias, token, bias, index, queue);
  }
  if (row.num_generated() < p.min_tokens) {
    for (int64_t token : p.stop_token_ids) put(SampleEdit::kForbidden, token, 0, index, queue);
    if (!p.ignore_eos) {
      for (int64_t token : p.eos_token_ids) put(SampleEdit::kForbidden, token, 0, index, queue);
    }
  }
  const bool counts = has_penalties(p);
  if (p.repetition_penalty != 1) {
    for (int64_t token : row.prompt) put(SampleEdit::kPrompt, token, 0, index, queue);
  }
  if (counts) {
    for (int64_t token : row.generated) put(SampleEdit::kGenerated, token, 0, index, queue);
  }
  flush(index, counts ? row.pending_row : -1, queue);
  slot.params = row.params;
  slot.prompt = row.prompt.data();
  slot.prompt_len = row.prompt.size();
}

void EditSlots::put(SampleEdit::Kind kind, int64_t token, float bias, int32_t slot, Queue& queue) {
  // Generation configs name end tokens beyond the vocabulary; they never come.
  if (token < 0 || token >= vocab_) return;
  if (end_ == kHalfEdits) {
    flush(slot, -1, queue);
    halves_[half_].free->record(queue.stream());
    half_ = 1 - half_;
    halves_[half_].free->wait();
    begin_ = end_ = 0;
  }
  auto* edits = reinterpret_cast<SampleEdit*>(halves_[half_].pinned.data());
  edits[end_++] = {static_cast<uint32_t>(kind) << SampleEdit::kKindShift | static_cast<uint32_t>(token),
                   bias};
}

void EditSlots::flush(int32_t slot, int64_t pending_row, Queue& queue) {
  const auto* edits = reinterpret_cast<const SampleEdit*>(halves_[half_].pinned.data()) + begin_;
  auto* staged = reinterpret_cast<SampleEdit*>(staging_.data()) + half_ * kHalfEdits + begin_;
  const int64_t count = end_ - begin_;
  queue.copy_to_device(staged, edits, count * static_cast<int64_t>(sizeof(SampleEdit)));
  launch_sample_edits(queue.stream(), memory_, vocab_, slot, staged, count, pending_row);
  begin_ = end_;
}

}  // namespace autodeploy::cuda
