#include "runtime/program_limits.h"

#include <algorithm>

#include "core/error.h"

namespace autodeploy {
namespace {

// Calls fn(rows) for every table of which `input` is the index, composites' parts included.
template <class Fn>
void for_each_table(const ProgramSpec& program, const std::vector<InstructionSpec>& instructions,
                    int32_t input, const Fn& fn) {
  for (const InstructionSpec& instruction : instructions) {
    if (instruction.body >= 0) {
      // Its operands are its body's inputs; those that are weights are the body's params.
      const BodySpec& body = program.bodies[static_cast<size_t>(instruction.body)];
      for (size_t i = 0; i < instruction.in.size(); ++i) {
        const OperandRef& o = instruction.in[i];
        if (o.kind != OperandRef::Kind::kValue || o.index != input) continue;
        for_each_table(body.program, body.program.instructions, static_cast<int32_t>(i), fn);
      }
      continue;
    }
    for_each_table(program, instruction.parts, input, fn);
    if (instruction.op != "embedding" || input < 0 || instruction.in.size() < 2) continue;
    const OperandRef &ids = instruction.in[0], &table = instruction.in[1];
    if (ids.kind != OperandRef::Kind::kValue || ids.index != input || table.kind != OperandRef::Kind::kParam)
      continue;
    fn(program.params[static_cast<size_t>(table.index)].shape.at(0));
  }
}

int64_t least(int64_t bound, int64_t other) { return bound == 0 ? other : std::min(bound, other); }

}  // namespace

ProgramLimits find_program_limits(const ProgramSpec& program) {
  const int32_t logits = program.output("logits");
  AD_CHECK(
      logits >= 0, ErrorKind::kUnsupported,
      "[engine] expected a program with the output 'logits', found none; compile a causal language model");
  const std::vector<Dim>& shape = program.values[static_cast<size_t>(logits)].shape;
  AD_CHECK(shape.size() == 2 && shape[0] == (Dim{0, 0, 1}) && shape[1].is_static() && shape[1].constant > 0,
           ErrorKind::kUnsupported, "[engine] expected logits of shape [R, vocab_size], found another");

  ProgramLimits limits{least(program.vocab_size, shape[1].constant), program.max_positions};
  for_each_table(program, program.instructions, program.input("token_ids"), [&](int64_t rows) {
    limits.vocab_size = least(limits.vocab_size, rows);
    for (int64_t id : program.prefix_tokens) {
      AD_CHECK(id < rows, ErrorKind::kInvalidArtifact,
               "[program.json: metadata .prefix_tokens] expected token ids below the ", rows,
               " rows of the table that they index, found ", id);
    }
  });
  for_each_table(program, program.instructions, program.input("positions"),
                 [&](int64_t rows) { limits.max_positions = least(limits.max_positions, rows); });
  const auto prefix = static_cast<int64_t>(program.prefix_tokens.size());
  AD_CHECK(limits.max_positions == 0 || limits.max_positions >= prefix + 2, ErrorKind::kInvalidArtifact,
           "[program.json: metadata .prefix_tokens] expected room for a prompt and an answer behind ", prefix,
           " tokens, found ", limits.max_positions, " positions");
  return limits;
}

}  // namespace autodeploy
