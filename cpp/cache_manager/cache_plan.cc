#include "cache_manager/cache_plan.h"

#include <algorithm>
#include <limits>

#include "core/error.h"

namespace autodeploy {
namespace {

constexpr int64_t kMaxElements = int64_t{1} << 32;  // of one component per token or sequence
constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max() / 2;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t element_bytes(const StateSpec& state, const StateComponentSpec& component) {
  int64_t n = 1;
  for (int64_t dim : component.shape) {
    AD_CHECK(dim > 0 && n <= kMaxElements / dim, ErrorKind::kInvalidArtifact, "[caches] state '", state.name,
             "', component '", component.name, "': expected positive dims of at most ", kMaxElements,
             " elements in all, found ", dim);
    n *= dim;
  }
  return n * dtype_size(component.dtype);
}

bool same_geometry(const StateSpec& a, const StateSpec& b) {
  if (a.window != b.window || a.chunk != b.chunk || a.components.size() != b.components.size()) return false;
  for (size_t i = 0; i < a.components.size(); ++i) {
    if (a.components[i].shape != b.components[i].shape || a.components[i].dtype != b.components[i].dtype)
      return false;
  }
  return true;
}

void check_limits(const CacheLimits& limits) {
  const auto check = [](const char* name, int64_t value, int64_t largest) {
    AD_CHECK(value >= 1 && value <= largest, ErrorKind::kInvalidArgument, "[caches] ", name,
             ": expected a value in [1, ", largest, "], found ", value);
  };
  check("max_seq_len", limits.max_seq_len, kMaxSeqLen);
  check("max_num_seqs", limits.max_num_seqs, kMaxNumSeqs);
  check("max_batch_tokens", limits.max_batch_tokens, kMaxBatchTokens);
  check("max_open_steps", limits.max_open_steps, kMaxOpenSteps);
  AD_CHECK(limits.page_size >= 0 && limits.page_size <= kMaxPageSize, ErrorKind::kInvalidArgument,
           "[caches] page_size: expected a value in [1, ", kMaxPageSize, "] or 0 for the default, found ",
           limits.page_size);
  AD_CHECK(limits.num_snapshots >= 0 && limits.max_bytes >= 0, ErrorKind::kInvalidArgument,
           "[caches] num_snapshots and max_bytes: expected values >= 0, found ", limits.num_snapshots,
           " and ", limits.max_bytes);
}

// Groups and bytes; num_pages and num_slots are left at 0.
CachePlan layout(std::vector<StateSpec>& states, const CacheLimits& limits) {
  check_limits(limits);
  CachePlan plan;
  plan.limits = limits;
  if (plan.limits.page_size == 0) plan.limits.page_size = kDefaultPageSize;
  for (size_t s = 0; s < states.size(); ++s) {
    StateSpec& state = states[s];
    const bool paged = state.kind == StateSpec::Kind::kPaged;
    AD_CHECK(state.window >= 0 && state.chunk >= 0, ErrorKind::kInvalidArtifact, "[caches] state '",
             state.name, "': expected window and chunk >= 0, found ", state.window, " and ", state.chunk);
    AD_CHECK(!state.components.empty(), ErrorKind::kInvalidArtifact, "[caches] state '", state.name,
             "': expected at least one component, found none");
    auto& bytes = plan.component_bytes.emplace_back();
    int64_t total = 0;
    for (const StateComponentSpec& component : state.components) {
      const int64_t units = paged ? plan.limits.page_size : 1;
      bytes.push_back(ceil_div(element_bytes(state, component) * units, kStateAlignment) * kStateAlignment);
      total += bytes.back();
    }
    if (!paged) {
      plan.slots.states.push_back(static_cast<int32_t>(s));
      plan.slots.slot_bytes += total;
      continue;
    }
    auto group = std::find_if(plan.groups.begin(), plan.groups.end(), [&](const PageGroupPlan& g) {
      return same_geometry(states[static_cast<size_t>(g.states.front())], state);
    });
    if (group == plan.groups.end()) {
      plan.groups.emplace_back();
      group = std::prev(plan.groups.end());
      group->window = state.window;
      group->chunk = state.chunk;
      group->page_size = plan.limits.page_size;
      group->max_batch_tokens = limits.max_batch_tokens;
      group->max_open_steps = limits.max_open_steps;
    }
    group->states.push_back(static_cast<int32_t>(s));
    group->page_bytes += total;
    state.group = static_cast<int32_t>(group - plan.groups.begin());
    state.page_size = group->page_size;
  }
  return plan;
}

// Pools for num/den sequences of typical length (a quarter of the longest: long enough to weigh full groups
// against window groups), but never less than one longest sequence needs, nor more than max_num_seqs of them
// do. Null pages included.
struct Scale {
  int64_t num = 0, den = 1;
  int64_t pages(const PageGroupPlan& g, const CacheLimits& limits) const {
    const int64_t typical = g.pages_for(ceil_div(limits.max_seq_len, 4));
    const int64_t longest = g.pages_for(limits.max_seq_len);
    return std::clamp(typical * num / den, longest, longest * limits.max_num_seqs) + 1;
  }
};
constexpr Scale kOneSequence{0, 1};

double bytes_at(const CachePlan& plan, Scale scale) {
  double bytes = 0;
  for (const PageGroupPlan& g : plan.groups) {
    bytes += static_cast<double>(scale.pages(g, plan.limits)) * static_cast<double>(g.page_bytes);
  }
  return bytes + static_cast<double>(plan.slots.slot_bytes) * static_cast<double>(plan.slots.num_slots);
}

void size_slots(CachePlan& plan) {
  if (plan.slots.states.empty()) return;
  const int64_t slots = plan.limits.max_num_seqs + plan.limits.num_snapshots + 1;
  AD_CHECK(slots <= kMaxPages, ErrorKind::kInvalidArgument, "[caches] max_num_seqs: expected at most ",
           kMaxPages, " sequences and snapshots, found ", slots);
  plan.slots.num_slots = static_cast<int32_t>(slots);
}

bool one_sequence_fits(std::vector<StateSpec>& states, CacheLimits limits, int64_t seq_len) {
  limits.max_seq_len = seq_len;
  CachePlan plan = layout(states, limits);
  size_slots(plan);
  return bytes_at(plan, kOneSequence) <= static_cast<double>(limits.max_bytes);
}

}  // namespace

int64_t PageGroupPlan::live_begin(int64_t len) const {
  int64_t begin = 0;
  if (window > 0) begin = std::max(begin, len - window + 1);
  if (chunk > 0) begin = std::max(begin, len / chunk * chunk);
  return begin;
}

int64_t PageGroupPlan::pages_for(int64_t len) const {
  int64_t pages = ceil_div(len, page_size);
  // With p tokens committed it holds [live_begin(p), p + the tokens of the open steps), wherever that starts
  // within a page.
  const auto bound = [&](int64_t reach) {
    const int64_t span = reach - 1 + max_open_steps * max_batch_tokens;
    pages = std::min(pages, (span + page_size - 2) / page_size + 1);
  };
  if (window > 0) bound(window);
  if (chunk > 0) bound(chunk);
  return pages;
}

int64_t CachePlan::bytes() const {
  int64_t total = slots.bytes();
  for (const PageGroupPlan& group : groups) total += group.bytes();
  return total;
}

bool CachePlan::fits(int64_t len) const {
  if (len > limits.max_seq_len) return false;
  for (const PageGroupPlan& group : groups) {
    if (group.pages_for(len) > group.num_pages - 1) return false;
  }
  return true;
}

CachePlan plan_caches(std::vector<StateSpec>& states, const CacheLimits& limits) {
  CachePlan plan = layout(states, limits);
  size_slots(plan);

  // The largest scale, in 1/64ths of a sequence, that fits the limit.
  constexpr int64_t kSteps = 64;
  int64_t ratio = 1;  // longest to typical sequence, in pages
  for (const PageGroupPlan& g : plan.groups) {
    ratio = std::max(ratio,
                     ceil_div(g.pages_for(limits.max_seq_len), g.pages_for(ceil_div(limits.max_seq_len, 4))));
  }
  Scale scale{limits.max_num_seqs * ratio * kSteps, kSteps};
  if (limits.max_bytes > 0 && bytes_at(plan, scale) > static_cast<double>(limits.max_bytes)) {
    if (bytes_at(plan, kOneSequence) > static_cast<double>(limits.max_bytes)) {
      const int64_t fitting = longest_seq_len(states, limits);
      throw Error(
          ErrorKind::kOutOfMemory,
          detail::concat("[caches] expected room for one sequence of ", limits.max_seq_len, " tokens (",
                         static_cast<int64_t>(bytes_at(plan, kOneSequence)), " bytes), found a limit of ",
                         limits.max_bytes, " bytes; raise the cache limit or lower max_seq_len",
                         fitting > 0 ? detail::concat(" to ", fitting) : std::string(),
                         plan.slots.num_slots > 0 ? " or max_num_seqs" : ""));
    }
    int64_t low = 0, high = scale.num;  // low fits, high does not
    while (high - low > 1) {
      const int64_t mid = low + (high - low) / 2;
      (bytes_at(plan, Scale{mid, kSteps}) <= static_cast<double>(limits.max_bytes) ? low : high) = mid;
    }
    scale.num = low;
  }
  AD_CHECK(bytes_at(plan, scale) < 9e18, ErrorKind::kOutOfMemory,
           "[caches] expected a plan of less than 2^63 bytes; lower max_seq_len or max_num_seqs, or set a "
           "cache limit");
  for (PageGroupPlan& group : plan.groups) {
    const int64_t pages = scale.pages(group, limits);
    AD_CHECK(pages <= kMaxPages, ErrorKind::kInvalidArgument, "[caches] expected at most ", kMaxPages,
             " pages, found ", pages, "; raise page_size or set a cache limit");
    group.num_pages = static_cast<int32_t>(pages);
  }
  return plan;
}

int64_t longest_seq_len(std::vector<StateSpec>& states, const CacheLimits& limits) {
  if (limits.max_bytes == 0 || one_sequence_fits(states, limits, limits.max_seq_len))
    return limits.max_seq_len;
  int64_t low = 0, high = limits.max_seq_len;  // low fits (or is 0), high does not
  while (high - low > 1) {
    const int64_t mid = low + (high - low) / 2;
    (one_sequence_fits(states, limits, mid) ? low : high) = mid;
  }
  return low;
}

}  // namespace autodeploy
