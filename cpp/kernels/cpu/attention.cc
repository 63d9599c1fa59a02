// attention: appends the step's keys and values to their pages, then softmax attention of each sequence over
// its own keys.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/spec_check.h"

namespace autodeploy {
namespace {

constexpr int64_t kMinPiece = 128;         // keys of a single query that are worth a task
constexpr int64_t kWorthSharing = 200000;  // products of a step that are worth calling other threads

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// How one sequence's step is cut into tasks. Depends on its own lengths alone, so that its results depend on
// nothing else.
struct SequenceSplit {
  int64_t tokens_per_tile = 1;  // of the step's new tokens
  int64_t tiles = 1;
  int64_t piece = 0, pieces = 1;  // keys, for a single new token
};

SequenceSplit choose_split(int64_t new_tokens, int64_t first_key, int64_t kv_len, int64_t heads_per_tile) {
  SequenceSplit s;
  if (new_tokens == 1) {
    // From a multiple of the key block, so that pieces hold whole blocks.
    const int64_t keys = kv_len - first_key / kKeyBlock * kKeyBlock;
    s.piece = std::max(kMinPiece, round_up((keys + kMaxPieces - 1) / kMaxPieces, kKeyBlock));
    s.pieces = (keys + s.piece - 1) / s.piece;
    return s;
  }
  const int64_t most = std::max<int64_t>(kAttendRows / heads_per_tile, 1);
  s.tokens_per_tile = std::clamp<int64_t>(new_tokens / 4, 1, most);
  s.tiles = (new_tokens + s.tokens_per_tile - 1) / s.tokens_per_tile;
  return s;
}

class Attention final : public Kernel {
 public:
  Attention(const KernelSpec& spec, Isa isa)
      : kernels_(attention_kernels(isa)), max_seqs_(spec.max_seqs), threads_(spec.num_threads) {
    const SpecCheck check(spec);
    check.arity(4, 1, 1);
    const OperandSpec &q = check.input(0, "q", 3, 1), &k = check.input(1, "k", 3, 1),
                      &v = check.input(2, "v", 3, 1);
    const OperandSpec* sinks = check.optional_input(3, "sinks", 1, 1);
    const OperandSpec& out = check.output(0, "out", 3, 1);
    q_heads_ = check.static_dim(q, "q", 1);
    kv_heads_ = check.static_dim(k, "k", 1);
    key_len_ = check.static_dim(q, "q", 2);
    value_len_ = check.static_dim(v, "v", 2);
    check.that(q_heads_ % kv_heads_ == 0, "query heads in whole groups of key heads",
               shape_text(q.shape) + " and " + shape_text(k.shape));
    check.shape(k, "k", {q.shape[0], fixed(kv_heads_), fixed(key_len_)});
    check.shape(v, "v", {q.shape[0], fixed(kv_heads_), fixed(value_len_)});
    check.shape(out, "out", {q.shape[0], fixed(q_heads_), fixed(value_len_)});
    if (sinks) check.shape(*sinks, "sinks", {fixed(q_heads_)});
    scale_ = static_cast<float>(check.finite("scale"));
    softcap_ = static_cast<float>(check.finite("softcap"));
    check.that(softcap_ >= 0, "'softcap' of at least 0", std::to_string(softcap_));
    causal_ = spec.attrs.boolean("causal");
    window_ = check.integer("window", 0, INT32_MAX);
    chunk_ = check.integer("chunk", 0, INT32_MAX);
    const StateSpec& state = spec.states[0];
    using Shape = std::vector<int64_t>;
    check.that(state.kind == StateSpec::Kind::kPaged && state.components.size() == 2 &&
                   state.components[0].shape == Shape{kv_heads_, key_len_} &&
                   state.components[1].shape == Shape{kv_heads_, value_len_},
               "a paged state of k [" + std::to_string(kv_heads_) + ", " + std::to_string(key_len_) +
                   "] and v [" + std::to_string(kv_heads_) + ", " + std::to_string(value_len_) + "]",
               "state '" + state.name + "'");
    check.that(state.group >= 0 && state.page_size > 0, "a state with a page group",
               "state '" + state.name + "' without one");
    page_size_ = state.page_size;
    page_group_ = state.group;
    group_ = q_heads_ / kv_heads_;
    heads_per_tile_ = std::min<int64_t>(group_, kAttendRows);
    head_tiles_ = (group_ + heads_per_tile_ - 1) / heads_per_tile_;
    name_ = std::string("attention.") + isa_name(isa);
    const int64_t keys = std::max<int64_t>(spec.max_seq_len, 1);
    max_pieces_ = std::min<int64_t>(kMaxPieces, (keys + kMinPiece - 1) / kMinPiece);
    scratch_bytes_ =
        round_up(4 * (kAttendRows * (key_len_ + kKeyBlock + value_len_) + kKeyBlock * key_len_), 64);
    partial_bytes_ = round_up(4 * max_seqs_ * max_pieces_ * q_heads_ * partial_len(), 64);
    starts_bytes_ = round_up(8 * (max_seqs_ + 1), 64);
  }

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override {
    return starts_bytes_ + partial_bytes_ + threads_ * scratch_bytes_;
  }

  void run(const KernelCall& call) const override {
    append(call);
    const StepBatch& batch = *call.batch;
    // starts[i]: first task of sequence i. Long tiles of prefills come first, so that no thread is left with
    // one at the end.
    int64_t* starts = reinterpret_cast<int64_t*>(call.workspace);
    int64_t tasks = 0, work = 0;
    for (int64_t i = batch.num_seqs; i-- > 0;) {
      starts[i] = tasks;
      const SequenceSplit s = split_of(batch, i);
      work += (batch.query_start[i + 1] - batch.query_start[i]) * batch.kv_len[i] * q_heads_ *
              (key_len_ + value_len_);
      tasks += s.tiles * s.pieces * kv_heads_ * head_tiles_;
    }
    call.pool->parallel_for(
        tasks, work < kWorthSharing ? tasks : 1, [&](int64_t task, int64_t end, int thread) {
          for (; task < end; ++task) {
            // The lowest sequence that starts at or before the task; those above it with the same start have
            // no tasks.
            const int64_t seq =
                std::partition_point(starts, starts + batch.num_seqs, [&](int64_t s) { return s > task; }) -
                starts;
            run_task(call, seq, task - starts[seq], thread);
          }
        });
    merge_pieces(call);
  }

 private:
  // Of a partial result: max, sum, value.
  int64_t partial_len() const { return 2 + value_len_; }
  float* partial(const KernelCall& call, int64_t seq, int64_t head, int64_t piece) const {
    float* partials = reinterpret_cast<float*>(call.workspace + starts_bytes_);
    return partials + ((seq * q_heads_ + head) * max_pieces_ + piece) * partial_len();
  }

  int64_t first_key(int64_t query) const {
    int64_t first = window_ > 0 ? std::max<int64_t>(query - window_ + 1, 0) : 0;
    if (chunk_ > 0) first = std::max(first, query / chunk_ * chunk_);
    return first;
  }
  int64_t end_key(int64_t query, int64_t kv_len) const {
    int64_t end = causal_ ? query + 1 : kv_len;
    if (chunk_ > 0) end = std::min(end, (query / chunk_ + 1) * chunk_);
    return end;
  }

  SequenceSplit split_of(const StepBatch& batch, int64_t seq) const {
    const int64_t tokens = batch.query_start[seq + 1] - batch.query_start[seq], kv_len = batch.kv_len[seq];
    if (tokens <= 0) return SequenceSplit{1, 0, 0, 1};
    return choose_split(tokens, first_key(kv_len - tokens), kv_len, heads_per_tile_);
  }

  KeyValuePages pages_of(const KernelCall& call, int64_t seq, int64_t kv_head) const {
    const StateMemory& memory = *call.states[0];
    const StepBatch::PageTable& table = call.batch->page_tables[static_cast<size_t>(page_group_)];
    KeyValuePages kv;
    kv.pages = table.pages.data() + seq * table.max_pages;
    kv.page_size = page_size_;
    kv.k = memory.data[0] + kv_head * page_size_ * key_len_ * 4;
    kv.v = memory.data[1] + kv_head * page_size_ * value_len_ * 4;
    kv.k_bytes = memory.bytes[0];
    kv.v_bytes = memory.bytes[1];
    kv.key_len = key_len_;
    kv.value_len = value_len_;
    return kv;
  }

  void append(const KernelCall& call) const {
    const StepBatch& batch = *call.batch;
    const TensorView &k = call.in[1], &v = call.in[2];
    call.pool->parallel_for(batch.num_tokens, 32, [&](int64_t begin, int64_t end, int) {
      int64_t seq =
          std::upper_bound(batch.query_start.begin(), batch.query_start.begin() + batch.num_seqs, begin) -
          batch.query_start.begin() - 1;
      for (int64_t token = begin; token < end; ++token) {
        while (token >= batch.query_start[seq + 1]) ++seq;
        const int64_t at = batch.kv_len[seq] - (batch.query_start[seq + 1] - token);
        for (int64_t head = 0; head < kv_heads_; ++head) {
          const KeyValuePages kv = pages_of(call, seq, head);
          append_key(kv, at, k.as<const float>() + token * k.stride[0] + head * k.stride[1]);
          std::memcpy(kv.value(at), v.as<const float>() + token * v.stride[0] + head * v.stride[1],
                      static_cast<size_t>(value_len_) * sizeof(float));
        }
      }
    });
  }

  void append_key(const KeyValuePages& kv, int64_t at, const float* key) const {
    const int64_t slot = at % page_size_;
    float* page = kv.key_page(at);
    if (!kv.in_panels()) {
      std::memcpy(page + slot * key_len_, key, static_cast<size_t>(key_len_) * sizeof(float));
      return;
    }
    float* lane = page + slot / kKeyPanel * key_len_ * kKeyPanel + slot % kKeyPanel;
    for (int64_t c = 0; c < key_len_; ++c) lane[c * kKeyPanel] = key[c];
  }

  void run_task(const KernelCall& call, int64_t seq, int64_t task, int thread) const {
    const StepBatch& batch = *call.batch;
    const SequenceSplit split = split_of(batch, seq);
    const int64_t start = batch.query_start[seq], tokens = batch.query_start[seq + 1] - start,
                  past = batch.kv_len[seq] - tokens;
    const int64_t piece = task % split.pieces, head_tile = task / split.pieces % head_tiles_;
    const int64_t kv_head = task / split.pieces / head_tiles_ % kv_heads_;
    const int64_t tile = split.tiles - 1 - task / split.pieces / head_tiles_ / kv_heads_;
    const int64_t first_token = tile * split.tokens_per_tile,
                  num_tokens = std::min(split.tokens_per_tile, tokens - first_token);
    const int64_t first_head = kv_head * group_ + head_tile * heads_per_tile_;
    const int64_t num_heads = std::min(heads_per_tile_, (kv_head + 1) * group_ - first_head);

    float* q =
        reinterpret_cast<float*>(call.workspace + starts_bytes_ + partial_bytes_ + thread * scratch_bytes_);
    AttendTile t;
    t.rows = static_cast<int>(num_tokens * num_heads);
    t.q = q;
    t.scores = q + kAttendRows * key_len_;
    t.o = t.scores + kAttendRows * kKeyBlock;
    t.panels = t.o + kAttendRows * value_len_;
    t.softcap = softcap_;
    t.key_begin = std::numeric_limits<int64_t>::max();
    const TensorView& in = call.in[0];
    for (int64_t i = 0, row = 0; i < num_tokens; ++i) {
      const int64_t query = past + first_token + i;
      const int64_t low = first_key(query), high = end_key(query, batch.kv_len[seq]);
      t.key_begin = std::min(t.key_begin, low);
      t.key_end = std::max(t.key_end, high);
      for (int64_t h = 0; h < num_heads; ++h, ++row) {
        t.low[row] = low;
        t.high[row] = high;
        const float* from =
            in.as<const float>() + (start + first_token + i) * in.stride[0] + (first_head + h) * in.stride[1];
        for (int64_t c = 0; c < key_len_; ++c) q[row * key_len_ + c] = from[c] * scale_;
      }
    }
    if (split.pieces > 1) {
      const int64_t origin = t.key_begin / kKeyBlock * kKeyBlock;
      t.key_begin = std::max(t.key_begin, origin + piece * split.piece);
      t.key_end = std::min(t.key_end, origin + (piece + 1) * split.piece);
    }
    kernels_.attend(pages_of(call, seq, kv_head), t);
    for (int64_t i = 0, row = 0; i < num_tokens; ++i) {
      for (int64_t h = 0; h < num_heads; ++h, ++row) {
        if (split.pieces > 1) {
          float* to = partial(call, seq, first_head + h, piece);
          to[0] = t.max[row];
          to[1] = t.sum[row];
          std::memcpy(to + 2, t.o + row * value_len_, static_cast<size_t>(value_len_) * sizeof(float));
        } else {
          finish(call, start + first_token + i, first_head + h, 1, t.max + row, t.sum + row,
                 t.o + row * value_len_);
        }
      }
    }
  }

  void finish(const KernelCall& call, int64_t token, int64_t head, int64_t pieces, const float* max,
              const float* sum, const float* o) const {
    const TensorView &out = call.out[0], &sinks = call.in[3];
    MergeRow row;
    row.pieces = pieces;
    row.value_len = value_len_;
    row.max = max;
    row.sum = sum;
    row.o = o;
    row.max_stride = row.o_stride = partial_len();
    row.sink = sinks ? sinks.as<const float>() + head * sinks.stride[0] : nullptr;
    row.out = out.as<float>() + token * out.stride[0] + head * out.stride[1];
    kernels_.merge(row);
  }

  void merge_pieces(const KernelCall& call) const {
    const StepBatch& batch = *call.batch;
    bool any = false;
    for (int64_t seq = 0; seq < batch.num_seqs && !any; ++seq) any = split_of(batch, seq).pieces > 1;
    if (!any) return;
    const int64_t rows = batch.num_seqs * q_heads_;
    call.pool->parallel_for(
        rows, std::max<int64_t>(16384 / (max_pieces_ * value_len_), 1), [&](int64_t begin, int64_t end, int) {
          for (int64_t i = begin; i < end; ++i) {
            const int64_t seq = i / q_heads_, head = i % q_heads_, pieces = split_of(batch, seq).pieces;
            if (pieces <= 1) continue;
            const float* p = partial(call, seq, head, 0);
            finish(call, batch.query_start[seq], head, pieces, p, p + 1, p + 2);
          }
        });
  }

  AttentionKernels kernels_;
  int64_t max_seqs_, threads_;
  int64_t q_heads_ = 0, kv_heads_ = 0, key_len_ = 0, value_len_ = 0, group_ = 0;
  int64_t page_size_ = 0, window_ = 0, chunk_ = 0, heads_per_tile_ = 0, head_tiles_ = 0;
  int32_t page_group_ = 0;
  float scale_ = 0, softcap_ = 0;
  bool causal_ = true;
  int64_t max_pieces_ = 1, scratch_bytes_ = 0, partial_bytes_ = 0, starts_bytes_ = 0;
  std::string name_;
};

std::unique_ptr<Kernel> make_attention(const KernelSpec& spec, std::string* why, Isa isa) {
  if (!require_isa(isa, why) || !serves_float32(spec, {0, 1, 2, 3}, why)) return nullptr;
  for (const StateSpec& s : spec.states) {
    for (const StateComponentSpec& c : s.components) {
      if (c.dtype == DType::kF32) continue;
      if (why) *why = "serves float32 caches only, found " + std::string(dtype_name(c.dtype));
      return nullptr;
    }
  }
  return std::make_unique<Attention>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(attention)

}  // namespace autodeploy
