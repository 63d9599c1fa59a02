// The generic tail against plain loops, over contiguous and strided operands and for one and more threads.
#include <functional>
#include <numeric>

#include "generic_testing.h"

namespace autodeploy {
namespace {

using namespace generic_testing;

int64_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

// A random tensor in one of several layouts: contiguous, rows with gaps, reversed dims, steps.
Tensor random_tensor(std::mt19937& rng, DType dtype, const std::vector<int64_t>& shape, int layout) {
  std::vector<int64_t> stride(shape.size());
  int64_t next = layout == 3 ? 2 : 1;
  for (size_t j = 0; j < shape.size(); ++j) {
    const size_t d = layout == 2 ? j : shape.size() - 1 - j;
    stride[d] = next;
    next = next * std::max<int64_t>(1, shape[d]) + (layout == 1 ? 3 : 0);
  }
  Tensor t(dtype, shape, stride, layout);
  t.randomize(rng);
  return t;
}

// Runs with one and three threads and compares.
void check(Call call, const std::vector<std::vector<double>>& expected, double rtol, double atol,
           const std::string& what) {
  for (int threads : {1, 3}) {
    std::vector<Tensor> fresh;
    for (const Tensor& t : call.out) fresh.emplace_back(t.dtype(), t.shape());
    call.out = fresh;
    ASSERT_TRUE(run_kernel(call, threads)) << what;
    for (size_t o = 0; o < expected.size(); ++o) {
      expect_close(call.out[o], expected[o], rtol, atol, what + " output " + std::to_string(o));
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

// Splits an element number into (before, along, behind) of a dim.
struct Place {
  int64_t before, along, behind;
};
Place place(const std::vector<int64_t>& shape, int64_t dim, int64_t i) {
  int64_t inner = 1;
  for (size_t d = static_cast<size_t>(dim) + 1; d < shape.size(); ++d) inner *= shape[d];
  return {i / inner / shape[static_cast<size_t>(dim)], i / inner % shape[static_cast<size_t>(dim)],
          i % inner};
}
int64_t number(const std::vector<int64_t>& shape, int64_t dim, const Place& p) {
  int64_t inner = 1;
  for (size_t d = static_cast<size_t>(dim) + 1; d < shape.size(); ++d) inner *= shape[d];
  return (p.before * shape[static_cast<size_t>(dim)] + p.along) * inner + p.behind;
}

const std::vector<std::vector<int64_t>> kShapes = {{5},          {3, 7},      {4, 5, 6},
                                                   {2, 3, 4, 5}, {1, 40, 33}, {70, 70}};

TEST(Copy, AnyLayoutToContiguous) {
  std::mt19937 rng(1);
  for (const auto& shape : kShapes) {
    for (DType t : {DType::kF32, DType::kI64, DType::kBool}) {
      for (int layout = 0; layout < 4; ++layout) {
        Tensor x = random_tensor(rng, t, shape, layout);
        check({"copy", {x}, {Tensor(t, shape)}, {}}, {x.values()}, 0, 0,
              "copy layout " + std::to_string(layout));
      }
    }
  }
  Tensor repeated(DType::kF32, {3, 4}, {1, 0}, 0);
  repeated.randomize(rng);
  check({"copy", {repeated}, {Tensor(DType::kF32, {3, 4})}, {}}, {repeated.values()}, 0, 0,
        "copy of a broadcast");
  check({"copy", {Tensor(DType::kF32, {0, 4})}, {Tensor(DType::kF32, {0, 4})}, {}}, {{}}, 0, 0,
        "copy of nothing");
}

TEST(Cat, AlongEachDim) {
  std::mt19937 rng(2);
  for (int64_t dim = 0; dim < 3; ++dim) {
    std::vector<Tensor> in;
    std::vector<int64_t> out_shape = {2, 3, 4};
    out_shape[static_cast<size_t>(dim)] = 0;
    for (int64_t size : {3, 1, 0, 5}) {
      std::vector<int64_t> shape = {2, 3, 4};
      shape[static_cast<size_t>(dim)] = size;
      out_shape[static_cast<size_t>(dim)] += size;
      in.push_back(random_tensor(rng, DType::kF32, shape, static_cast<int>(size) % 4));
    }
    std::vector<double> expected;
    for (int64_t i = 0; i < product(out_shape); ++i) {
      Place p = place(out_shape, dim, i);
      size_t k = 0;
      for (; p.along >= in[k].shape()[static_cast<size_t>(dim)]; ++k)
        p.along -= in[k].shape()[static_cast<size_t>(dim)];
      expected.push_back(in[k].at(number(in[k].shape(), dim, p)));
    }
    check({"cat", in, {Tensor(DType::kF32, out_shape)}, {{"dim", dim}}}, {expected}, 0, 0,
          "cat dim " + std::to_string(dim));
  }
}

TEST(Reduce, EachKindOverEachChoiceOfDims) {
  std::mt19937 rng(3);
  const std::vector<int64_t> shape = {3, 4, 5, 2};
  const std::vector<std::vector<int64_t>> choices = {{0}, {3}, {1, 2}, {0, 3}, {3, 1}, {0, 1, 2, 3}};
  for (const char* kind : {"sum", "mean", "max", "min", "prod", "any", "all", "argmax", "argmin"}) {
    const std::string k = kind;
    for (DType t : {DType::kF32, DType::kI64, DType::kBool}) {
      if (k == "mean" && t != DType::kF32) continue;
      for (const auto& dims : choices) {
        const bool index = k[0] == 'a' && k[1] == 'r';
        if (index && dims.size() > 1) continue;
        for (int layout = 0; layout < 4; ++layout) {
          Tensor x = random_tensor(rng, t, shape, layout);
          const DType result = index                                              ? DType::kI64
                               : k == "any" || k == "all"                         ? DType::kBool
                               : t == DType::kBool && (k == "sum" || k == "prod") ? DType::kI64
                                                                                  : t;
          std::vector<int64_t> kept;
          for (int64_t d = 0; d < 4; ++d) {
            const bool gone = std::count(dims.begin(), dims.end(), d) > 0;
            if (!gone)
              kept.push_back(shape[static_cast<size_t>(d)]);
            else if (layout % 2)
              kept.push_back(1);
          }
          std::vector<double> acc(static_cast<size_t>(product(kept)), k == "prod" || k == "all" ? 1 : 0);
          std::vector<int64_t> seen(acc.size(), 0);
          std::vector<double> best(acc.size(), 0);
          for (int64_t i = 0; i < x.numel(); ++i) {
            int64_t rest = i, to = 0, step = 1;
            for (size_t d = 4; d-- > 0; rest /= shape[d]) {
              if (std::count(dims.begin(), dims.end(), static_cast<int64_t>(d))) continue;
              to += rest % shape[d] * step;
              step *= shape[d];
            }
            double& a = acc[static_cast<size_t>(to)];
            double& b = best[static_cast<size_t>(to)];
            const int64_t n = seen[static_cast<size_t>(to)]++;
            const double v = x.at(i);
            if (k == "sum" || k == "mean")
              a += v;
            else if (k == "prod")
              a *= v;
            else if (k == "any")
              a = a != 0 || v != 0;
            else if (k == "all")
              a = a != 0 && v != 0;
            else if (n == 0 || (k.find("max") != std::string::npos ? v > b : v < b))
              b = v, a = index ? static_cast<double>(n) : v;
          }
          if (k == "mean") {
            for (double& a : acc) a /= static_cast<double>(x.numel()) / static_cast<double>(acc.size());
          }
          check({"reduce",
                 {x},
                 {Tensor(result, kept)},
                 {{"kind", k}, {"dims", dims}, {"keepdim", layout % 2 == 1}}},
                {acc}, 1e-6, 1e-6, k + " layout " + std::to_string(layout));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(Reduce, NanWins) {
  Tensor x(DType::kF32, {4});
  x.fill({1, NAN, 3, NAN});
  for (const char* kind : {"max", "min"}) {
    check({"reduce",
           {x},
           {Tensor(DType::kF32, {})},
           {{"kind", std::string(kind)}, {"dims", std::vector<int64_t>{0}}, {"keepdim", false}}},
          {{NAN}}, 0, 0, kind);
  }
  for (const char* kind : {"argmax", "argmin"}) {
    check({"reduce",
           {x},
           {Tensor(DType::kI64, {})},
           {{"kind", std::string(kind)}, {"dims", std::vector<int64_t>{0}}, {"keepdim", false}}},
          {{1}}, 0, 0, kind);
  }
}

TEST(Softmax, AlongEachDimAndItsLogarithm) {
  std::mt19937 rng(4);
  for (const auto& shape : kShapes) {
    for (int64_t dim = 0; dim < static_cast<int64_t>(shape.size()); ++dim) {
      for (int layout = 0; layout < 4; ++layout) {
        Tensor x = random_tensor(rng, DType::kF32, shape, layout);
        std::vector<double> sum(static_cast<size_t>(x.numel()), 0), soft, logs;
        for (int64_t i = 0; i < x.numel(); ++i) {
          Place p = place(shape, dim, i);
          p.along = 0;
          sum[static_cast<size_t>(number(shape, dim, p))] += std::exp(x.at(i));
        }
        for (int64_t i = 0; i < x.numel(); ++i) {
          Place p = place(shape, dim, i);
          p.along = 0;
          const double s = sum[static_cast<size_t>(number(shape, dim, p))];
          soft.push_back(std::exp(x.at(i)) / s);
          logs.push_back(x.at(i) - std::log(s));
        }
        check({"softmax", {x}, {Tensor(DType::kF32, shape)}, {{"dim", dim}}}, {soft}, 2e-6, 1e-9, "softmax");
        check({"log_softmax", {x}, {Tensor(DType::kF32, shape)}, {{"dim", dim}}}, {logs}, 1e-6, 2e-6,
              "log_softmax");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Softmax, SpecialRowsAndInPlace) {
  Tensor x(DType::kF32, {4, 3});
  x.fill({1, NAN, 2, -INFINITY, -INFINITY, -INFINITY, 0, -INFINITY, 0, 1000, 1000, -1000});
  check({"softmax", {x}, {Tensor(DType::kF32, {4, 3})}, {{"dim", int64_t{1}}}},
        {{NAN, NAN, NAN, NAN, NAN, NAN, 0.5, 0, 0.5, 0.5, 0.5, 0}}, 0, 0, "special rows");
  std::mt19937 rng(5);
  Tensor y = random_tensor(rng, DType::kF32, {6, 50}, 0);
  Tensor z(DType::kF32, {6, 50});
  Call apart{"softmax", {y}, {z}, {{"dim", int64_t{1}}}};
  ASSERT_TRUE(run_kernel(apart));
  Call joined{"softmax", {y}, {y}, {{"dim", int64_t{1}}}};
  ASSERT_TRUE(run_kernel(joined));
  expect_close(y, z.values(), 0, 0, "in place");
}

TEST(SortAndTopK, OrderTiesAndNan) {
  std::mt19937 rng(6);
  for (const auto& shape : kShapes) {
    for (int64_t dim = 0; dim < static_cast<int64_t>(shape.size()); ++dim) {
      const int64_t n = shape[static_cast<size_t>(dim)];
      for (DType t : {DType::kF32, DType::kI64, DType::kBool}) {
        for (bool descending : {false, true}) {
          Tensor x = random_tensor(rng, t, shape, static_cast<int>(dim) % 4);
          for (int64_t i = 0; t == DType::kF32 && i < x.numel(); ++i) x.set(i, std::round(x.at(i)));  // ties
          if (t == DType::kF32) x.set(x.numel() / 2, NAN);
          std::vector<double> values(static_cast<size_t>(x.numel())), indices(values.size());
          for (int64_t i = 0; i < x.numel(); ++i) {
            Place p = place(shape, dim, i);
            if (p.along != 0) continue;
            std::vector<int64_t> order(static_cast<size_t>(n));
            std::iota(order.begin(), order.end(), 0);
            const auto at = [&](int64_t j) { return x.at(number(shape, dim, {p.before, j, p.behind})); };
            const auto less = [&](double a, double b) { return std::isnan(b) ? !std::isnan(a) : a < b; };
            std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
              return descending ? less(at(b), at(a)) : less(at(a), at(b));
            });
            for (int64_t j = 0; j < n; ++j) {
              const size_t to = static_cast<size_t>(number(shape, dim, {p.before, j, p.behind}));
              indices[to] = static_cast<double>(order[static_cast<size_t>(j)]);
              values[to] = at(order[static_cast<size_t>(j)]);
            }
          }
          check({"sort",
                 {x},
                 {Tensor(t, shape), Tensor(DType::kI64, shape)},
                 {{"dim", dim}, {"descending", descending}}},
                {values, indices}, 0, 0, "sort");
          for (int64_t k : {int64_t{1}, (n + 1) / 2, std::min<int64_t>(n, 40), n}) {
            std::vector<int64_t> cut = shape;
            cut[static_cast<size_t>(dim)] = k;
            std::vector<double> v, ix;
            for (int64_t i = 0; i < product(cut); ++i) {
              const size_t from = static_cast<size_t>(number(shape, dim, place(cut, dim, i)));
              v.push_back(values[from]);
              ix.push_back(indices[from]);
            }
            check({"topk",
                   {x},
                   {Tensor(t, cut), Tensor(DType::kI64, cut)},
                   {{"k", k}, {"dim", dim}, {"largest", descending}}},
                  {v, ix}, 0, 0, "topk");
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(Cumsum, AlongEachDim) {
  std::mt19937 rng(7);
  for (const auto& shape : kShapes) {
    for (int64_t dim = 0; dim < static_cast<int64_t>(shape.size()); ++dim) {
      for (DType t : {DType::kF32, DType::kI64, DType::kBool}) {
        Tensor x = random_tensor(rng, t, shape, static_cast<int>(dim + 1) % 4);
        std::vector<double> expected(static_cast<size_t>(x.numel()));
        for (int64_t i = 0; i < x.numel(); ++i) {
          Place p = place(shape, dim, i);
          double& e = expected[static_cast<size_t>(i)];
          e = x.at(i);
          if (p.along > 0)
            e += expected[static_cast<size_t>(number(shape, dim, {p.before, p.along - 1, p.behind}))];
        }
        check({"cumsum", {x}, {Tensor(t == DType::kBool ? DType::kI64 : t, shape)}, {{"dim", dim}}},
              {expected}, 1e-6, 1e-6, "cumsum");
      }
    }
  }
}

TEST(Matmul, BatchesAndLayouts) {
  std::mt19937 rng(8);
  struct Case {
    std::vector<int64_t> batch;
    int64_t m, k, n;
  };
  for (const Case& c : {Case{{}, 1, 5, 3}, Case{{}, 7, 300, 33}, Case{{2}, 13, 17, 70},
                        Case{{2, 3}, 50, 4, 16}, Case{{1}, 3, 0, 2}}) {
    std::vector<int64_t> sa = c.batch, sb = c.batch, sc = c.batch;
    sa.insert(sa.end(), {c.m, c.k});
    sb.insert(sb.end(), {c.k, c.n});
    sc.insert(sc.end(), {c.m, c.n});
    for (int layout = 0; layout < 4; ++layout) {
      Tensor a = random_tensor(rng, DType::kF32, sa, layout),
             b = random_tensor(rng, DType::kF32, sb, (layout * 3 + 2) % 4);
      std::vector<double> expected;
      for (int64_t i = 0; i < product(sc); ++i) {
        const int64_t batch = i / (c.m * c.n), row = i / c.n % c.m, column = i % c.n;
        double s = 0;
        for (int64_t k = 0; k < c.k; ++k)
          s += a.at((batch * c.m + row) * c.k + k) * b.at((batch * c.k + k) * c.n + column);
        expected.push_back(s);
      }
      check({"matmul", {a, b}, {Tensor(DType::kF32, sc)}, {}}, {expected}, 1e-5, 2e-4,
            "matmul layout " + std::to_string(layout));
      if (HasFatalFailure()) return;
    }
  }
  // A matrix shared by the batch.
  Tensor a = random_tensor(rng, DType::kF32, {3, 2, 4}, 0);
  Tensor b(DType::kF32, {3, 4, 5}, {0, 5, 1}, 0);
  b.randomize(rng);
  std::vector<double> expected;
  for (int64_t i = 0; i < 30; ++i) {
    double s = 0;
    for (int64_t k = 0; k < 4; ++k) s += a.at(i / 5 * 4 + k) * b.at(k * 5 + i % 5);
    expected.push_back(s);
  }
  check({"matmul", {a, b}, {Tensor(DType::kF32, {3, 2, 5})}, {}}, {expected}, 1e-5, 1e-5, "shared matrix");
}

TEST(Gather, ScatterAndIndexSelect) {
  std::mt19937 rng(9);
  for (const auto& shape : kShapes) {
    for (int64_t dim = 0; dim < static_cast<int64_t>(shape.size()); ++dim) {
      const int64_t n = shape[static_cast<size_t>(dim)];
      for (DType t : {DType::kF32, DType::kI64, DType::kBool}) {
        const int layout = static_cast<int>(rng() % 4);
        Tensor x = random_tensor(rng, t, shape, layout);
        std::vector<int64_t> cut = shape;
        cut[static_cast<size_t>(dim)] = 4;
        Tensor index = random_tensor(rng, DType::kI64, cut, (layout + 1) % 4),
               src = random_tensor(rng, t, cut, (layout + 2) % 4);
        // -1 and n are outside on purpose.
        for (int64_t i = 0; i < index.numel(); ++i)
          index.set(i, static_cast<double>(static_cast<int64_t>(rng() % static_cast<unsigned>(n + 2)) - 1));
        std::vector<double> gathered, put = x.values(), added = x.values(), selected;
        for (int64_t i = 0; i < index.numel(); ++i) {
          const Place p = place(cut, dim, i);
          const int64_t j = static_cast<int64_t>(index.at(i));
          const bool inside = j >= 0 && j < n;
          const int64_t at = number(shape, dim, {p.before, inside ? j : 0, p.behind});
          gathered.push_back(inside ? x.at(at) : 0);
        }
        // In the order of the indices along the dim: the last one wins.
        for (int64_t along = 0; along < 4; ++along) {
          for (int64_t i = 0; i < index.numel(); ++i) {
            const Place p = place(cut, dim, i);
            const int64_t j = static_cast<int64_t>(index.at(i));
            if (p.along != along || j < 0 || j >= n) continue;
            const size_t at = static_cast<size_t>(number(shape, dim, {p.before, j, p.behind}));
            put[at] = src.at(i);
            added[at] = t == DType::kBool  ? added[at] != 0 || src.at(i) != 0
                        : t == DType::kF32 ? static_cast<float>(added[at] + src.at(i))
                                           : added[at] + src.at(i);
          }
        }
        check({"gather", {x, index}, {Tensor(t, cut)}, {{"dim", dim}}}, {gathered}, 0, 0, "gather");
        check({"scatter", {x, index, src}, {Tensor(t, shape)}, {{"dim", dim}, {"reduce", std::string()}}},
              {put}, 0, 0, "scatter");
        check(
            {"scatter", {x, index, src}, {Tensor(t, shape)}, {{"dim", dim}, {"reduce", std::string("add")}}},
            {added}, 0, 0, "scatter add");
        Tensor list(DType::kI64, {4}, {2}, 1);
        list.fill({static_cast<double>(n - 1), 0, -1, static_cast<double>(n)});
        for (int64_t i = 0; i < product(cut); ++i) {
          const Place p = place(cut, dim, i);
          const int64_t j = static_cast<int64_t>(list.at(p.along));
          selected.push_back(j < 0 || j >= n ? 0 : x.at(number(shape, dim, {p.before, j, p.behind})));
        }
        check({"index_select", {x, list}, {Tensor(t, cut)}, {{"dim", dim}}}, {selected}, 0, 0,
              "index_select");
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Fill, ArangeAndFull) {
  check({"arange", {}, {Tensor(DType::kI64, {5})}, {{"start", int64_t{3}}, {"step", int64_t{-2}}}},
        {{3, 1, -1, -3, -5}}, 0, 0, "arange");
  check({"arange", {}, {Tensor(DType::kF32, {3})}, {{"start", 0.5}, {"step", 0.25}}}, {{0.5, 0.75, 1}}, 0, 0,
        "arange");
  check({"full", {}, {Tensor(DType::kF32, {2, 2})}, {{"value", -INFINITY}}},
        {{-INFINITY, -INFINITY, -INFINITY, -INFINITY}}, 0, 0, "full");
  check({"full", {}, {Tensor(DType::kBool, {3})}, {{"value", int64_t{1}}}}, {{1, 1, 1}}, 0, 0, "full");
  check({"full", {}, {Tensor(DType::kI64, {})}, {{"value", int64_t{7}}}}, {{7}}, 0, 0, "full");
}

TEST(GenericOps, RejectWrongSpecs) {
  const Tensor x(DType::kF32, {2, 3}), y(DType::kF32, {2, 3}), i(DType::kI64, {2, 3});
  const std::vector<std::pair<Call, std::string>> cases = {
      {{"copy", {x}, {Tensor(DType::kF32, {3, 2})}, {}}, "expected y [2, 3], found [3, 2]"},
      {{"softmax", {x}, {y}, {{"dim", int64_t{2}}}}, "'dim' in [0, 1], found 2"},
      {{"softmax", {x}, {y}, {}}, "attribute 'dim': expected an integer, found none"},
      {{"topk", {x}, {y, i}, {{"dim", int64_t{1}}, {"k", int64_t{4}}, {"largest", true}}},
       "'k' in [1, 3], found 4"},
      {{"reduce",
        {x},
        {Tensor(DType::kF32, {2})},
        {{"kind", std::string("median")}, {"dims", std::vector<int64_t>{1}}, {"keepdim", false}}},
       "\"median\""},
      {{"reduce",
        {x},
        {Tensor(DType::kF32, {2})},
        {{"kind", std::string("sum")}, {"dims", std::vector<int64_t>{1, 1}}, {"keepdim", false}}},
       "different dims"},
      {{"cat", {x, Tensor(DType::kF32, {3, 3})}, {y}, {{"dim", int64_t{1}}}}, "differ along `dim` alone"},
      {{"matmul", {x, y}, {y}, {}}, "expected b [3, 3]"},
      {{"gather", {x, x}, {y}, {{"dim", int64_t{0}}}}, "index of dtype i64, found f32"},
      {{"scatter", {x, i, y}, {y}, {{"dim", int64_t{0}}, {"reduce", std::string("amax")}}},
       "reduce \"\" or \"add\""},
      {{"arange", {}, {Tensor(DType::kI64, {3})}, {{"start", 0.5}, {"step", int64_t{1}}}}, "whole start"},
  };
  for (const auto& [call, text] : cases) {
    const std::string found = message_of(call);
    EXPECT_NE(found.find(text), std::string::npos)
        << call.op << ": expected \"" << text << "\" in \"" << found << "\"";
    EXPECT_EQ(found.rfind("[" + call.op + "]", 0), 0u) << found;
  }
}

}  // namespace
}  // namespace autodeploy
