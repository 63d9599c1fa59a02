#include <gtest/gtest.h>

#include "core/error.h"
#include "runtime/program_limits.h"

namespace autodeploy {
namespace {

OperandRef value(int32_t index) {
  OperandRef ref;
  ref.kind = OperandRef::Kind::kValue;
  ref.index = index;
  return ref;
}

OperandRef param(int32_t index) {
  OperandRef ref = value(index);
  ref.kind = OperandRef::Kind::kParam;
  return ref;
}

// Values: 0 token ids, 1 positions, 2 logits [R, 100]; params: 0 of 90 rows, 1 of 50 rows.
ProgramSpec program_of(int64_t columns = 100) {
  ProgramSpec program;
  program.vocab_size = 95;
  program.params = {{"tokens", {90, 8}}, {"positions", {50, 8}}};
  program.values = {{"token_ids", DType::kI64, {{0, 1, 0}}, {}},
                    {"positions", DType::kI64, {{0, 1, 0}}, {}},
                    {"logits", DType::kF32, {{0, 0, 1}, {columns, 0, 0}}, {}}};
  program.inputs = {{"token_ids", 0}, {"positions", 1}};
  program.outputs = {{"logits", 2}};
  return program;
}

InstructionSpec embedding(int32_t ids, int32_t table) {
  InstructionSpec instruction;
  instruction.op = "embedding";
  instruction.in = {value(ids), param(table)};
  return instruction;
}

TEST(ProgramLimits, TheLeastOfMetadataLogitsAndTables) {
  EXPECT_EQ(find_program_limits(program_of()).vocab_size, 95);
  EXPECT_EQ(find_program_limits(program_of(80)).vocab_size, 80);
  EXPECT_EQ(find_program_limits(program_of()).max_positions, 0);
  ProgramSpec program = program_of();
  program.instructions = {embedding(0, 0)};
  EXPECT_EQ(find_program_limits(program).vocab_size, 90);
  EXPECT_EQ(find_program_limits(program).max_positions, 0);
  InstructionSpec composite;
  composite.op = "composite";
  composite.parts = {embedding(1, 1)};
  program.instructions.push_back(composite);
  EXPECT_EQ(find_program_limits(program).max_positions, 50);
  program.max_positions = 40;
  EXPECT_EQ(find_program_limits(program).max_positions, 40);
  program.vocab_size = 0;
  program.instructions.clear();
  EXPECT_EQ(find_program_limits(program).vocab_size, 100);
}

TEST(ProgramLimits, NeedsLogits) {
  ProgramSpec program = program_of();
  program.values[2].shape = {{0, 1, 0}, {100, 0, 0}};
  EXPECT_THROW(find_program_limits(program), Error);
  program.outputs.clear();
  EXPECT_THROW(find_program_limits(program), Error);
}

TEST(ProgramLimits, APrefixStandsInTheTableAndLeavesRoom) {
  ProgramSpec program = program_of();
  program.instructions = {embedding(0, 0)};
  program.vocab_size = 80;
  program.prefix_tokens = {80, 89};
  EXPECT_EQ(find_program_limits(program).vocab_size, 80);
  program.max_positions = 4;
  EXPECT_EQ(find_program_limits(program).max_positions, 4);
  program.max_positions = 3;
  EXPECT_THROW(find_program_limits(program), Error);
  program.max_positions = 0;
  program.prefix_tokens = {90};
  EXPECT_THROW(find_program_limits(program), Error);
}

}  // namespace
}  // namespace autodeploy
