// attention: appends the step's keys and values to their pages, then softmax attention of each sequence over
// its own keys.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/attention_form.h"
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
      : form_(check_attention(spec)),
        kernels_(attention_kernels(isa)),
        max_seqs_(spec.max_seqs),
        threads_(spec.num_threads) {
    heads_per_tile_ = std::min<int64_t>(form_.group, kAttendRows);
    head_tiles_ = (form_.group + heads_per_tile_ - 1) / heads_per_tile_;
    name_ = std::string("attention.") + isa_name(isa);
    const int64_t keys = std::max<int64_t>(spec.max_seq_len, 1);
    max_pieces_ = std::min<int64_t>(kMaxPieces, (keys + kMinPiece - 1) / kMinPiece);
    scratch_bytes_ = round_up(
        4 * (kAttendRows * (form_.key_len + kKeyBlock + form_.value_len) + kKeyBlock * form_.key_len), 64);
    partial_bytes_ = round_up(4 * max_seqs_ * max_pieces_ * form_.q_heads * partial_len(), 64);
    starts_bytes_ = round_up(8 * (max_seqs_ + 1), 64);
  }

  const char* name() const override { return name_.c_str(); }
  int64_t workspace_bytes() const override {
    return starts_bytes_ + partial_bytes_ + threads_ * scratch_bytes_;
  }

  void run(const KernelCall& call) const override {
    if (form_.appends) append_keys(form_, call);
    const StepBatch& batch = *call.batch;
    // starts[i]: first task of sequence i. Long tiles of prefills come first, so that no thread is left with
    // one at the end.
    int64_t* starts = reinterpret_cast<int64_t*>(call.workspace);
    int64_t tasks = 0, work = 0;
    for (int64_t i = batch.num_seqs; i-- > 0;) {
      starts[i] = tasks;
      const SequenceSplit s = split_of(batch, i);
      work += (batch.query_start[i + 1] - batch.query_start[i]) * batch.kv_len[i] * form_.q_heads *
              (form_.key_len + form_.value_len);
      tasks += s.tiles * s.pieces * form_.kv_heads * head_tiles_;
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
  int64_t partial_len() const { return 2 + form_.value_len; }
  float* partial(const KernelCall& call, int64_t seq, int64_t head, int64_t piece) const {
    float* partials = reinterpret_cast<float*>(call.workspace + starts_bytes_);
    return partials + ((seq * form_.q_heads + head) * max_pieces_ + piece) * partial_len();
  }

  SequenceSplit split_of(const StepBatch& batch, int64_t seq) const {
    const int64_t tokens = batch.query_start[seq + 1] - batch.query_start[seq], kv_len = batch.kv_len[seq];
    if (tokens <= 0) return SequenceSplit{1, 0, 0, 1};
    return choose_split(tokens, form_.first_key(kv_len - tokens), kv_len, heads_per_tile_);
  }

  void run_task(const KernelCall& call, int64_t seq, int64_t task, int thread) const {
    const StepBatch& batch = *call.batch;
    const SequenceSplit split = split_of(batch, seq);
    const int64_t start = batch.query_start[seq], tokens = batch.query_start[seq + 1] - start,
                  past = batch.kv_len[seq] - tokens;
    const int64_t piece = task % split.pieces, head_tile = task / split.pieces % head_tiles_;
    const int64_t kv_head = task / split.pieces / head_tiles_ % form_.kv_heads;
    const int64_t tile = split.tiles - 1 - task / split.pieces / head_tiles_ / form_.kv_heads;
    const int64_t first_token = tile * split.tokens_per_tile,
                  num_tokens = std::min(split.tokens_per_tile, tokens - first_token);
    const int64_t first_head = kv_head * form_.group + head_tile * heads_per_tile_;
    const int64_t num_heads = std::min(heads_per_tile_, (kv_head + 1) * form_.group - first_head);

    float* q =
        reinterpret_cast<float*>(call.workspace + starts_bytes_ + partial_bytes_ + thread * scratch_bytes_);
    AttendTile t;
    t.rows = static_cast<int>(num_tokens * num_heads);
    t.q = q;
    t.scores = q + kAttendRows * form_.key_len;
    t.o = t.scores + kAttendRows * kKeyBlock;
    t.panels = t.o + kAttendRows * form_.value_len;
    t.softcap = form_.softcap;
    t.biased = form_.biased();
    t.reach = form_.reach;
    t.key_begin = std::numeric_limits<int64_t>::max();
    const TensorView& in = call.in[0];
    for (int64_t i = 0, row = 0; i < num_tokens; ++i) {
      const int64_t query = past + first_token + i;
      const int64_t low = form_.first_key(query), high = form_.end_key(query, batch.kv_len[seq]);
      t.key_begin = std::min(t.key_begin, low);
      t.key_end = std::max(t.key_end, high);
      for (int64_t h = 0; h < num_heads; ++h, ++row) {
        t.low[row] = low;
        t.high[row] = high;
        if (t.biased) {
          t.query[row] = query;
          t.slope[row] = form_.slope(call, first_head + h);
          t.table[row] = form_.table(call, start + first_token + i, first_head + h);
        }
        const float* from =
            in.as<const float>() + (start + first_token + i) * in.stride[0] + (first_head + h) * in.stride[1];
        for (int64_t c = 0; c < form_.key_len; ++c) q[row * form_.key_len + c] = from[c] * form_.scale;
      }
    }
    if (split.pieces > 1) {
      const int64_t origin = t.key_begin / kKeyBlock * kKeyBlock;
      t.key_begin = std::max(t.key_begin, origin + piece * split.piece);
      t.key_end = std::min(t.key_end, origin + (piece + 1) * split.piece);
    }
    kernels_.attend(pages_of(form_, call, seq, kv_head), t);
    for (int64_t i = 0, row = 0; i < num_tokens; ++i) {
      for (int64_t h = 0; h < num_heads; ++h, ++row) {
        if (split.pieces > 1) {
          float* to = partial(call, seq, first_head + h, piece);
          to[0] = t.max[row];
          to[1] = t.sum[row];
          std::memcpy(to + 2, t.o + row * form_.value_len,
                      static_cast<size_t>(form_.value_len) * sizeof(float));
        } else {
          finish(call, start + first_token + i, first_head + h, 1, t.max + row, t.sum + row,
                 t.o + row * form_.value_len);
        }
      }
    }
  }

  void finish(const KernelCall& call, int64_t token, int64_t head, int64_t pieces, const float* max,
              const float* sum, const float* o) const {
    const TensorView& out = call.out[0];
    MergeRow row;
    row.pieces = pieces;
    row.value_len = form_.value_len;
    row.max = max;
    row.sum = sum;
    row.o = o;
    row.max_stride = row.o_stride = partial_len();
    row.sink = form_.sink(call, token, head);
    row.out = out.as<float>() + token * out.stride[0] + head * out.stride[1];
    kernels_.merge(row);
  }

  void merge_pieces(const KernelCall& call) const {
    const StepBatch& batch = *call.batch;
    bool any = false;
    for (int64_t seq = 0; seq < batch.num_seqs && !any; ++seq) any = split_of(batch, seq).pieces > 1;
    if (!any) return;
    const int64_t rows = batch.num_seqs * form_.q_heads;
    call.pool->parallel_for(rows, std::max<int64_t>(16384 / (max_pieces_ * form_.value_len), 1),
                            [&](int64_t begin, int64_t end, int) {
                              for (int64_t i = begin; i < end; ++i) {
                                const int64_t seq = i / form_.q_heads, head = i % form_.q_heads,
                                              pieces = split_of(batch, seq).pieces;
                                if (pieces <= 1) continue;
                                const float* p = partial(call, seq, head, 0);
                                finish(call, batch.query_start[seq], head, pieces, p, p + 1, p + 2);
                              }
                            });
  }

  AttentionForm form_;
  AttentionKernels kernels_;
  int64_t max_seqs_, threads_;
  int64_t heads_per_tile_ = 0, head_tiles_ = 0;
  int64_t max_pieces_ = 1, scratch_bytes_ = 0, partial_bytes_ = 0, starts_bytes_ = 0;
  std::string name_;
};

std::unique_ptr<Kernel> make_attention(const KernelSpec& spec, std::string* why, Isa isa) {
  if (!require_isa(isa, why) || !serves_float32_attention(spec, why)) return nullptr;
  if (spec.in.size() > kListedKeys && spec.in[kListedKeys].present) {
    if (why) *why = "reads keys in order, found lists of keys";
    return nullptr;
  }
  return std::make_unique<Attention>(spec, isa);
}

}  // namespace

AD_CPU_FACTORIES(attention)

}  // namespace autodeploy
