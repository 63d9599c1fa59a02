// Operands and results of an over_keys instruction as its body sees them, on any backend: where each lies in
// the workspace, and which of its rows belong to which tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor_view.h"
#include "runtime/program_spec.h"

namespace autodeploy {

struct BodyInput {
  BodyInputSpec::Role role = BodyInputSpec::Role::kFixed;
  int64_t token_bytes = 0;
  // In the workspace: all keys, or a dense copy of the tile's queries or of a fixed operand; -1 where the
  // operand is read where it lies.
  int64_t buffer = -1;
  bool dense = false;    // the operand's rows lie row-major without gaps
  size_t component = 0;  // of the state, for keys
};

struct BodyLayout {
  std::vector<BodyInput> inputs;
  std::vector<int64_t> output_bytes;  // per token
  int64_t workspace_bytes = 0;        // what the body's block needs, then the buffers
  int64_t key_bytes = 0;              // of the buffers that hold keys
};

// Throws Error(kOutOfMemory) where the keys of the longest sequence are beyond all bounds.
BodyLayout lay_out_body(const BodySpec& body, const InstructionSpec& instruction, int64_t block_bytes,
                        int64_t max_blocks, int64_t tile);

// Key blocks of the longest sequence. Throws Error(kUnsupported) where there are too many.
int64_t max_key_blocks(const BodySpec& body, int64_t max_seq_len);

// The largest tile, of at most `most` queries, that keeps the body's values within `preferred_bytes`.
int64_t choose_tile(const BodySpec& body, int64_t max_blocks, int64_t most, int64_t preferred_bytes);

// The rows of tokens [begin, end) of an operand or result [c*T, ...], T = num_tokens.
TensorView token_rows(const TensorView& x, int64_t num_tokens, int64_t begin, int64_t end);

// A view of the same shape, row-major at `data`.
TensorView dense_view(TensorView x, void* data);

}  // namespace autodeploy
