#include "runtime/cuda/over_keys_device.h"

#include <algorithm>
#include <vector>

#include "core/error.h"
#include "kernels/cuda/copy.h"
#include "kernels/cuda/over_keys.h"
#include "runtime/block.h"
#include "runtime/body_inputs.h"

namespace autodeploy::cuda {
namespace {

// Of a body's values: more than on the host, as large tiles keep a device busy.
constexpr int64_t kPreferredBytes = int64_t{128} << 20;

// Steps of single tokens that are recorded as a graph serve later steps with other lengths. There every
// sequence is given as many key blocks as the longest may have, with zeros behind its own keys: a body hides
// what a query may not see, so that the results are the same.
class OverKeysOnDevice final : public Kernel {
 public:
  OverKeysOnDevice(const ChoiceContext& context, const InstructionSpec& ins, KernelChoice* choice)
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
    if (!ins.states.empty()) group_ = context.states[static_cast<size_t>(ins.states[0])].group;
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
    const DeviceStep& step = *call.device;
    for (size_t i = 0; i < layout_.inputs.size(); ++i) {
      const BodyInput& input = layout_.inputs[i];
      uint8_t* buffer = call.workspace + input.buffer;
      if (input.role == Role::kKey) {
        block_.set_input(i, buffer);
        append_keys(stream_of(call), step, call.in[i], input.dense, pages_of_input(call, i));
      }
      if (input.role != Role::kFixed || !body_.inputs[i].read_as_value) continue;
      if (input.buffer >= 0) copy_strided(dense_view(call.in[i], buffer), call.in[i], stream_of(call));
      block_.set_input(i, input.buffer >= 0 ? buffer : call.in[i].data);
    }
    if (step.captured) {
      for (int64_t seq = 0; seq < step.num_seqs; ++seq) run_any_length(call, seq);
    } else {
      for (int64_t seq = 0; seq < call.batch->num_seqs; ++seq) run_sequence(call, seq);
    }
  }

 private:
  using Role = BodyInputSpec::Role;

  // The body's params are operands that it reads as weights.
  void bind_weights(const ChoiceContext& context, const InstructionSpec& ins) {
    weights_.resize(body_.program.params.size());
    for (size_t i = 0; i < ins.in.size(); ++i) {
      const int32_t p = body_.inputs[i].param;
      if (p >= 0) weights_[static_cast<size_t>(p)] = context.params[static_cast<size_t>(ins.in[i].index)];
    }
  }

  KeyPages pages_of_input(const KernelCall& call, size_t i) const {
    const BodyInput& input = layout_.inputs[i];
    const StateMemory& memory = *call.states[0];
    return {memory.data[input.component], memory.bytes[input.component], input.token_bytes,
            call.device->page_tables[group_]};
  }

  void gather(const KernelCall& call, const KeySpan& span) const {
    for (size_t i = 0; i < layout_.inputs.size(); ++i) {
      if (layout_.inputs[i].role != Role::kKey) continue;
      gather_keys(stream_of(call), pages_of_input(call, i), span, call.workspace + layout_.inputs[i].buffer);
    }
  }

  // Tiles end at multiples of their size in the sequence, as on the host.
  void run_sequence(const KernelCall& call, int64_t seq) const {
    const StepBatch& batch = *call.batch;
    const int64_t first = batch.query_start[static_cast<size_t>(seq)],
                  end = batch.query_start[static_cast<size_t>(seq) + 1],
                  past = batch.kv_len[static_cast<size_t>(seq)] - (end - first);
    int64_t gathered = 0;
    for (int64_t begin = first; begin < end;) {
      const int64_t position = past + begin - first;
      const int64_t stop = std::min(end, begin + tile_ - position % tile_), length = past + stop - first;
      const int64_t blocks = body_.num_blocks(length);
      gather(call, {seq, gathered, length, blocks * body_.block, nullptr});
      gathered = length;
      run_tile(call, begin, stop, blocks);
      begin = stop;
    }
  }

  // The one token of a sequence whose length is only known when the launches run.
  void run_any_length(const KernelCall& call, int64_t seq) const {
    const int64_t blocks = std::min(max_blocks_, body_.num_blocks(call.device->max_kv_len));
    gather(call, {seq, 0, 0, blocks * body_.block, call.device->kv_len});
    run_tile(call, seq, seq + 1, blocks);
  }

  void run_tile(const KernelCall& call, int64_t begin, int64_t end, int64_t blocks) const {
    const int64_t num_tokens = call.device->num_tokens, tile = end - begin;
    for (size_t i = 0; i < layout_.inputs.size(); ++i) {
      const BodyInput& input = layout_.inputs[i];
      if (input.role != Role::kQuery) continue;
      const TensorView from = token_rows(call.in[i], num_tokens, begin, end);
      uint8_t* buffer = call.workspace + input.buffer;
      if (input.buffer >= 0) copy_strided(dense_view(from, buffer), from, stream_of(call));
      block_.set_input(i, input.buffer >= 0 ? buffer : from.data);
    }
    // The ops of a body do not look at who is scheduled.
    DeviceStep step;
    step.stream = call.device->stream;
    step.num_tokens = tile, step.num_rows = blocks;
    step.captured = call.device->captured;
    block_.run(*call.batch, tile, blocks, nullptr, &step);
    for (size_t o = 0; o < layout_.output_bytes.size(); ++o) {
      if (layout_.output_bytes[o] == 0) continue;
      copy_strided(token_rows(call.out[o], num_tokens, begin, end), block_.value_view(body_.outputs[o]),
                   stream_of(call));
    }
  }

  const BodySpec& body_;
  const int64_t max_blocks_;
  int64_t tile_ = 1;
  std::vector<ParamBinding> weights_;  // one per param of the body
  BodyLayout layout_;
  int32_t group_ = 0;
  // Resolved anew for each tile; a kernel runs once at a time.
  mutable Block block_;
  mutable uint8_t* attached_ = nullptr;
};

}  // namespace

std::unique_ptr<Kernel> make_over_keys_on_device(const ChoiceContext& context,
                                                 const InstructionSpec& instruction, KernelChoice* choice) {
  auto kernel = std::make_unique<OverKeysOnDevice>(context, instruction, choice);
  choice->kernel = kernel->name();
  choice->workspace_bytes = kernel->workspace_bytes();
  return kernel;
}

}  // namespace autodeploy::cuda
