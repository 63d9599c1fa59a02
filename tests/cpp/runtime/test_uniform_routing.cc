// Routing that is forced uniform: which instruction it takes the place of, and what is drawn.
#include "runtime/uniform_routing.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "kernels/uniform_choice.h"

namespace autodeploy {
namespace {

OperandRef value(int32_t v) {
  OperandRef o;
  o.kind = OperandRef::Kind::kValue;
  o.index = v;
  return o;
}

// A program of instructions on values whose dtypes are given; params are left out.
struct Writer {
  ProgramSpec program;

  int32_t add(DType t) {
    ValueSpec v;
    v.dtype = t;
    program.values.push_back(v);
    return static_cast<int32_t>(program.values.size()) - 1;
  }
  std::vector<int32_t> call(const std::string& op, std::vector<int32_t> in, std::vector<DType> out) {
    InstructionSpec ins;
    ins.op = op;
    ins.where = "instruction " + std::to_string(program.instructions.size()) + " (" + op + ")";
    for (int32_t v : in) ins.in.push_back(v < 0 ? OperandRef{} : value(v));
    for (DType t : out) ins.out.push_back(add(t));
    program.instructions.push_back(ins);
    return ins.out;
  }
  std::vector<int32_t> topk(int32_t x) { return call("topk", {x}, {DType::kF32, DType::kI64}); }
  void experts(int32_t x, int32_t ids) { call("expert_linear", {x, -1, ids, -1}, {DType::kF32}); }
  std::vector<std::string> ops() const {
    std::vector<std::string> names;
    for (const InstructionSpec& ins : program.instructions) names.push_back(ins.op);
    return names;
  }
};

std::string refusal(const ProgramSpec& program) {
  try {
    (void)with_uniform_routing(program, 1);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::kInvalidArgument);
    return e.what();
  }
  return "";
}

TEST(UniformRouting, TheLastChoiceBeforeTheExpertsCounts) {
  Writer w;
  const int32_t x = w.add(DType::kF32);
  // Groups first, then experts of the scores that they leave.
  const auto groups = w.topk(x);
  const int32_t mask = w.call("scatter", {x, groups[1]}, {DType::kF32})[0];
  const int32_t masked = w.call("region", {x, mask}, {DType::kF32})[0];
  const auto chosen = w.topk(masked);
  const int32_t moved = w.call("copy", {chosen[1]}, {DType::kI64})[0];
  w.experts(x, moved);
  w.experts(x, chosen[1]);
  w.topk(x);  // of something else
  const ProgramSpec found = with_uniform_routing(w.program, 9);
  w.program = found;
  EXPECT_EQ(w.ops(), (std::vector<std::string>{"topk", "scatter", "region", "topk.uniform", "copy",
                                               "expert_linear", "expert_linear", "topk"}));
  EXPECT_EQ(found.instructions[3].attrs.integer("seed"), 9);
  EXPECT_EQ(found.instructions[3].attrs.integer("stream"), 0);
}

TEST(UniformRouting, RowsThatAreOrderedByExpertAreNoChoice) {
  Writer w;
  const int32_t x = w.add(DType::kF32);
  const auto sorted = w.call("sort", {x}, {DType::kF32, DType::kI64});
  const auto order = w.call("sort", {sorted[1]}, {DType::kI64, DType::kI64});
  const int32_t ids = w.call("gather", {sorted[1], order[1]}, {DType::kI64})[0];
  w.experts(x, ids);
  w.experts(x, order[0]);
  const auto second = w.topk(x);
  w.experts(x, second[1]);
  w.program = with_uniform_routing(w.program, 0);
  EXPECT_EQ(w.ops(), (std::vector<std::string>{"sort.uniform", "sort", "gather", "expert_linear",
                                               "expert_linear", "topk.uniform", "expert_linear"}));
  EXPECT_EQ(w.program.instructions[5].attrs.integer("stream"), 1);
}

TEST(UniformRouting, WhatHasNoChoiceIsRefused) {
  Writer plain;
  plain.topk(plain.add(DType::kF32));
  EXPECT_NE(refusal(plain.program).find("found no expert_linear in its program"), std::string::npos);
  Writer fixed;
  const int32_t x = fixed.add(DType::kF32), ids = fixed.add(DType::kI64);
  fixed.topk(x);
  fixed.experts(x, ids);
  const std::string said = refusal(fixed.program);
  EXPECT_NE(said.find("[engine] dummy_routing: expected the ids of instruction 1 (expert_linear)"),
            std::string::npos)
      << said;
}

TEST(UniformChoice, DistinctAndUniform) {
  for (const uint32_t n : {1u, 2u, 7u, 60u, 128u}) {
    const int64_t k = n < 8 ? (n + 1) / 2 : 8, rows = 4000;
    std::vector<double> seen(n), first(n);
    for (int64_t row = 0; row < rows; ++row) {
      const ChoiceOfRow chosen = choose_uniformly({5, 3}, row % 64, 1000 + row / 64, 17, n);
      std::set<uint32_t> all;
      for (int64_t i = 0; i < n; ++i) all.insert(chosen.at(i));
      ASSERT_EQ(all.size(), n);
      ASSERT_LT(*all.rbegin(), n);
      for (int64_t i = 0; i < k; ++i) ++seen[chosen.at(i)];
      ++first[chosen.at(0)];
    }
    // Chi-square within six deviations of its mean n - 1, whose variance is 2 (n - 1); k distinct ones of a
    // row make it smaller.
    for (const auto& [counts, draws] : {std::pair(seen, k), std::pair(first, int64_t{1})}) {
      const double mean = static_cast<double>(rows * draws) / n;
      double chi = 0;
      for (double c : counts) chi += (c - mean) * (c - mean) / mean;
      EXPECT_LE(chi, (n - 1) + 6 * std::sqrt(2.0 * (n - 1))) << n << ", " << draws;
    }
  }
}

TEST(UniformChoice, DependsOnEverythingThatItIsGiven) {
  const auto draw = [](UniformChoice c, int64_t line, int64_t position, int64_t token) {
    const ChoiceOfRow row = choose_uniformly(c, line, position, token, 1 << 20);
    return std::pair(row.first, row.step);
  };
  const std::set<std::pair<uint32_t, uint32_t>> different{draw({5, 3}, 1, 2, 4), draw({6, 3}, 1, 2, 4),
                                                          draw({5, 4}, 1, 2, 4), draw({5, 3}, 2, 2, 4),
                                                          draw({5, 3}, 1, 3, 4), draw({5, 3}, 1, 2, 5)};
  EXPECT_EQ(different.size(), 6u);
  EXPECT_EQ(draw({5, 3}, 1, 2, 4), draw({5, 3}, 1, 2, 4));
}

TEST(UniformChoice, LinesBelongToTokens) {
  const std::vector<int32_t> rows{2, 5};
  EXPECT_EQ(token_of_line(4, 6, 6, 2, rows), 4);   // one for each token
  EXPECT_EQ(token_of_line(7, 12, 6, 2, rows), 3);  // two
  EXPECT_EQ(token_of_line(1, 2, 6, 2, rows), 5);   // rows of logits
  EXPECT_EQ(token_of_line(1, 2, 2, 2, rows), 1);
}

}  // namespace
}  // namespace autodeploy
