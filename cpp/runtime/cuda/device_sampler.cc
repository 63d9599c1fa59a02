#include "runtime/cuda/device_sampler.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/sample.h"
#include "runtime/philox.h"

namespace autodeploy::cuda {
namespace {

bool has_penalties(const SamplingParams& p) {
  return p.repetition_penalty != 1 || p.presence_penalty != 0 || p.frequency_penalty != 0;
}
bool forbids(const SampleRow& row) { return row.num_generated() < row.params->min_tokens; }
bool has_edits(const SampleRow& row) {
  return has_penalties(*row.params) || forbids(row) || !row.params->logit_bias.empty();
}

}  // namespace

struct DeviceSampler::Impl {
  struct Slot {
    PinnedMemory packed;   // SampleHeader, then SampleParams of all rows
    PinnedMemory edits;    // SampleEdit
    PinnedMemory results;  // as the device has them
    int64_t rows = 0, top_stride = 0;
    std::vector<SampledRow> sampled;
    std::vector<int32_t> num_top;  // asked for; -1: none
  };
  int64_t vocab_size, max_rows, max_edits;
  DeviceMemory memory, packed, edits;
  SampleMemory places;
  std::vector<Slot> slots;
  bool cleared = false;

  // Adds a row's edits to the device's slot of that number. `used`: edits of this step that are on their way.
  void put_edits(const SampleRow& row, int64_t index, Slot& slot, int64_t* used, Queue& queue) {
    const SamplingParams& p = *row.params;
    queue.fill(places.counts + index * vocab_size, 0, vocab_size * static_cast<int64_t>(sizeof(uint32_t)));
    queue.fill(places.bias + index * vocab_size, 0, vocab_size * static_cast<int64_t>(sizeof(float)));
    const int64_t most =
        static_cast<int64_t>(p.logit_bias.size() + p.stop_token_ids.size() + p.eos_token_ids.size() +
                             row.prompt.size() + row.generated.size());
    if (*used + most > max_edits) {  // the buffer is used again when its copies have passed
      queue.wait();
      *used = 0;
    }
    auto* begin = reinterpret_cast<SampleEdit*>(slot.edits.data()) + *used;
    SampleEdit* end = begin;
    const auto add = [&](SampleEdit::Kind kind, int64_t token, float bias) {
      if (token < 0 || token >= vocab_size) return;
      end->what = static_cast<uint32_t>(kind) << SampleEdit::kKindShift | static_cast<uint32_t>(token);
      end->bias = bias;
      ++end;
    };
    for (const auto& [token, bias] : p.logit_bias) add(SampleEdit::kBias, token, static_cast<float>(bias));
    if (forbids(row)) {
      for (int64_t token : p.stop_token_ids) add(SampleEdit::kForbidden, token, 0);
      if (!p.ignore_eos) {
        for (int64_t token : p.eos_token_ids) add(SampleEdit::kForbidden, token, 0);
      }
    }
    if (has_penalties(p)) {
      if (p.repetition_penalty != 1) {
        for (int64_t token : row.prompt) add(SampleEdit::kPrompt, token, 0);
      }
      for (int64_t token : row.generated) add(SampleEdit::kGenerated, token, 0);
    }
    const int64_t count = end - begin;
    auto* on_device = reinterpret_cast<SampleEdit*>(edits.data()) + *used;
    queue.copy_to_device(on_device, begin, count * static_cast<int64_t>(sizeof(SampleEdit)));
    *used += count;
    launch_sample_edits(queue.stream(), places, vocab_size, index, on_device, count,
                        has_penalties(p) ? row.pending_row : -1);
  }
};

DeviceSampler::DeviceSampler(int64_t vocab_size, int64_t max_rows, int64_t max_seq_len, int slots)
    : impl_(std::make_unique<Impl>()) {
  AD_CHECK(vocab_size <= kMaxSampleVocab, ErrorKind::kUnsupported,
           "[sampler] expected a vocabulary of at most ", kMaxSampleVocab, " tokens, found ", vocab_size);
  Impl& s = *impl_;
  s.vocab_size = vocab_size;
  s.max_rows = max_rows;
  s.max_edits = max_seq_len + vocab_size + 2 * kMaxTokenLists;
  s.memory = DeviceMemory(place_sample_memory(nullptr, max_rows, vocab_size, nullptr), "the sampler");
  place_sample_memory(s.memory.data(), max_rows, vocab_size, &s.places);
  const int64_t packed =
      static_cast<int64_t>(sizeof(SampleHeader)) + max_rows * static_cast<int64_t>(sizeof(SampleParams));
  s.packed = DeviceMemory(packed, "the sampler");
  s.edits = DeviceMemory(s.max_edits * static_cast<int64_t>(sizeof(SampleEdit)), "the sampler");
  s.slots.resize(static_cast<size_t>(slots));
  const auto most = static_cast<size_t>(std::min<int64_t>(kMaxLogprobs, vocab_size));
  for (Impl::Slot& slot : s.slots) {
    slot.packed = PinnedMemory(packed, "the sampler");
    slot.edits = PinnedMemory(s.edits.bytes(), "the sampler");
    slot.results = PinnedMemory(sample_result_bytes(max_rows, kMaxTopLogprobs), "the sampler");
    slot.sampled.resize(static_cast<size_t>(max_rows));
    slot.num_top.resize(static_cast<size_t>(max_rows));
    for (SampledRow& row : slot.sampled) row.logprob.top.reserve(most);
  }
}

DeviceSampler::~DeviceSampler() = default;

DeviceSampler::Path DeviceSampler::path_for(std::span<const SampleRow> rows) {
  const bool plain = std::all_of(rows.begin(), rows.end(), [](const SampleRow& row) {
    return row.params->temperature == 0 && row.params->logprobs < 0 && !has_edits(row);
  });
  return plain ? Path::kGreedy : Path::kFull;
}

void DeviceSampler::upload(std::span<const SampleRow> rows, int64_t padded_rows, Path path, int slot_index,
                           Queue& queue) {
  Impl& s = *impl_;
  Impl::Slot& slot = s.slots[static_cast<size_t>(slot_index)];
  if (!s.cleared) queue.fill(s.memory.data(), 0, s.memory.bytes());
  s.cleared = true;
  AD_ICHECK(static_cast<int64_t>(rows.size()) <= padded_rows && padded_rows <= s.max_rows,
            "a step has no more rows than the sampler was made for");
  SampleHeader header;
  header.num_rows = static_cast<int32_t>(rows.size());
  slot.rows = padded_rows;
  int64_t used = 0;
  auto* params = reinterpret_cast<SampleParams*>(slot.packed.data() + sizeof(SampleHeader));
  for (size_t i = 0; i < rows.size(); ++i) {
    const SampleRow& row = rows[i];
    const SamplingParams& p = *row.params;
    slot.num_top[i] = path == Path::kGreedy ? -1 : p.logprobs;
    if (path == Path::kGreedy) continue;
    header.top_stride = std::max(header.top_stride, p.logprobs);
    SampleParams out;
    out.uniform = philox_uniform(p.seed.value_or(0), row.position());
    out.top_p = p.top_p;
    out.scale = p.temperature == 0 ? 1.0f : static_cast<float>(1.0 / p.temperature);
    out.min_p = static_cast<float>(p.min_p);
    out.repetition = static_cast<float>(p.repetition_penalty);
    out.frequency = static_cast<float>(p.frequency_penalty);
    out.presence = static_cast<float>(p.presence_penalty);
    out.top_k = p.top_k > 0 && p.top_k < s.vocab_size ? static_cast<int32_t>(p.top_k) : 0;
    out.num_top = static_cast<int32_t>(std::min<int64_t>(p.logprobs, s.vocab_size));
    if (p.temperature == 0) out.flags |= kSampleGreedy;
    if (has_edits(row)) {
      out.slot = static_cast<int32_t>(i);
      if (!p.logit_bias.empty()) out.flags |= kSampleBias;
      if (forbids(row)) out.flags |= kSampleForbid;
      if (has_penalties(p)) out.flags |= kSamplePenalty;
      s.put_edits(row, static_cast<int64_t>(i), slot, &used, queue);
    }
    std::memcpy(params + i, &out, sizeof(out));
  }
  slot.top_stride = header.top_stride;
  std::memcpy(slot.packed.data(), &header, sizeof(header));
  const auto param_bytes = path == Path::kGreedy ? size_t{0} : rows.size() * sizeof(SampleParams);
  queue.copy_to_device(s.packed.data(), slot.packed.data(),
                       static_cast<int64_t>(sizeof(SampleHeader) + param_bytes));
}

void DeviceSampler::resolve_tokens(int64_t* token_ids, const int32_t* token_rows, int64_t num_tokens,
                                   Queue& queue) {
  launch_resolve_tokens(queue.stream(), num_tokens, token_rows, impl_->places.sampled, token_ids);
}

void DeviceSampler::enqueue(const TensorView& logits, int64_t padded_rows, Path path, Queue& queue) {
  AD_ICHECK(logits.ndim == 2 && logits.stride[1] == 1 && logits.shape[0] == padded_rows &&
                logits.shape[1] >= impl_->vocab_size,
            "logits are rows of at least the vocabulary");
  const SampleLogits x{logits.data, logits.dtype, padded_rows, impl_->vocab_size, logits.stride[0]};
  (path == Path::kGreedy ? launch_argmax : launch_sample)(queue.stream(), x, impl_->packed.data(),
                                                          impl_->places);
}

void DeviceSampler::download(int64_t, Path, int slot_index, Queue& queue) {
  Impl::Slot& slot = impl_->slots[static_cast<size_t>(slot_index)];
  queue.copy_to_host(slot.results.data(), impl_->places.results,
                     sample_result_bytes(slot.rows, slot.top_stride));
}

std::span<const SampledRow> DeviceSampler::collect(int64_t num_rows, int slot_index) {
  Impl::Slot& slot = impl_->slots[static_cast<size_t>(slot_index)];
  const auto* heads = reinterpret_cast<const SampleHead*>(slot.results.data());
  const auto* tops = reinterpret_cast<const SampleTop*>(heads + slot.rows);
  for (int64_t r = 0; r < num_rows; ++r) {
    SampledRow& row = slot.sampled[static_cast<size_t>(r)];
    row.token = heads[r].token;
    row.logprob.top.clear();
    if (slot.num_top[static_cast<size_t>(r)] < 0 || row.token < 0) continue;
    row.logprob.chosen = {row.token, heads[r].logprob};
    row.logprob.rank = heads[r].rank;
    for (int32_t i = 0; i < heads[r].num_top; ++i) {
      const SampleTop& top = tops[r * slot.top_stride + i];
      row.logprob.top.push_back({top.token, top.logprob});
    }
  }
  return {slot.sampled.data(), static_cast<size_t>(num_rows)};
}

int64_t DeviceSampler::plan_bytes(int64_t vocab_size, int64_t max_rows, int64_t max_seq_len) {
  return place_sample_memory(nullptr, max_rows, vocab_size, nullptr) +
         max_rows * static_cast<int64_t>(sizeof(SampleParams)) +
         (max_seq_len + vocab_size + 2 * kMaxTokenLists) * static_cast<int64_t>(sizeof(SampleEdit));
}

int64_t DeviceSampler::bytes() const {
  return impl_->memory.bytes() + impl_->packed.bytes() + impl_->edits.bytes();
}

int64_t DeviceSampler::pinned_bytes() const {
  int64_t total = 0;
  for (const Impl::Slot& slot : impl_->slots)
    total += slot.packed.bytes() + slot.edits.bytes() + slot.results.bytes();
  return total;
}

}  // namespace autodeploy::cuda
