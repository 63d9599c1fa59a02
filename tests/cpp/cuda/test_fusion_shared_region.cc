// A region that reads the results of two linears becomes part of one of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "runtime/cuda/fusion.h"

namespace autodeploy::cuda {
namespace {

struct Builder {
  ProgramSpec program;

  int32_t value(int64_t width) {
    ValueSpec v;
    v.name = "v" + std::to_string(program.values.size());
    v.dtype = DType::kBF16;
    v.shape = {Dim{0, 1, 0, 0}, Dim{width, 0, 0, 0}};
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
  void add(std::string op, std::vector<OperandRef> in, int32_t out) {
    InstructionSpec i;
    i.op = std::move(op);
    i.in = std::move(in);
    i.out = {out};
    program.instructions.push_back(std::move(i));
  }
  void linear(int32_t x, int32_t y) {
    OperandRef weight;
    weight.kind = OperandRef::Kind::kParam;
    weight.whole = true;
    weight.weight = true;
    weight.index = static_cast<int32_t>(program.instructions.size());
    add("linear", {whole(x), weight, OperandRef()}, y);
  }
};

TEST(CudaFusion, ARegionOfTwoLinearsIsPartOfOne) {
  Builder b;
  const int32_t x = b.value(64), first = b.value(64), second = b.value(64), sum = b.value(64);
  b.program.inputs = {{"x", x}};
  b.program.outputs = {{"logits", sum}};
  b.linear(x, first);
  b.linear(x, second);
  b.add("region", {b.whole(first), b.whole(second)}, sum);
  const ProgramSpec fused = fuse(b.program);
  ASSERT_EQ(fused.instructions.size(), 2u);
  std::vector<int32_t> written;
  std::vector<std::string> ops;
  for (const InstructionSpec& i : fused.instructions) {
    ops.push_back(i.op);
    for (const OperandRef& o : i.in) {
      if (o.kind != OperandRef::Kind::kValue || o.index == x) continue;
      EXPECT_NE(std::find(written.begin(), written.end(), o.index), written.end())
          << "nothing has written value " << o.index;
    }
    written.insert(written.end(), i.out.begin(), i.out.end());
  }
  EXPECT_EQ(ops, (std::vector<std::string>{"linear", "linear+region"}));
}

}  // namespace
}  // namespace autodeploy::cuda
