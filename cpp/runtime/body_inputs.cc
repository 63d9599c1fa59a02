#include "runtime/body_inputs.h"

#include <algorithm>

#include "core/error.h"
#include "runtime/block.h"

namespace autodeploy {
namespace {

int64_t round_up(int64_t n) { return (n + kArenaAlignment - 1) / kArenaAlignment * kArenaAlignment; }

// Whether one token's elements of an operand, and those of its neighbours, lie row-major without gaps.
bool is_dense(const OperandRef& o) {
  const std::vector<Dim> dense = contiguous_strides(o.shape);
  for (size_t i = 0; i < o.shape.size(); ++i) {
    if (!(o.shape[i] == Dim{1}) && !(o.stride[i] == dense[i])) return false;
  }
  return true;
}

}  // namespace

BodyLayout lay_out_body(const BodySpec& body, const InstructionSpec& instruction, int64_t block_bytes,
                        int64_t max_blocks, int64_t tile) {
  BodyLayout layout;
  layout.workspace_bytes = round_up(block_bytes);
  const auto take = [&](int64_t bytes) {
    AD_CHECK(bytes <= kMaxArenaBytes, ErrorKind::kOutOfMemory, "[over_keys] expected inputs of at most ",
             kMaxArenaBytes, " bytes, found ", bytes, ": lower max_seq_len");
    const int64_t at = layout.workspace_bytes;
    layout.workspace_bytes += round_up(bytes);
    return at;
  };
  size_t component = 0;
  for (size_t i = 0; i < body.inputs.size(); ++i) {
    const BodyInputSpec& spec = body.inputs[i];
    BodyInput input;
    input.role = spec.role;
    input.token_bytes = spec.token_numel * dtype_size(spec.dtype);
    input.dense = is_dense(instruction.in[i]);
    if (spec.role == BodyInputSpec::Role::kKey) {
      input.component = component++;
      const int64_t before = layout.workspace_bytes;
      input.buffer = take(max_blocks * body.block * input.token_bytes);
      layout.key_bytes += layout.workspace_bytes - before;
    } else if (!input.dense) {
      input.buffer = take(input.token_bytes * (spec.role == BodyInputSpec::Role::kQuery ? tile : 1));
    }
    layout.inputs.push_back(input);
  }
  for (int32_t v : body.outputs) {
    const ValueSpec& value = body.program.values[static_cast<size_t>(v)];
    layout.output_bytes.push_back(value.numel.t * dtype_size(value.dtype));
  }
  return layout;
}

int64_t max_key_blocks(const BodySpec& body, int64_t max_seq_len) {
  const int64_t blocks = body.num_blocks(max_seq_len);
  AD_CHECK(blocks <= kMaxProgramTokens, ErrorKind::kUnsupported, "[over_keys] expected at most ",
           kMaxProgramTokens, " blocks of keys in a sequence, found ", blocks, ": lower max_seq_len");
  return blocks;
}

int64_t choose_tile(const BodySpec& body, int64_t max_blocks, int64_t most, int64_t preferred_bytes) {
  std::vector<const InstructionSpec*> instructions;
  for (const InstructionSpec& i : body.program.instructions) instructions.push_back(&i);
  int64_t tile = kMaxTileQueries;
  for (; tile > 1; tile /= 2) {
    if (tile > most && tile / 2 >= most) continue;
    const auto lives = find_lifetimes(body.program, instructions, tile, max_blocks);
    if (plan_arena(lives).arena_bytes <= preferred_bytes) break;
  }
  return std::min(tile, most);
}

TensorView token_rows(const TensorView& x, int64_t num_tokens, int64_t begin, int64_t end) {
  TensorView rows = x;
  const int64_t each = x.shape[0] / num_tokens;
  rows.shape[0] = (end - begin) * each;
  rows.data = x.as<uint8_t>() + begin * each * x.stride[0] * dtype_size(x.dtype);
  return rows;
}

TensorView dense_view(TensorView x, void* data) {
  int64_t stride = 1;
  for (int d = x.ndim; d-- > 0;) {
    x.stride[static_cast<size_t>(d)] = stride;
    stride *= x.shape[static_cast<size_t>(d)];
  }
  x.data = data;
  return x;
}

}  // namespace autodeploy
