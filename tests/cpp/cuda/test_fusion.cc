// Which neighbours become composites, and with which operands.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/cpu/attention_form.h"
#include "runtime/cuda/fusion.h"

namespace autodeploy::cuda {
namespace {

constexpr Dim kTokens{0, 1, 0, 0};
Dim fixed_dim(int64_t n) { return {n, 0, 0, 0}; }

// A program of values whose first dim is T.
struct Builder {
  ProgramSpec program;

  int32_t value(std::vector<int64_t> inner) {
    ValueSpec v;
    v.name = "v" + std::to_string(program.values.size());
    v.dtype = DType::kBF16;
    v.shape = {kTokens};
    for (int64_t d : inner) v.shape.push_back(fixed_dim(d));
    program.values.push_back(v);
    return static_cast<int32_t>(program.values.size()) - 1;
  }
  OperandRef whole(int32_t v) const {
    OperandRef o;
    o.kind = OperandRef::Kind::kValue;
    o.index = v;
    o.whole = true;
    o.shape = program.values[static_cast<size_t>(v)].shape;
    o.stride = contiguous_strides(o.shape);
    return o;
  }
  // Heads [T, count, width] of a value with so many channels, from channel `first` on.
  OperandRef heads(int32_t v, int64_t channels, int64_t first, int64_t count, int64_t width,
                   int64_t step = 1) const {
    OperandRef o = whole(v);
    o.whole = false;
    o.shape = {kTokens, fixed_dim(count), fixed_dim(width)};
    o.stride = {fixed_dim(channels), fixed_dim(width * step), fixed_dim(1)};
    o.offset = fixed_dim(first);
    return o;
  }
  InstructionSpec& add(std::string op, std::vector<OperandRef> in, std::vector<int32_t> out) {
    InstructionSpec i;
    i.op = std::move(op);
    i.in = std::move(in);
    i.out = std::move(out);
    if (i.op == "rope") i.attrs.set("interleaved", false);
    program.instructions.push_back(std::move(i));
    return program.instructions.back();
  }
  void linear(int32_t x, int32_t y) {
    OperandRef weight;
    weight.kind = OperandRef::Kind::kParam;
    weight.whole = weight.weight = true;
    weight.index = static_cast<int32_t>(program.instructions.size());
    add("linear", {whole(x), weight, OperandRef()}, {y});
  }
};

struct Layer {
  Builder b;
  int32_t qkv, cos, sin, turned, out;

  // Four query heads, two key heads and two value heads of 16 channels in one value; one rope turns the first
  // six.
  Layer() {
    qkv = b.value({128}), cos = b.value({8}), sin = b.value({8});
    turned = b.value({6, 16}), out = b.value({4, 16});
    b.program.inputs = {{"qkv", qkv}, {"cos", cos}, {"sin", sin}};
    b.program.outputs = {{"logits", out}};
  }
  void rope() { b.add("rope", {b.heads(qkv, 128, 0, 6, 16), b.whole(cos), b.whole(sin)}, {turned}); }
  void attend(const OperandRef& q, const OperandRef& k) {
    const OperandRef none;
    b.add("attention", {q, k, b.heads(qkv, 128, 96, 2, 16), none, none, none, none}, {out});
  }
  void attend() { attend(b.heads(turned, 96, 0, 4, 16), b.heads(turned, 96, 64, 2, 16)); }
  std::vector<std::string> ops() {
    std::vector<std::string> names;
    for (const InstructionSpec& i : fuse(b.program).instructions) names.push_back(i.op);
    return names;
  }
};

using Names = std::vector<std::string>;

TEST(CudaFusion, OneRopeOfQueriesAndKeys) {
  Layer l;
  l.rope(), l.attend();
  const ProgramSpec fused = fuse(l.b.program);
  ASSERT_EQ(fused.instructions.size(), 1u);
  const InstructionSpec& i = fused.instructions[0];
  EXPECT_EQ(i.op, "rope+attention");
  ASSERT_EQ(i.in.size(), 6u);
  EXPECT_TRUE(i.in[0] == l.b.heads(l.qkv, 128, 0, 4, 16));
  EXPECT_TRUE(i.in[1] == l.b.heads(l.qkv, 128, 64, 2, 16));
  EXPECT_TRUE(i.in[2] == l.b.heads(l.qkv, 128, 96, 2, 16));
  EXPECT_TRUE(i.in[3] == l.b.whole(l.cos) && i.in[4] == l.b.whole(l.sin));
  EXPECT_EQ(i.in[5].kind, OperandRef::Kind::kAbsent);
  EXPECT_EQ(i.out, std::vector<int32_t>{l.out});
  EXPECT_FALSE(i.attrs.boolean("interleaved"));
  ASSERT_EQ(i.parts.size(), 2u);
  EXPECT_EQ(i.parts[0].op, "rope");
  EXPECT_EQ(i.parts[1].op, "attention");
}

TEST(CudaFusion, TwoRopesOfTheSameTables) {
  Layer l;
  const int32_t q = l.b.value({4, 16}), k = l.b.value({2, 16});
  l.b.add("rope", {l.b.heads(l.qkv, 128, 0, 4, 16), l.b.whole(l.cos), l.b.whole(l.sin)}, {q});
  l.b.add("rope", {l.b.heads(l.qkv, 128, 64, 2, 16), l.b.whole(l.cos), l.b.whole(l.sin)}, {k});
  l.attend(l.b.whole(q), l.b.whole(k));
  EXPECT_EQ(l.ops(), Names{"rope+attention"});
  // With other tables for the keys the turns stay apart.
  l.b.program.instructions[1].in[1] = l.b.whole(l.sin);
  EXPECT_EQ(l.ops(), (Names{"rope", "rope", "attention"}));
}

TEST(CudaFusion, EveryOtherHead) {
  Layer l;
  l.rope();
  l.attend(l.b.heads(l.turned, 96, 0, 3, 16, 2), l.b.heads(l.turned, 96, 16, 3, 16, 2));
  const ProgramSpec fused = fuse(l.b.program);
  ASSERT_EQ(fused.instructions.size(), 1u);
  EXPECT_TRUE(fused.instructions[0].in[1] == l.b.heads(l.qkv, 128, 16, 3, 16, 2));
}

TEST(CudaFusion, TurnsThatOthersReadOrThatAreNoHeadsStay) {
  {
    Layer l;
    l.rope(), l.attend();
    l.b.program.outputs.push_back({"turned", l.turned});
    EXPECT_EQ(l.ops(), (Names{"rope", "attention"}));
  }
  {
    Layer l;
    l.rope();
    l.attend(l.b.heads(l.turned, 96, 8, 4, 16), l.b.heads(l.turned, 96, 64, 2, 16));  // between heads
    EXPECT_EQ(l.ops(), (Names{"rope", "attention"}));
  }
  {
    Layer l;  // keys are not turned
    l.rope();
    l.attend(l.b.heads(l.turned, 96, 0, 4, 16), l.b.heads(l.qkv, 128, 64, 2, 16));
    EXPECT_EQ(l.ops(), (Names{"rope", "attention"}));
  }
  for (size_t operand : {kSlopes, kBiasTable, kListedKeys}) {
    Layer l;
    l.rope(), l.attend();
    l.b.program.instructions[1].in[operand] = l.b.whole(l.cos);
    EXPECT_EQ(l.ops(), (Names{"rope", "attention"}));
  }
}

TEST(CudaFusion, ARegionOfTwoLinearsIsPartOfOne) {
  Builder b;
  const int32_t x = b.value({64}), first = b.value({64}), second = b.value({64}), sum = b.value({64});
  b.program.inputs = {{"x", x}};
  b.program.outputs = {{"logits", sum}};
  b.linear(x, first), b.linear(x, second);
  b.add("region", {b.whole(first), b.whole(second)}, {sum});
  const ProgramSpec fused = fuse(b.program);
  Names ops;
  std::vector<int32_t> written;
  for (const InstructionSpec& i : fused.instructions) {
    ops.push_back(i.op);
    for (const OperandRef& o : i.in) {
      if (o.kind != OperandRef::Kind::kValue || o.index == x) continue;
      EXPECT_NE(std::find(written.begin(), written.end(), o.index), written.end())
          << "nothing has written value " << o.index;
    }
    written.insert(written.end(), i.out.begin(), i.out.end());
  }
  EXPECT_EQ(ops, (Names{"linear", "linear+region"}));
}

}  // namespace
}  // namespace autodeploy::cuda
