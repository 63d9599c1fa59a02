#include "runtime/over_keys.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/generic/strided.h"
#include "runtime/block.h"

namespace autodeploy {
namespace {

constexpr int64_t kPreferredBytes = int64_t{32} << 20;  // of a body's values

int64_t round_up(int64_t n) { return (n + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// Whether one token's elements of an operand, and those of its neighbours, lie row-major without gaps.
bool is_dense(const OperandRef& o) {
  const std::vector<Dim> dense = contiguous_strides(o.shape);
  for (size_t i = 0; i < o.shape.size(); ++i) {
    if (!(o.shape[i] == Dim{1}) && !(o.stride[i] == dense[i])) return false;
  }
  return true;
}

// The rows of tokens [begin, end) of an operand [c*T, ...].
TensorView token_rows(const TensorView& x, int64_t num_tokens, int64_t begin, int64_t end) {
  TensorView rows = x;
  const int64_t each = x.shape[0] / num_tokens;
  rows.shape[0] = (end - begin) * each;
  rows.data = x.as<uint8_t>() + begin * each * x.stride[0] * dtype_size(x.dtype);
  return rows;
}

// The same elements, row-major at `data`.
TensorView dense_view(TensorView x, void* data) {
  int64_t stride = 1;
  for (int d = x.ndim; d-- > 0;) {
    x.stride[static_cast<size_t>(d)] = stride;
    stride *= x.shape[static_cast<size_t>(d)];
  }
  x.data = data;
  return x;
}

class OverKeys final : public Kernel {
 public:
  OverKeys(const ChoiceContext& context, const InstructionSpec& ins, KernelChoice* choice)
      : body_(context.program.bodies[static_cast<size_t>(ins.body)]),
        max_blocks_(body_.num_blocks(context.options.max_seq_len)) {
    AD_CHECK(max_blocks_ <= kMaxProgramTokens, ErrorKind::kUnsupported, "[over_keys] expected at most ",
             kMaxProgramTokens, " blocks of keys in a sequence, found ", max_blocks_, ": lower max_seq_len");
    ExecutorOptions inner = context.options;
    inner.max_seqs = 1;
    inner.max_rows = max_blocks_;
    inner.max_tokens = tile_ = choose_tile(std::min(context.options.max_tokens, kMaxTileQueries));
    bind_weights(context, ins);
    const ChoiceContext bound{body_.program, context.regions, weights_, {}, inner, &body_};
    block_.bind(body_.program, choose_kernels(bound), weights_, {}, inner);
    lay_out(ins);
    if (!ins.states.empty()) {
      const StateSpec& state = context.states[static_cast<size_t>(ins.states[0])];
      group_ = state.group;
      page_size_ = state.page_size;
    }
    choice->tile = tile_;
    choice->body_arena = block_.plan().arena_bytes;
    choice->body_keys = key_bytes_;
    choice->body = block_.choices();
    for (KernelChoice& c : choice->body) c.part = false;
  }

  const char* name() const override { return "over_keys"; }
  int64_t workspace_bytes() const override { return workspace_bytes_; }

  void run(const KernelCall& call) const override {
    if (call.workspace != attached_) {
      attached_ = call.workspace;
      block_.attach(call.workspace);
    }
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Input& input = inputs_[i];
      if (input.role == Role::kKey) block_.set_input(i, call.workspace + input.buffer);
      if (input.role != Role::kFixed || !body_.inputs[i].read_as_value) continue;
      if (input.buffer >= 0)
        copy_strided(dense_view(call.in[i], call.workspace + input.buffer), call.in[i], *call.pool);
      block_.set_input(i, input.buffer >= 0 ? call.workspace + input.buffer : call.in[i].data);
    }
    for (int64_t seq = 0; seq < call.batch->num_seqs; ++seq) run_sequence(call, seq);
  }

 private:
  using Role = BodyInputSpec::Role;

  struct Input {
    Role role = Role::kFixed;
    int64_t token_bytes = 0;
    int64_t buffer =
        -1;  // in the workspace: all keys, or a dense copy of the tile's queries or a fixed operand
    bool dense = false;
    size_t component = 0;  // of the state
  };

  // The largest tile that keeps the body's values within what is preferred.
  int64_t choose_tile(int64_t most) const {
    std::vector<const InstructionSpec*> instructions;
    for (const InstructionSpec& i : body_.program.instructions) instructions.push_back(&i);
    int64_t tile = kMaxTileQueries;
    for (; tile > 1; tile /= 2) {
      if (tile > most && tile / 2 >= most) continue;
      const auto lives = find_lifetimes(body_.program, instructions, tile, max_blocks_);
      if (plan_arena(lives).arena_bytes <= kPreferredBytes) break;
    }
    return std::min(tile, most);
  }

  // The body's params are operands that it reads as weights.
  void bind_weights(const ChoiceContext& context, const InstructionSpec& ins) {
    weights_.resize(body_.program.params.size());
    for (size_t i = 0; i < ins.in.size(); ++i) {
      const int32_t p = body_.inputs[i].param;
      if (p < 0) continue;
      const ParamBinding& outer = context.params[static_cast<size_t>(ins.in[i].index)];
      AD_CHECK(outer.packed, ErrorKind::kInvalidArgument, "[over_keys] expected operand ", i,
               " in packed form, found none");
      weights_[static_cast<size_t>(p)] = {nullptr, outer.packed, 0};
    }
  }

  // The workspace: what the block needs, then a buffer for each input that does not come dense.
  void lay_out(const InstructionSpec& ins) {
    workspace_bytes_ = round_up(block_.memory_bytes());
    const auto take = [&](int64_t bytes) {
      AD_CHECK(bytes <= kMaxArenaBytes, ErrorKind::kOutOfMemory, "[over_keys] expected inputs of at most ",
               kMaxArenaBytes, " bytes, found ", bytes, ": lower max_seq_len");
      const int64_t at = workspace_bytes_;
      workspace_bytes_ += round_up(bytes);
      return at;
    };
    size_t component = 0;
    for (size_t i = 0; i < body_.inputs.size(); ++i) {
      const BodyInputSpec& spec = body_.inputs[i];
      Input input{spec.role, spec.token_numel * dtype_size(spec.dtype), -1, is_dense(ins.in[i]), 0};
      if (spec.role == Role::kKey) {
        input.component = component++;
        const int64_t before = workspace_bytes_;
        input.buffer = take(max_blocks_ * body_.block * input.token_bytes);
        key_bytes_ += workspace_bytes_ - before;
      } else if (!input.dense) {
        input.buffer = take(input.token_bytes * (spec.role == Role::kQuery ? tile_ : 1));
      }
      inputs_.push_back(input);
    }
    for (int32_t v : body_.outputs) {
      const ValueSpec& value = body_.program.values[static_cast<size_t>(v)];
      output_bytes_.push_back(value.numel.t * dtype_size(value.dtype));
    }
  }

  void run_sequence(const KernelCall& call, int64_t seq) const {
    const StepBatch& batch = *call.batch;
    const int64_t first = batch.query_start[static_cast<size_t>(seq)],
                  end = batch.query_start[static_cast<size_t>(seq) + 1],
                  past = batch.kv_len[static_cast<size_t>(seq)] - (end - first);
    append(call, seq, first, end, past);
    // Tiles end at multiples of their size in the sequence, so that most cuts of a prefill change nothing.
    int64_t gathered = 0;
    for (int64_t begin = first; begin < end;) {
      const int64_t position = past + begin - first;
      const int64_t stop = std::min(end, begin + tile_ - position % tile_), length = past + stop - first;
      gather(call, seq, gathered, length);
      gathered = length;
      run_tile(call, begin, stop, body_.num_blocks(length));
      begin = stop;
    }
  }

  // The address of a token's row in the pages of a sequence.
  uint8_t* page_row(const KernelCall& call, int64_t seq, const Input& input, int64_t token) const {
    const StepBatch::PageTable& table = call.batch->page_tables[static_cast<size_t>(group_)];
    const int64_t page = table.pages[static_cast<size_t>(seq * table.max_pages + token / page_size_)];
    const StateMemory& memory = *call.states[0];
    return memory.data[input.component] + page * memory.bytes[input.component] +
           token % page_size_ * input.token_bytes;
  }

  // Puts the step's rows of the keys into the pages.
  void append(const KernelCall& call, int64_t seq, int64_t first, int64_t end, int64_t past) const {
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Input& input = inputs_[i];
      if (input.role != Role::kKey) continue;
      for (int64_t t = first; t < end; ++t) {
        uint8_t* row = page_row(call, seq, input, past + t - first);
        const TensorView from = token_rows(call.in[i], call.batch->num_tokens, t, t + 1);
        if (input.dense)
          std::memcpy(row, from.data, static_cast<size_t>(input.token_bytes));
        else
          copy_strided(dense_view(from, row), from, *call.pool);
      }
    }
  }

  // Brings the keys [from, to) from the pages, and zeros behind them up to the end of the last block.
  void gather(const KernelCall& call, int64_t seq, int64_t from, int64_t to) const {
    const int64_t rows = body_.num_blocks(to) * body_.block;
    for (const Input& input : inputs_) {
      if (input.role != Role::kKey) continue;
      uint8_t* keys = call.workspace + input.buffer;
      const int64_t first_page = from / page_size_, num_pages = (to - 1) / page_size_ - first_page + 1;
      const int64_t grain = 1 + 32768 / (page_size_ * input.token_bytes);
      call.pool->parallel_for(num_pages, grain, [&](int64_t begin, int64_t end, int) {
        for (int64_t page = first_page + begin; page < first_page + end; ++page) {
          const int64_t a = std::max(from, page * page_size_), b = std::min(to, (page + 1) * page_size_);
          std::memcpy(keys + a * input.token_bytes, page_row(call, seq, input, a),
                      static_cast<size_t>((b - a) * input.token_bytes));
        }
      });
      std::memset(keys + to * input.token_bytes, 0, static_cast<size_t>((rows - to) * input.token_bytes));
    }
  }

  void run_tile(const KernelCall& call, int64_t begin, int64_t end, int64_t blocks) const {
    const int64_t num_tokens = call.batch->num_tokens, tile = end - begin;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Input& input = inputs_[i];
      if (input.role != Role::kQuery) continue;
      const TensorView from = token_rows(call.in[i], num_tokens, begin, end);
      if (input.buffer >= 0) copy_strided(dense_view(from, call.workspace + input.buffer), from, *call.pool);
      block_.set_input(i, input.buffer >= 0 ? call.workspace + input.buffer : from.data);
    }
    block_.run(*call.batch, tile, blocks, nullptr);
    for (size_t o = 0; o < output_bytes_.size(); ++o) {
      if (output_bytes_[o] == 0) continue;
      const TensorView made = block_.value_view(body_.outputs[o]);
      std::memcpy(call.out[o].as<uint8_t>() + begin * output_bytes_[o], made.data,
                  static_cast<size_t>(tile * output_bytes_[o]));
    }
  }

  const BodySpec& body_;
  const int64_t max_blocks_;
  int64_t tile_ = 1;
  std::vector<ParamBinding> weights_;  // one per param of the body
  std::vector<Input> inputs_;
  std::vector<int64_t> output_bytes_;  // per token
  int64_t workspace_bytes_ = 0, key_bytes_ = 0;
  int32_t group_ = -1;
  int64_t page_size_ = 1;
  // Resolved anew for each tile; a kernel runs once at a time.
  mutable Block block_;
  mutable uint8_t* attached_ = nullptr;
};

}  // namespace

std::unique_ptr<Kernel> make_over_keys(const ChoiceContext& context, const InstructionSpec& instruction,
                                       KernelChoice* choice) {
  auto kernel = std::make_unique<OverKeys>(context, instruction, choice);
  choice->kernel = kernel->name();
  choice->workspace_bytes = kernel->workspace_bytes();
  return kernel;
}

}  // namespace autodeploy
