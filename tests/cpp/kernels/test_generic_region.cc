// Regions against a plain scalar evaluation: random programs over random views, every instruction set, any
// thread count.
#include "generic_testing.h"

namespace autodeploy {
namespace {

using namespace generic_testing;

constexpr RegionOp kOps[] = {
    RegionOp::kAdd,    RegionOp::kSub,  RegionOp::kMul,      RegionOp::kMin,   RegionOp::kMax,
    RegionOp::kNeg,    RegionOp::kAbs,  RegionOp::kRelu,     RegionOp::kFloor, RegionOp::kSign,
    RegionOp::kSquare, RegionOp::kFmod, RegionOp::kFloorDiv, RegionOp::kWhere, RegionOp::kEq,
    RegionOp::kNe,     RegionOp::kLt,   RegionOp::kLe,       RegionOp::kGt,    RegionOp::kGe,
    RegionOp::kAnd,    RegionOp::kOr,   RegionOp::kNot,      RegionOp::kCast,  RegionOp::kConst};

int arity(RegionOp op) {
  switch (op) {
    case RegionOp::kConst:
      return 0;
    case RegionOp::kNeg:
    case RegionOp::kAbs:
    case RegionOp::kRelu:
    case RegionOp::kFloor:
    case RegionOp::kSign:
    case RegionOp::kSquare:
    case RegionOp::kNot:
    case RegionOp::kCast:
    case RegionOp::kSilu:
      return 1;
    case RegionOp::kWhere:
      return 3;
    default:
      return 2;
  }
}
bool gives_bool(RegionOp op) { return op >= RegionOp::kEq && op <= RegionOp::kNot; }

// One element; floats are rounded to float32 after each step, integers are small.
double evaluate(RegionOp op, double a, double b, double c) {
  switch (op) {
    case RegionOp::kAdd:
      return a + b;
    case RegionOp::kSub:
      return a - b;
    case RegionOp::kMul:
      return a * b;
    case RegionOp::kMin:
      return std::isnan(a) || std::isnan(b) ? NAN : std::min(a, b);
    case RegionOp::kMax:
      return std::isnan(a) || std::isnan(b) ? NAN : std::max(a, b);
    case RegionOp::kNeg:
      return -a;
    case RegionOp::kAbs:
      return std::abs(a);
    case RegionOp::kRelu:
      return a < 0 ? 0 : a;
    case RegionOp::kFloor:
      return std::floor(a);
    case RegionOp::kSign:
      return (a > 0) - (a < 0);
    case RegionOp::kSquare:
      return a * a;
    case RegionOp::kFmod:
      return std::fmod(a, b);
    case RegionOp::kFloorDiv:
      return std::floor(a / b);
    case RegionOp::kWhere:
      return a != 0 ? b : c;
    case RegionOp::kEq:
      return a == b;
    case RegionOp::kNe:
      return a != b;
    case RegionOp::kLt:
      return a < b;
    case RegionOp::kLe:
      return a <= b;
    case RegionOp::kGt:
      return a > b;
    case RegionOp::kGe:
      return a >= b;
    case RegionOp::kAnd:
      return a != 0 && b != 0;
    case RegionOp::kOr:
      return a != 0 || b != 0;
    case RegionOp::kNot:
      return a == 0;
    default:
      return a;
  }
}

double round_to(DType t, double v) {
  if (t == DType::kBool) return v != 0;
  if (t == DType::kI64) return std::trunc(v);
  return static_cast<float>(v);
}

// Values stay in a range where every class is exact: floats by rounding, integers by their size.
RegionProgram random_region(std::mt19937& rng, int num_inputs) {
  const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  constexpr DType kTypes[] = {DType::kF32, DType::kI64, DType::kBool};
  RegionProgram p;
  std::vector<DType> types;
  std::vector<double> bound;  // of magnitudes
  for (int i = 0; i < num_inputs; ++i) {
    p.inputs.push_back(kTypes[pick(4) % 3]);
    types.push_back(p.inputs.back());
    bound.push_back(64);
  }
  while (p.nodes.size() < 12) {
    RegionNode n{kOps[pick(std::size(kOps))], kTypes[pick(3)]};
    DType widest = DType::kBool;
    double size = 1;
    bool legal = n.op == RegionOp::kConst || !types.empty();
    for (int a = 0; legal && a < arity(n.op); ++a) {
      n.args[a] = pick(static_cast<int>(types.size()));
      const DType t = types[static_cast<size_t>(n.args[a])];
      if (t == DType::kF32 || (t == DType::kI64 && widest == DType::kBool)) widest = t;
      size = std::max(size, bound[static_cast<size_t>(n.args[a])]);
    }
    if (!legal) continue;
    if (n.op == RegionOp::kConst) {
      n.value = n.dtype == DType::kBool ? pick(2) : pick(9) - 4;
      size = 4;
    } else if (gives_bool(n.op)) {
      n.dtype = DType::kBool;
      size = 1;
    } else if (n.op == RegionOp::kWhere) {
      if (types[static_cast<size_t>(n.args[0])] != DType::kBool) continue;
    } else if (n.op != RegionOp::kCast) {
      if (widest == DType::kBool)
        continue;  // arithmetic on booleans alone has rules of its own, tested below
      if (n.dtype == DType::kI64 && widest == DType::kF32) n.dtype = DType::kF32;
      size = n.op == RegionOp::kMul || n.op == RegionOp::kSquare || n.op == RegionOp::kFloorDiv ? size * size
                                                                                                : 2 * size;
      // Division by zero and quotients near a whole number depend on the class: keep to integers that are
      // exact.
      if ((n.op == RegionOp::kFmod || n.op == RegionOp::kFloorDiv)) continue;
    }
    if (size > 1e6) continue;
    p.nodes.push_back(n);
    types.push_back(n.dtype);
    bound.push_back(size);
  }
  const int outs = 1 + pick(3);
  for (int o = 0; o < outs; ++o) p.outputs.push_back(pick(static_cast<int>(types.size())));
  return p;
}

std::vector<std::vector<double>> reference(const RegionProgram& p, const std::vector<Tensor>& in,
                                           int64_t numel) {
  std::vector<std::vector<double>> out(p.outputs.size());
  for (int64_t i = 0; i < numel; ++i) {
    std::vector<double> reg;
    for (const Tensor& t : in) reg.push_back(t.at(i));
    for (const RegionNode& n : p.nodes) {
      const auto arg = [&](int a) { return n.args[a] >= 0 ? reg[static_cast<size_t>(n.args[a])] : 0.0; };
      reg.push_back(
          round_to(n.dtype, n.op == RegionOp::kConst ? n.value : evaluate(n.op, arg(0), arg(1), arg(2))));
    }
    for (size_t o = 0; o < out.size(); ++o) out[o].push_back(reg[static_cast<size_t>(p.outputs[o])]);
  }
  return out;
}

std::vector<Tensor> make_outputs(const RegionProgram& p, const std::vector<int64_t>& shape) {
  std::vector<Tensor> out;
  for (int32_t r : p.outputs) {
    const size_t k = static_cast<size_t>(r);
    out.emplace_back(k < p.inputs.size() ? p.inputs[k] : p.nodes[k - p.inputs.size()].dtype, shape);
  }
  return out;
}

const char* const kKernels[] = {"region.portable", "region.avx2", "region.avx512"};

TEST(Region, RandomProgramsOverRandomViews) {
  const std::vector<std::vector<int64_t>> shapes = {{},       {1},        {7},          {1030},      {3, 5},
                                                    {2, 700}, {5, 3, 33}, {4, 1, 2, 3}, {2, 300, 9}, {0, 4}};
  std::mt19937 rng(17);
  for (int round = 0; round < 120; ++round) {
    const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
    const std::vector<int64_t>& shape = shapes[static_cast<size_t>(pick(static_cast<int>(shapes.size())))];
    Call run;
    run.op = "region";
    const RegionProgram program = random_region(rng, pick(4));
    run.region = &program;
    run.attrs = {{"region", int64_t{0}}};
    int64_t numel = 1;
    for (int64_t d : shape) numel *= d;
    for (DType t : program.inputs) {
      // Row padding, broadcast dims, steps and permutations.
      std::vector<int64_t> stride(shape.size());
      int64_t next = pick(4) == 0 ? 2 : 1;
      const bool reverse = pick(4) == 0;
      for (size_t j = 0; j < shape.size(); ++j) {
        const size_t d = reverse ? j : shape.size() - 1 - j;
        stride[d] = pick(4) == 0 ? 0 : next;
        next *= std::max<int64_t>(1, shape[d]);
        next += pick(3) == 0 ? 3 : 0;
      }
      run.in.emplace_back(t, shape, stride, pick(5));
      run.in.back().randomize(rng);
    }
    const auto expected = reference(program, run.in, numel);
    for (const char* kernel : kKernels) {
      run.kernel = kernel;
      for (int threads : {1, 3}) {
        run.out = make_outputs(program, shape);
        if (!run_kernel(run, threads)) continue;
        for (size_t o = 0; o < run.out.size(); ++o) {
          expect_close(run.out[o], expected[o], 0, 0,
                       "round " + std::to_string(round) + " " + kernel + " output " + std::to_string(o));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Region, GateOverSlicesOfAFusedResult) {
  // y = silu(gate) * up, both halves of one row.
  RegionProgram p;
  p.inputs = {DType::kF32, DType::kF32};
  p.nodes = {{RegionOp::kSilu, DType::kF32, {0, -1, -1}}, {RegionOp::kMul, DType::kF32, {2, 1, -1}}};
  p.outputs = {3};
  std::mt19937 rng(1);
  Tensor fused(DType::kF32, {9, 2 * 1536});
  fused.randomize(rng);
  std::vector<double> expected;
  for (int64_t t = 0; t < 9; ++t) {
    for (int64_t j = 0; j < 1536; ++j) {
      const double g = fused.at(t * 3072 + j);
      expected.push_back(g / (1 + std::exp(-g)) * fused.at(t * 3072 + 1536 + j));
    }
  }
  Tensor gate(DType::kF32, {9, 1536}, {3072, 1}, 0), up(DType::kF32, {9, 1536}, {3072, 1}, 0);
  for (int64_t i = 0; i < gate.numel(); ++i) {
    gate.set(i, fused.at(i / 1536 * 3072 + i % 1536));
    up.set(i, fused.at(i / 1536 * 3072 + 1536 + i % 1536));
  }
  for (const char* kernel : kKernels) {
    Call run{"region", {gate, up}, {Tensor(DType::kF32, {9, 1536})}, {{"region", int64_t{0}}}, &p, kernel};
    if (run_kernel(run, 2)) expect_close(run.out[0], expected, 1e-6, 1e-7, kernel);
  }
}

TEST(Region, WorksInPlace) {
  // out0 takes over in0, which a later node still reads: it must be buffered. out1 takes over in1.
  RegionProgram p;
  p.inputs = {DType::kF32, DType::kF32};
  p.nodes = {{RegionOp::kAdd, DType::kF32, {0, 1, -1}}, {RegionOp::kMul, DType::kF32, {2, 0, -1}}};
  p.outputs = {2, 3};
  for (const char* kernel : kKernels) {
    std::mt19937 rng(2);
    Tensor a(DType::kF32, {5000}), b(DType::kF32, {5000});
    a.randomize(rng);
    b.randomize(rng);
    std::vector<double> sum, product;
    for (int64_t i = 0; i < 5000; ++i) {
      sum.push_back(static_cast<float>(a.at(i) + b.at(i)));
      product.push_back(static_cast<float>(sum.back() * a.at(i)));
    }
    Call run{"region", {a, b}, {a, b}, {{"region", int64_t{0}}}, &p, kernel};
    if (!run_kernel(run, 2)) continue;
    expect_close(run.out[0], sum, 0, 0, std::string(kernel) + " sum");
    expect_close(run.out[1], product, 0, 0, std::string(kernel) + " product");
  }
}

TEST(Region, BooleanArithmeticAndMixedClasses) {
  RegionProgram p;
  p.inputs = {DType::kBool, DType::kBool, DType::kI64};
  p.nodes = {{RegionOp::kAdd, DType::kBool, {0, 1, -1}},   {RegionOp::kMul, DType::kBool, {0, 1, -1}},
             {RegionOp::kSub, DType::kI64, {2, 0, -1}},    {RegionOp::kDiv, DType::kF32, {2, 5, -1}},
             {RegionOp::kBitXor, DType::kI64, {2, 5, -1}}, {RegionOp::kFloorDiv, DType::kI64, {2, 5, -1}},
             {RegionOp::kFmod, DType::kI64, {2, 5, -1}},   {RegionOp::kPow, DType::kI64, {2, 0, -1}}};
  p.outputs = {3, 4, 5, 6, 7, 8, 9, 10};
  Tensor a(DType::kBool, {6}), b(DType::kBool, {6}), c(DType::kI64, {6});
  a.fill({0, 0, 1, 1, 1, 0});
  b.fill({0, 1, 0, 1, 1, 0});
  c.fill({7, -7, 4, 1, -3, 0});
  const std::vector<std::vector<double>> expected = {
      {0, 1, 1, 1, 1, 0},           {0, 0, 0, 1, 1, 0},
      {7, -7, 3, 0, -4, 0},         {1, 1, 4.0f / 3.0f, INFINITY, 0.75, NAN},
      {0, 0, 4 ^ 3, 1, -3 ^ -4, 0}, {1, 1, 1, 0, 0, 0},
      {0, 0, 1, 0, -3, 0},          {1, 1, 4, 1, -3, 1}};
  Call run{"region", {a, b, c}, {}, {{"region", int64_t{0}}}, &p, ""};
  for (DType t : {DType::kBool, DType::kBool, DType::kI64, DType::kF32, DType::kI64, DType::kI64, DType::kI64,
                  DType::kI64}) {
    run.out.emplace_back(t, std::vector<int64_t>{6});
  }
  ASSERT_TRUE(run_kernel(run));
  for (size_t o = 0; o < expected.size(); ++o)
    expect_close(run.out[o], expected[o], 1e-7, 0, "output " + std::to_string(o));
}

TEST(Region, FloorDivisionFollowsPython) {
  RegionProgram p;
  p.inputs = {DType::kF32, DType::kF32};
  p.nodes = {{RegionOp::kFloorDiv, DType::kF32, {0, 1, -1}},
             {RegionOp::kFmod, DType::kF32, {0, 1, -1}},
             {RegionOp::kPow, DType::kF32, {0, 1, -1}}};
  p.outputs = {2, 3, 4};
  Tensor a(DType::kF32, {6}), b(DType::kF32, {6});
  a.fill({7, -7, 7, 1, -1, 0});
  b.fill({2, 2, -2, 0, 0, 5});
  Call run{"region", {a, b}, {}, {{"region", int64_t{0}}}, &p, ""};
  for (int i = 0; i < 3; ++i) run.out.emplace_back(DType::kF32, std::vector<int64_t>{6});
  ASSERT_TRUE(run_kernel(run));
  expect_close(run.out[0], {3, -4, -4, INFINITY, -INFINITY, 0}, 0, 0, "floor_div");
  expect_close(run.out[1], {1, -1, 1, NAN, NAN, 0}, 0, 0, "fmod");
  expect_close(run.out[2], {49, 49, 1.0 / 49, 1, 1, 0}, 1e-7, 0, "pow");
}

TEST(Region, RejectsWrongSpecs) {
  RegionProgram p;
  p.inputs = {DType::kF32};
  p.nodes = {{RegionOp::kBitAnd, DType::kI64, {0, 0, -1}}};
  p.outputs = {1};
  Call run{"region", {Tensor(DType::kF32, {4})}, {Tensor(DType::kI64, {4})}, {{"region", int64_t{0}}}, &p,
           ""};
  EXPECT_NE(message_of(run).find("[region] expected integers or booleans"), std::string::npos);
  run.in[0] = Tensor(DType::kF32, {5});
  EXPECT_NE(message_of(run).find("operands of the results' shape"), std::string::npos);
}

}  // namespace
}  // namespace autodeploy
