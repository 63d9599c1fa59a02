#include "runtime/cuda/step_upload.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace autodeploy::cuda {
namespace {

// Of all groups together, and one for the null sequences of each.
int64_t max_pages_of(const CachePlan& plan) {
  int64_t pages = 0;
  for (const PageGroupPlan& group : plan.groups)
    pages += (plan.limits.max_seq_len + group.page_size - 1) / group.page_size * plan.limits.max_num_seqs + 1;
  return pages;
}

}  // namespace

struct StepUpload::Places {
  int64_t token_ids = 0, positions = 0, token_seq = 0, token_rows = 0, query_start = 0, kv_len = 0,
          prompt_len = 0, slot = 0, rows = 0, has_state = 0, page_start = 0, pages = 0;
};

StepUpload::Places StepUpload::places(const StepSizes& s) const { return places_of(s, num_groups_); }

int64_t StepUpload::plan_bytes(const CachePlan& plan, int64_t max_rows, int64_t max_extra) {
  const StepSizes most{plan.limits.max_batch_tokens, plan.limits.max_num_seqs, max_rows, max_extra};
  return places_of(most, static_cast<int64_t>(plan.groups.size())).pages + max_pages_of(plan) * 4;
}

StepUpload::Places StepUpload::places_of(const StepSizes& s, int64_t num_groups) {
  Places p;
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t here = at;
    at = (at + bytes + 15) / 16 * 16;
    return here;
  };
  (void)take(s.extra);
  p.token_ids = take(s.tokens * 8);
  p.positions = take(s.tokens * 8);
  p.token_seq = take(s.tokens * 4);
  p.token_rows = take(s.tokens * 4);
  p.query_start = take((s.seqs + 1) * 4);
  p.kv_len = take(s.seqs * 4);
  p.prompt_len = take(s.seqs * 4);
  p.slot = take(s.seqs * 4);
  p.rows = take(s.rows * 4);
  p.has_state = take(s.seqs);
  p.page_start = take(s.seqs * num_groups * 4);
  p.pages = at;
  return p;
}

StepUpload::StepUpload(const CachePlan& plan, int64_t max_rows, int64_t max_extra, int slots)
    : num_groups_(static_cast<int64_t>(plan.groups.size())), max_pages_(max_pages_of(plan)) {
  AD_CHECK(num_groups_ <= kMaxPageGroups, ErrorKind::kUnsupported, "[cuda] expected at most ", kMaxPageGroups,
           " groups of pages, found ", num_groups_, ": the program's states have more geometries");
  for (const PageGroupPlan& group : plan.groups) page_sizes_.push_back(group.page_size);
  const int64_t bytes = plan_bytes(plan, max_rows, max_extra);
  device_ = DeviceMemory(bytes, "the arrays of a step");
  for (int i = 0; i < slots; ++i) pinned_.emplace_back(bytes, "the arrays of a step");
}

int64_t StepUpload::pinned_bytes() const {
  int64_t total = 0;
  for (const PinnedMemory& p : pinned_) total += p.bytes();
  return total;
}

DeviceStep StepUpload::layout(const StepSizes& s) const {
  const Places p = places(s);
  const uint8_t* d = device_.data();
  DeviceStep step;
  step.num_tokens = s.tokens, step.num_seqs = s.seqs, step.num_rows = s.rows;
  step.token_ids = reinterpret_cast<const int64_t*>(d + p.token_ids);
  step.positions = reinterpret_cast<const int64_t*>(d + p.positions);
  step.token_seq = reinterpret_cast<const int32_t*>(d + p.token_seq);
  step.query_start = reinterpret_cast<const int32_t*>(d + p.query_start);
  step.kv_len = reinterpret_cast<const int32_t*>(d + p.kv_len);
  step.prompt_len = reinterpret_cast<const int32_t*>(d + p.prompt_len);
  step.slot = reinterpret_cast<const int32_t*>(d + p.slot);
  step.has_state = d + p.has_state;
  step.rows = reinterpret_cast<const int32_t*>(d + p.rows);
  for (int64_t g = 0; g < num_groups_; ++g) {
    DevicePageTable& table = step.page_tables[g];
    table.page_size = page_sizes_[static_cast<size_t>(g)];
    table.start = reinterpret_cast<const int32_t*>(d + p.page_start) + g * s.seqs;
    table.pages = reinterpret_cast<const int32_t*>(d + p.pages);
  }
  return step;
}

const int32_t* StepUpload::token_rows(const StepSizes& sizes) const {
  return reinterpret_cast<const int32_t*>(device_.data() + places(sizes).token_rows);
}

DeviceStep StepUpload::put(const StepBatch& b, std::span<const int32_t> token_rows, const StepSizes& s,
                           int slot, Queue& queue) {
  const Places p = places(s);
  uint8_t* h = pinned_[static_cast<size_t>(slot)].data();
  const int64_t T = b.num_tokens, B = b.num_seqs, R = b.num_rows, padding = s.seqs - B;
  AD_ICHECK(padding >= 0 && s.tokens == T + padding && (s.rows == R + padding || padding == 0),
            "a step is filled up with whole sequences");
  DeviceStep step = layout(s);
  step.num_decodes = b.num_decodes + (b.num_decodes == B ? padding : 0);

  auto* token_ids = reinterpret_cast<int64_t*>(h + p.token_ids);
  auto* positions = reinterpret_cast<int64_t*>(h + p.positions);
  std::copy(b.token_ids.begin(), b.token_ids.end(), token_ids);
  std::copy(b.positions.begin(), b.positions.end(), positions);
  std::fill(token_ids + T, token_ids + s.tokens, 0);
  std::fill(positions + T, positions + s.tokens, 0);
  auto* rows_of = reinterpret_cast<int32_t*>(h + p.token_rows);
  if (token_rows.empty())
    std::fill(rows_of, rows_of + s.tokens, -1);
  else
    std::fill(std::copy(token_rows.begin(), token_rows.end(), rows_of), rows_of + s.tokens, -1);

  auto* query_start = reinterpret_cast<int32_t*>(h + p.query_start);
  auto* kv_len = reinterpret_cast<int32_t*>(h + p.kv_len);
  auto* prompt_len = reinterpret_cast<int32_t*>(h + p.prompt_len);
  auto* slots = reinterpret_cast<int32_t*>(h + p.slot);
  auto* token_seq = reinterpret_cast<int32_t*>(h + p.token_seq);
  uint8_t* has_state = h + p.has_state;
  const std::span<const int32_t> known = b.prompt_len.empty() ? b.kv_len : b.prompt_len;
  query_start[0] = 0;
  for (int64_t i = 0; i < s.seqs; ++i) {
    const size_t k = static_cast<size_t>(i);
    const bool real = i < B;
    query_start[i + 1] = real ? b.query_start[k + 1] : query_start[i] + 1;
    kv_len[i] = real ? b.kv_len[k] : 1;
    prompt_len[i] = real ? known[k] : 1;
    slots[i] = real && !b.slot.empty() ? b.slot[k] : 0;
    has_state[i] = real && !b.has_state.empty() ? b.has_state[k] : 0;
    std::fill(token_seq + query_start[i], token_seq + query_start[i + 1], static_cast<int32_t>(i));
    step.max_query_len = std::max<int64_t>(step.max_query_len, query_start[i + 1] - query_start[i]);
    step.max_kv_len = std::max<int64_t>(step.max_kv_len, kv_len[i]);
  }
  auto* rows = reinterpret_cast<int32_t*>(h + p.rows);
  std::copy(b.rows.begin(), b.rows.end(), rows);
  for (int64_t r = R; r < s.rows; ++r) rows[r] = static_cast<int32_t>(T + r - R);

  auto* start = reinterpret_cast<int32_t*>(h + p.page_start);
  auto* pages = reinterpret_cast<int32_t*>(h + p.pages);
  int64_t used = 0;
  for (int64_t g = 0; g < num_groups_; ++g) {
    const StepBatch::PageTable& table = b.page_tables[static_cast<size_t>(g)];
    for (int64_t i = 0; i < B; ++i) {
      const int64_t n = (kv_len[i] + table.page_size - 1) / table.page_size;
      AD_ICHECK(used + n < max_pages_ && n <= table.max_pages, "the lists of pages have room");
      start[g * s.seqs + i] = static_cast<int32_t>(used);
      std::memcpy(pages + used, table.pages.data() + i * table.max_pages, static_cast<size_t>(n) * 4);
      used += n;
    }
    pages[used] = 0;  // of all null sequences
    std::fill(start + g * s.seqs + B, start + (g + 1) * s.seqs, static_cast<int32_t>(used));
    ++used;
  }
  queue.copy_to_device(device_.data(), h, p.pages + used * 4);
  step.stream = queue.stream();
  return step;
}

}  // namespace autodeploy::cuda
