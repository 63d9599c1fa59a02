#include "runtime/over_keys.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/generic/strided.h"
#include "runtime/block.h"
#include "runtime/body_inputs.h"

namespace autodeploy {
namespace {

constexpr int64_t kPreferredBytes = int64_t{32} << 20;  // of a body's values

class OverKeys final : public Kernel {
 public:
  OverKeys(const ChoiceContext& context, const InstructionSpec& ins, KernelChoice* choice)
      : body_(context.program.bodies[static_cast<size_t>(ins.body)]),
        max_blocks_(max_key_blocks(body_, context.options.max_seq_len)) {
    ExecutorOptions inner = context.options;
    inner.max_seqs = 1;
    inner.max_rows = max_blocks_;
    inner.max_tokens = tile_ = choose_tile(
        body_, max_blocks_, std::min(context.options.max_tokens, kMaxTileQueries), kPreferredBytes);
    bind_weights(context, ins);
    const ChoiceContext bound{body_.program, context.regions, weights_, {}, inner, &body_};
    block_.bind(body_.program, choose_kernels(bound), weights_, {}, inner);
    layout_ = lay_out_body(body_, ins, block_.memory_bytes(), max_blocks_, tile_);
    if (!ins.states.empty()) {
      const StateSpec& state = context.states[static_cast<size_t>(ins.states[0])];
      group_ = state.group;
      page_size_ = state.page_size;
    }
    choice->tile = tile_;
    choice->body_arena = block_.plan().arena_bytes;
    choice->body_keys = layout_.key_bytes;
    choice->body = block_.choices();
    for (KernelChoice& c : choice->body) c.part = false;
  }

  const char* name() const override { return "over_keys"; }
  int64_t workspace_bytes() const override { return layout_.workspace_bytes; }

  void run(const KernelCall& call) const override {
    if (call.workspace != attached_) {
      attached_ = call.workspace;
      block_.attach(call.workspace);
    }
    for (size_t i = 0; i < layout_.inputs.size(); ++i) {
      const BodyInput& input = layout_.inputs[i];
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
  uint8_t* page_row(const KernelCall& call, int64_t seq, const BodyInput& input, int64_t token) const {
    const StepBatch::PageTable& table = call.batch->page_tables[static_cast<size_t>(group_)];
    const int64_t page = table.pages[static_cast<size_t>(seq * table.max_pages + token / page_size_)];
    const StateMemory& memory = *call.states[0];
    return memory.data[input.component] + page * memory.bytes[input.component] +
           token % page_size_ * input.token_bytes;
  }

  // Puts the step's rows of the keys into the pages.
  void append(const KernelCall& call, int64_t seq, int64_t first, int64_t end, int64_t past) const {
    for (size_t i = 0; i < layout_.inputs.size(); ++i) {
      const BodyInput& input = layout_.inputs[i];
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
    for (const BodyInput& input : layout_.inputs) {
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
    for (size_t i = 0; i < layout_.inputs.size(); ++i) {
      const BodyInput& input = layout_.inputs[i];
      if (input.role != Role::kQuery) continue;
      const TensorView from = token_rows(call.in[i], num_tokens, begin, end);
      if (input.buffer >= 0) copy_strided(dense_view(from, call.workspace + input.buffer), from, *call.pool);
      block_.set_input(i, input.buffer >= 0 ? call.workspace + input.buffer : from.data);
    }
    block_.run(*call.batch, tile, blocks, nullptr);
    for (size_t o = 0; o < layout_.output_bytes.size(); ++o) {
      if (layout_.output_bytes[o] == 0) continue;
      const TensorView made = block_.value_view(body_.outputs[o]);
      std::memcpy(call.out[o].as<uint8_t>() + begin * layout_.output_bytes[o], made.data,
                  static_cast<size_t>(tile * layout_.output_bytes[o]));
    }
  }

  const BodySpec& body_;
  const int64_t max_blocks_;
  int64_t tile_ = 1;
  std::vector<ParamBinding> weights_;  // one per param of the body
  BodyLayout layout_;
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
