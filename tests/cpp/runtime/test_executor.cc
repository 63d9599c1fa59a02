// The executor on small programs: dynamic shapes, rows, composites, taps, storage taken over, errors, and no
// allocation in a step.
#include "runtime/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <functional>
#include <new>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "runtime/program_reader.h"

namespace {
std::atomic<int64_t> g_allocations{0};
}
__attribute__((noinline)) void* operator new(size_t n) {
  ++g_allocations;
  if (void* p = std::malloc(n ? n : 1)) return p;
  throw std::bad_alloc();
}
// The standard library's temporary buffers come through this one.
__attribute__((noinline)) void* operator new(size_t n, const std::nothrow_t&) noexcept {
  ++g_allocations;
  return std::malloc(n ? n : 1);
}
__attribute__((noinline)) void* operator new(size_t n, std::align_val_t a) {
  ++g_allocations;
  if (void* p =
          std::aligned_alloc(static_cast<size_t>(a), (n + static_cast<size_t>(a) - 1) /
                                                         static_cast<size_t>(a) * static_cast<size_t>(a)))
    return p;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, const std::nothrow_t&) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }

namespace autodeploy {
namespace {

using Json = nlohmann::json;

// A program under construction. Values 0 and 1 are token_ids and positions.
struct Builder {
  Json j = {{"format", "autodeploy.program"}, {"version", {{"major", 1}, {"minor", 0}}},
            {"metadata", Json::object()},     {"params", Json::array()},
            {"values", Json::array()},        {"inputs", {{"token_ids", 0}, {"positions", 1}}},
            {"outputs", Json::object()},      {"states", Json::array()},
            {"regions", Json::array()},       {"instructions", Json::array()}};
  Builder() {
    value("token_ids", "i64", {"T"});
    value("positions", "i64", {"T"});
  }
  int value(const std::string& name, const std::string& dtype, Json shape) {
    j["values"].push_back({{"name", name}, {"dtype", dtype}, {"shape", std::move(shape)}});
    return static_cast<int>(j["values"].size()) - 1;
  }
  int region(Json inputs, Json nodes, Json outputs) {
    j["regions"].push_back(
        {{"inputs", std::move(inputs)}, {"nodes", std::move(nodes)}, {"outputs", std::move(outputs)}});
    return static_cast<int>(j["regions"].size()) - 1;
  }
  static Json instruction(const std::string& op, Json in, Json out, Json attrs = Json::object(),
                          Json alias = Json::array()) {
    return {{"op", op},
            {"in", std::move(in)},
            {"out", std::move(out)},
            {"attrs", std::move(attrs)},
            {"alias", std::move(alias)},
            {"source", "model.py:" + op}};
  }
  template <class... Args>
  Json& add(Args&&... args) {
    j["instructions"].push_back(instruction(std::forward<Args>(args)...));
    return j["instructions"].back();
  }
  ProgramSpec read() const { return read_program(j.dump()); }
};

Json v(int i) { return {{"v", i}}; }

// One sequence of `tokens` tokens.
struct Step {
  std::vector<int64_t> ids, positions;
  std::vector<int32_t> query_start, kv_len, rows;
  StepBatch batch;
  Step(std::vector<int64_t> tokens, std::vector<int32_t> wanted)
      : ids(std::move(tokens)), rows(std::move(wanted)) {
    for (size_t i = 0; i < ids.size(); ++i) positions.push_back(static_cast<int64_t>(i));
    query_start = {0, static_cast<int32_t>(ids.size())};
    kv_len = {static_cast<int32_t>(ids.size())};
    batch.num_tokens = static_cast<int64_t>(ids.size());
    batch.num_seqs = 1;
    batch.num_rows = static_cast<int64_t>(rows.size());
    batch.token_ids = ids;
    batch.positions = positions;
    batch.query_start = query_start;
    batch.kv_len = kv_len;
    batch.rows = rows;
  }
};

ExecutorOptions options(ThreadPool& pool, int64_t max_tokens = 16) {
  ExecutorOptions o;
  o.max_tokens = o.max_rows = max_tokens;
  o.max_seqs = 4;
  o.max_seq_len = 64;
  o.pool = &pool;
  return o;
}

// x = cast(ids); y = x + positions; z = y * y (may take over y); w = [z, z] along dim 1; logits = rows of w.
Builder arithmetic() {
  Builder b;
  const int x = b.value("x", "f32", {"T", 4}), y = b.value("y", "f32", {"T", 4}),
            z = b.value("z", "f32", {"T", 4}), w = b.value("w", "f32", {"T", 8}),
            logits = b.value("logits", "f32", {"R", 8});
  const Json wide_ids = {{"v", 0}, {"shape", {"T", 4}}, {"strides", {1, 0}}, {"offset", 0}};
  const Json wide_positions = {{"v", 1}, {"shape", {"T", 4}}, {"strides", {1, 0}}, {"offset", 0}};
  const int cast = b.region({"i64"}, {{{"op", "cast"}, {"args", {0}}, {"dtype", "f32"}}}, {1});
  const int add = b.region({"f32", "i64"}, {{{"op", "add"}, {"args", {0, 1}}, {"dtype", "f32"}}}, {2});
  const int square = b.region({"f32"}, {{{"op", "square"}, {"args", {0}}, {"dtype", "f32"}}}, {1});
  b.add("region", Json{wide_ids}, Json{x}, Json{{"region", cast}});
  b.add("region", Json{v(x), wide_positions}, Json{y}, Json{{"region", add}}, Json{{0, 0}});
  b.add("region", Json{v(y)}, Json{z}, Json{{"region", square}}, Json{{0, 0}});
  b.add("cat", Json{v(z), v(z)}, Json{w}, Json{{"dim", 1}});
  b.add("select_rows", Json{v(w)}, Json{logits});
  b.j["outputs"]["logits"] = logits;
  return b;
}

double expected(const Step& s, int64_t token) {
  const double y =
      static_cast<double>(s.ids[static_cast<size_t>(token)] + s.positions[static_cast<size_t>(token)]);
  return y * y;
}

void check_logits(const Step& s, const TensorView& logits) {
  ASSERT_EQ(logits.ndim, 2);
  ASSERT_EQ(logits.shape[0], static_cast<int64_t>(s.rows.size()));
  ASSERT_EQ(logits.shape[1], 8);
  for (size_t r = 0; r < s.rows.size(); ++r) {
    for (int64_t c = 0; c < 8; ++c) {
      ASSERT_EQ(logits.as<float>()[static_cast<int64_t>(r) * 8 + c], expected(s, s.rows[r]))
          << "row " << r << " column " << c;
    }
  }
}

TEST(Executor, StepsOfDifferentSizes) {
  ThreadPool pool(2);
  Executor e(arithmetic().read());
  e.bind({}, {}, {}, options(pool));
  for (const Step& s : {Step({5, 6, 7}, {0, 2}), Step({1}, {0}), Step({1}, {0}),
                        Step({9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12, 13, 14, 15, 16}, {15}), Step({3, 4}, {}),
                        Step({3, 4}, {0, 1})}) {
    const TensorView logits = e.run(s.batch);
    check_logits(s, logits);
    EXPECT_EQ(logits.data == nullptr, s.rows.empty());
  }
}

TEST(Executor, TakesOverStorage) {
  ThreadPool pool(1);
  Executor e(arithmetic().read());
  e.bind({}, {}, {}, options(pool));
  const MemoryPlan& plan = e.memory_plan();
  EXPECT_EQ(plan.values[3].shares, 2) << "y takes over x";
  EXPECT_EQ(plan.values[4].shares, 3) << "z takes over y";
  EXPECT_EQ(plan.values[0].offset, -1) << "inputs are read where the caller holds them";
  EXPECT_EQ(plan.arena_bytes, plan.lower_bound);

  // With a second reader of y behind, z may not.
  Builder b = arithmetic();
  const int late = b.value("late", "f32", {"T", 4});
  b.add("copy", Json{v(3)}, Json{late});
  Executor f(b.read());
  f.bind({}, {}, {}, options(pool));
  EXPECT_EQ(f.memory_plan().values[4].shares, -1);
  const Step s({5, 6, 7}, {1});
  check_logits(s, f.run(s.batch));

  // Nor where the same instruction reads y through another view.
  Builder c = arithmetic();
  const int twice = c.region({"f32", "f32"}, {{{"op", "mul"}, {"args", {0, 1}}, {"dtype", "f32"}}}, {2});
  c.j["instructions"][2] = Builder::instruction(
      "region", Json{v(3), {{"v", 3}, {"shape", {"T", 4}}, {"strides", {4, 0}}, {"offset", 0}}}, Json{4},
      Json{{"region", twice}}, Json{{0, 0}});
  Executor g(c.read());
  g.bind({}, {}, {}, options(pool));
  EXPECT_EQ(g.memory_plan().values[4].shares, -1);
  check_logits(s, g.run(s.batch));
}

TEST(Executor, PoisonKeepsEveryValueApart) {
  ThreadPool pool(1);
  Executor e(arithmetic().read());
  ExecutorOptions o = options(pool);
  o.poison = true;
  e.bind({}, {}, {}, o);
  for (const PlannedValue& p : e.memory_plan().values) EXPECT_EQ(p.shares, -1);
  const Step s({5, 6, 7}, {0, 1, 2});
  check_logits(s, e.run(s.batch));
}

TEST(Executor, AllocatesNothingInAStep) {
  ThreadPool pool(2);
  Executor e(arithmetic().read());
  e.bind({}, {}, {}, options(pool));
  const Step a({5, 6, 7}, {0, 2}), b({1}, {0});
  e.run(a.batch);
  const int64_t before = g_allocations;
  for (int i = 0; i < 10; ++i) {
    e.run(a.batch);
    e.run(b.batch);
  }
  EXPECT_EQ(g_allocations - before, 0);
}

TEST(Executor, TapsSeeValuesBeforeTheyAreTakenOver) {
  ThreadPool pool(1);
  Executor e(arithmetic().read());
  e.bind({}, {}, {}, options(pool));
  const Step s({5, 6, 7}, {2});
  std::vector<std::pair<int32_t, std::vector<float>>> seen;
  e.run(s.batch, [&](int32_t value, const TensorView& view) {
    seen.emplace_back(value, std::vector<float>(view.as<float>(), view.as<float>() + view.numel()));
  });
  ASSERT_EQ(seen.size(), 5u);
  EXPECT_EQ(seen[0].first, 2);
  EXPECT_EQ(seen[0].second, (std::vector<float>{5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7}));
  EXPECT_EQ(seen[1].second, (std::vector<float>{5, 5, 5, 5, 7, 7, 7, 7, 9, 9, 9, 9}));
  EXPECT_EQ(seen[2].second[4], 49);
  EXPECT_EQ(seen[4].second, std::vector<float>(8, 81));
}

TEST(Executor, CompositesFallApartWhereNoKernelServesThem) {
  Builder b = arithmetic();
  Json composite = Builder::instruction(
      "add_and_square", Json{v(2), {{"v", 1}, {"shape", {"T", 4}}, {"strides", {1, 0}}, {"offset", 0}}},
      Json{4});
  composite["parts"] = Json{b.j["instructions"][1], b.j["instructions"][2]};
  b.j["instructions"][1] = composite;
  b.j["instructions"].erase(2);
  ThreadPool pool(1);
  Executor e(b.read());
  e.bind({}, {}, {}, options(pool));
  const Step s({5, 6, 7}, {0, 2});
  check_logits(s, e.run(s.batch));
  ASSERT_EQ(e.choices().size(), 5u);
  EXPECT_TRUE(e.choices()[1].part);
  EXPECT_EQ(e.choices()[1].instruction, 1);
  EXPECT_EQ(e.choices()[2].instruction, 1);
  EXPECT_FALSE(e.choices()[3].part);
  EXPECT_EQ(e.choices()[3].op, "cat");
}

TEST(Executor, FurtherInputsAndOutputs) {
  Builder b;
  const int x = b.value("x", "f32", {"T", 2}), y = b.value("y", "f32", {"2*T"});
  const int neg = b.region({"f32"}, {{{"op", "neg"}, {"args", {0}}, {"dtype", "f32"}}}, {1});
  b.j["inputs"]["x"] = x;
  b.j["outputs"]["y"] = y;
  b.add("region", Json{{{"v", x}, {"shape", {"2*T"}}, {"strides", {1}}, {"offset", 0}}}, Json{y},
        Json{{"region", neg}});
  ThreadPool pool(1);
  Executor e(b.read());
  e.bind({}, {}, {}, options(pool));
  const Step s({0, 0}, {});
  EXPECT_THROW(e.run(s.batch), Error) << "x has no data yet";
  const std::vector<float> data = {1, 2, 3, 4}, other = {5, 6, 7, 8};
  e.set_input("x", data.data());
  EXPECT_EQ(e.run(s.batch).data, nullptr) << "no logits";
  EXPECT_EQ(e.output("y").shape[0], 4);
  EXPECT_EQ(e.output("y").as<float>()[3], -4);
  e.set_input("x", other.data());
  e.run(s.batch);
  EXPECT_EQ(e.output("y").as<float>()[3], -8);
  EXPECT_THROW(e.set_input("z", data.data()), Error);
  EXPECT_THROW(e.set_input("token_ids", data.data()), Error);
  EXPECT_THROW(e.output("z"), Error);
}

TEST(Executor, ViewsWithOffsetsThatDependOnTheStep) {
  // The second half of a [2, T] value.
  Builder b;
  const int x = b.value("x", "i64", {2, "T"}), y = b.value("y", "i64", {"T"});
  b.j["outputs"]["y"] = y;
  b.add("cat",
        Json{{{"v", 0}, {"shape", {1, "T"}}, {"strides", {"T", 1}}, {"offset", 0}},
             {{"v", 1}, {"shape", {1, "T"}}, {"strides", {"T", 1}}, {"offset", 0}}},
        Json{x}, Json{{"dim", 0}});
  // A symbolic stride may not meet a symbolic dim, but offset and the stride of the static dim may depend on
  // T.
  b.add("copy", Json{{{"v", x}, {"shape", {"T"}}, {"strides", {1}}, {"offset", "T"}}}, Json{y});
  ThreadPool pool(1);
  Executor e(b.read());
  e.bind({}, {}, {}, options(pool));
  for (const Step& s : {Step({7, 7, 7}, {}), Step({7}, {}), Step({7, 7, 7, 7, 7}, {})}) {
    e.run(s.batch);
    for (int64_t i = 0; i < s.batch.num_tokens; ++i) EXPECT_EQ(e.output("y").as<int64_t>()[i], i);
  }
}

TEST(Executor, PlanSaysEverything) {
  ThreadPool pool(2);
  Executor e(arithmetic().read());
  e.bind({}, {}, {}, options(pool));
  const Json plan = Json::parse(e.plan_json());
  EXPECT_EQ(plan["limits"]["max_tokens"], 16);
  EXPECT_EQ(plan["limits"]["num_threads"], 2);
  EXPECT_EQ(plan["memory"]["arena"], e.memory_plan().arena_bytes);
  EXPECT_GT(plan["memory"]["workspace"], 0);
  EXPECT_EQ(plan["instructions"].size(), 5u);
  EXPECT_EQ(plan["instructions"][3]["kernel"], "cat");
  EXPECT_EQ(plan["instructions"][3]["source"], "model.py:cat");
  EXPECT_EQ(plan["values"].size(), 5u);
  EXPECT_EQ(plan["values"][1]["in_place_of"], 2);
}

std::string message_of(const std::function<void()>& f, ErrorKind kind) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), kind) << e.what();
    return e.what();
  }
  return "accepted";
}

TEST(Executor, RefusesWhatItCannotRun) {
  ThreadPool pool(1);
  {
    Builder b = arithmetic();
    b.j["values"][5]["shape"] = {"T", 9};  // cat gives 8 columns
    b.j["values"][6]["shape"] = {"R", 9};
    Executor e(b.read());
    const std::string m = message_of([&] { e.bind({}, {}, {}, options(pool)); }, ErrorKind::kInvalidArtifact);
    EXPECT_NE(
        m.find("[program.json: instruction 3 (cat), model.py:cat] [cat] expected y [T, 8], found [T, 9]"),
        std::string::npos)
        << m;
  }
  {
    Executor e(read_program(arithmetic().j.dump(), DType::kBF16));
    e.bind({}, {}, {}, options(pool));  // all float32
    EXPECT_EQ(e.choices().size(), 5u);
  }
  {
    Builder b = arithmetic();
    b.j["values"][2]["dtype"] = b.j["values"][3]["dtype"] = b.j["values"][4]["dtype"] =
        b.j["values"][5]["dtype"] = b.j["values"][6]["dtype"] = "act";
    for (Json& r : b.j["regions"])
      r = Json::parse([&] {
        std::string t = r.dump();
        for (size_t i; (i = t.find("f32")) != std::string::npos;) t.replace(i, 3, "act");
        return t;
      }());
    Executor e(read_program(b.j.dump(), DType::kBF16));
    const std::string m = message_of([&] { e.bind({}, {}, {}, options(pool)); }, ErrorKind::kUnsupported);
    EXPECT_NE(m.find("expected a kernel for region, found none that serves it; region.avx512: computes "
                     "float32, i64 and bool only"),
              std::string::npos)
        << m;
  }
  {
    Builder b = arithmetic();
    b.j["params"].push_back({{"name", "w"}, {"shape", {4}}, {"dtype", "f32"}});
    b.j["instructions"][1]["in"][0] = {{"p", 0}, {"shape", {"T", 4}}, {"strides", {0, 1}}, {"offset", 0}};
    b.j["instructions"][1].erase("alias");
    Executor e(b.read());
    EXPECT_NE(message_of([&] { e.bind({}, {}, {}, options(pool)); }, ErrorKind::kInvalidArgument)
                  .find("expected 1 params, found 0"),
              std::string::npos);
    const ParamBinding none[1] = {};
    EXPECT_NE(message_of([&] { e.bind(none, {}, {}, options(pool)); }, ErrorKind::kInvalidArtifact)
                  .find("param 'w' in plain form"),
              std::string::npos);
  }
  Executor e(arithmetic().read());
  EXPECT_NE(message_of([&] { e.bind({}, {}, {}, options(pool, 0)); }, ErrorKind::kInvalidArgument)
                .find("max_tokens from 1"),
            std::string::npos);
  EXPECT_NE(
      message_of([&] { e.run(Step({1}, {}).batch); }, ErrorKind::kInvalidArgument).find("bind before run"),
      std::string::npos);
  e.bind({}, {}, {}, options(pool, 2));
  EXPECT_NE(message_of([&] { e.run(Step({1, 2, 3}, {}).batch); }, ErrorKind::kInvalidArgument)
                .find("num_tokens from 1 to 2, found 3"),
            std::string::npos);
  Step odd({1, 2}, {});
  odd.batch.num_tokens = 1;
  EXPECT_NE(message_of([&] { e.run(odd.batch); }, ErrorKind::kInvalidArgument).find("spans"),
            std::string::npos);
}

TEST(Executor, TooLargeAPlanIsAnError) {
  Builder b;
  const int x = b.value("x", "f32", {"T", int64_t{1} << 28}),
            y = b.value("y", "f32", {"T", int64_t{1} << 28});
  b.add("full", Json::array(), Json{x}, Json{{"value", 0}});
  b.add("copy", Json{v(x)}, Json{y});
  ThreadPool pool(1);
  Executor e(b.read());
  EXPECT_NE(message_of([&] { e.bind({}, {}, {}, options(pool, 1 << 20)); }, ErrorKind::kOutOfMemory)
                .find("lower max_tokens"),
            std::string::npos);
}

}  // namespace
}  // namespace autodeploy
