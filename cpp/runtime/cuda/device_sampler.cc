#include "runtime/cuda/device_sampler.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/sample.h"
#include "runtime/cuda/edit_slots.h"
#include "runtime/philox.h"

namespace autodeploy::cuda {
namespace {

void check_launches() {
  if (const char* error = take_launch_error())
    throw Error(ErrorKind::kInternal, detail::concat("[sampler] a launch failed: ", error));
}

}  // namespace

static_assert(kMaxTopLogprobs == kMaxLogprobs);

struct DeviceSampler::Impl {
  // A step that may be in flight.
  struct Flight {
    PinnedMemory results;
    std::vector<SampledRow> rows;    // [max_rows]
    std::vector<bool> has_logprobs;  // [max_rows]
    int64_t num_rows = 0, padded_rows = 0, top_stride = 0;
    Path path = Path::kGreedy;
  };

  Impl(int64_t vocab_size, int64_t max_rows, int64_t max_seq_len, int num_flights)
      : vocab(vocab_size), max_rows(max_rows) {
    AD_CHECK(vocab <= kMaxSampleVocab, ErrorKind::kUnsupported, "[sampler] expected a vocabulary of at most ",
             kMaxSampleVocab, " tokens, found ", vocab, "; sample on the host");
    AD_CHECK(max_seq_len < int64_t{1} << 30, ErrorKind::kUnsupported,
             "[sampler] expected max_seq_len below 2^30, found ", max_seq_len, "; give less");
    const int64_t size = place_sample_memory(nullptr, max_rows, vocab, nullptr);
    storage = DeviceMemory(size, "the sampler");
    place_sample_memory(storage.data(), max_rows, vocab, &memory);
    slots = EditSlots(memory, vocab, max_rows);
    flights.resize(static_cast<size_t>(num_flights));
    const auto most = static_cast<size_t>(std::min<int64_t>(kMaxLogprobs, vocab));
    for (Flight& f : flights) {
      f.results = PinnedMemory(sample_result_bytes(max_rows, kMaxLogprobs), "sampled tokens");
      f.rows.resize(static_cast<size_t>(max_rows));
      f.has_logprobs.resize(static_cast<size_t>(max_rows));
      for (SampledRow& row : f.rows) row.logprob.top.reserve(most);
    }
    Queue queue;
    queue.fill(storage.data(), 0, size);
    queue.wait();
  }

  SampleParams params_of(const SampleRow& row, int32_t slot) const {
    const SamplingParams& p = *row.params;
    SampleParams out;
    out.num_top = p.logprobs;
    out.slot = slot;
    if (slot >= 0) {
      out.repetition = static_cast<float>(p.repetition_penalty);
      out.frequency = static_cast<float>(p.frequency_penalty);
      out.presence = static_cast<float>(p.presence_penalty);
      if (!p.logit_bias.empty()) out.flags |= kSampleBias;
      if (row.num_generated() < p.min_tokens) out.flags |= kSampleForbid;
      if (has_penalties(p)) out.flags |= kSamplePenalty;
    }
    if (p.temperature == 0) {
      out.flags |= kSampleGreedy;
      return out;
    }
    out.uniform = philox_uniform(p.seed.value_or(0), row.position());
    out.scale = static_cast<float>(1.0 / p.temperature);
    out.top_k = p.top_k < vocab ? static_cast<int32_t>(std::max<int64_t>(p.top_k, 0)) : 0;
    out.top_p = p.top_p;
    out.min_p = static_cast<float>(p.min_p);
    return out;
  }

  int64_t vocab, max_rows;
  DeviceMemory storage;
  SampleMemory memory;
  EditSlots slots;
  std::vector<Flight> flights;
  std::vector<int32_t> row_slots;  // of the step being uploaded
};

DeviceSampler::DeviceSampler(int64_t vocab_size, int64_t max_rows, int64_t max_seq_len, int slots)
    : impl_(std::make_unique<Impl>(vocab_size, max_rows, max_seq_len, slots)) {}
DeviceSampler::~DeviceSampler() = default;

DeviceSampler::Path DeviceSampler::path_for(std::span<const SampleRow> rows) {
  const bool greedy = std::all_of(rows.begin(), rows.end(), [](const SampleRow& row) {
    return row.params->temperature == 0 && row.params->logprobs < 0 && !EditSlots::needs_slot(row);
  });
  return greedy ? Path::kGreedy : Path::kFull;
}

int64_t DeviceSampler::options_bytes(int64_t rows, Path path) {
  return static_cast<int64_t>(sizeof(SampleHeader)) +
         (path == Path::kFull ? rows * static_cast<int64_t>(sizeof(SampleParams)) : 0);
}

void DeviceSampler::write_options(std::span<const SampleRow> rows, int64_t padded_rows, Path path, int slot,
                                  uint8_t* to, Queue& queue) {
  Impl& s = *impl_;
  const auto num_rows = static_cast<int64_t>(rows.size());
  AD_ICHECK(num_rows <= padded_rows && padded_rows <= s.max_rows,
            "a step has the rows that the sampler was made for, found ", num_rows, " and ", padded_rows,
            " with padding");
  AD_ICHECK(path == Path::kFull || path_for(rows) == Path::kGreedy,
            "steps of the greedy path ask for nothing else");
  Impl::Flight& f = s.flights[static_cast<size_t>(slot)];
  f.num_rows = num_rows, f.padded_rows = padded_rows, f.path = path, f.top_stride = 0;
  auto* params = reinterpret_cast<SampleParams*>(to + sizeof(SampleHeader));
  std::fill(f.has_logprobs.begin(), f.has_logprobs.end(), false);
  if (path == Path::kFull) {
    s.slots.assign(rows, queue, &s.row_slots);
    for (size_t r = 0; r < rows.size(); ++r) {
      params[r] = s.params_of(rows[r], s.row_slots[r]);
      f.has_logprobs[r] = params[r].num_top >= 0;
      f.top_stride = std::max<int64_t>(f.top_stride, std::min<int64_t>(params[r].num_top, s.vocab));
    }
  }
  SampleHeader header;
  header.num_rows = static_cast<int32_t>(num_rows);
  header.top_stride = static_cast<int32_t>(f.top_stride);
  std::memcpy(to, &header, sizeof(header));
}

void DeviceSampler::resolve_tokens(int64_t* token_ids, const int32_t* token_rows, int64_t num_tokens,
                                   Queue& queue) {
  launch_resolve_tokens(queue.stream(), num_tokens, token_rows, impl_->memory.sampled, token_ids);
  check_launches();
}

void DeviceSampler::enqueue(const TensorView& logits, int64_t padded_rows, Path path, const uint8_t* options,
                            Queue& queue) {
  Impl& s = *impl_;
  AD_ICHECK(logits.ndim == 2 && logits.shape[0] >= padded_rows && logits.shape[1] >= s.vocab &&
                logits.stride[1] == 1 && padded_rows <= s.max_rows &&
                (logits.dtype == DType::kF32 || logits.dtype == DType::kF16 || logits.dtype == DType::kBF16),
            "logits are floats [rows, vocab_size] with contiguous rows");
  const SampleLogits given{logits.data, logits.dtype, padded_rows, s.vocab, logits.stride[0]};
  if (path == Path::kGreedy)
    launch_argmax(queue.stream(), given, options, s.memory);
  else
    launch_sample(queue.stream(), given, options, s.memory);
  check_launches();
}

void DeviceSampler::download(int64_t num_rows, Path path, int slot, Queue& queue) {
  Impl::Flight& f = impl_->flights[static_cast<size_t>(slot)];
  AD_ICHECK(f.num_rows == num_rows && f.path == path, "the results are those of the step uploaded last");
  // The most likely tokens lie behind the heads of all rows, padding included.
  const int64_t bytes = f.top_stride == 0
                            ? sample_result_bytes(num_rows, 0)
                            : sample_result_bytes(f.padded_rows, 0) +
                                  num_rows * f.top_stride * static_cast<int64_t>(sizeof(SampleTop));
  queue.copy_to_host(f.results.data(), impl_->memory.results, bytes);
}

std::span<const SampledRow> DeviceSampler::collect(int64_t num_rows, int slot) {
  Impl::Flight& f = impl_->flights[static_cast<size_t>(slot)];
  AD_ICHECK(f.num_rows == num_rows, "the results are those of the slot's step");
  const auto* heads = reinterpret_cast<const SampleHead*>(f.results.data());
  const auto* tops =
      reinterpret_cast<const SampleTop*>(f.results.data() + sample_result_bytes(f.padded_rows, 0));
  for (int64_t r = 0; r < num_rows; ++r) {
    const SampleHead& head = heads[r];
    SampledRow& row = f.rows[static_cast<size_t>(r)];
    row.token = head.token;
    row.logprob.chosen = {};
    row.logprob.rank = 0;
    row.logprob.top.clear();
    if (head.token < 0 || !f.has_logprobs[static_cast<size_t>(r)]) continue;
    row.logprob.chosen = {head.token, head.logprob};
    row.logprob.rank = head.rank;
    for (int32_t i = 0; i < head.num_top; ++i) {
      const SampleTop& top = tops[r * f.top_stride + i];
      row.logprob.top.push_back({top.token, top.logprob});
    }
  }
  return {f.rows.data(), static_cast<size_t>(num_rows)};
}

int64_t DeviceSampler::plan_bytes(int64_t vocab_size, int64_t max_rows, int64_t) {
  return place_sample_memory(nullptr, max_rows, vocab_size, nullptr) + EditSlots::plan_bytes();
}

int64_t DeviceSampler::bytes() const { return impl_->storage.bytes() + impl_->slots.bytes(); }

int64_t DeviceSampler::pinned_bytes() const {
  int64_t total = impl_->slots.pinned_bytes();
  for (const Impl::Flight& f : impl_->flights) total += f.results.bytes();
  return total;
}

}  // namespace autodeploy::cuda
