// Recurrences of one layer, in chunks and token by token: bench_scans [threads] [tokens] [isa: 0 portable, 1
// avx2, 3 avx512]
#include <cstdio>

#include "bench_util.h"
#include "kernels/cpu/scan_form.h"

namespace autodeploy::bench {
namespace {

using namespace autodeploy::testing;

// Multiplications and additions per second of a loop that does nothing else, on all threads.
double peak_flops(ThreadPool& pool) {
  constexpr int64_t kRounds = 1 << 20;
  using Wide = float __attribute__((vector_size(64)));
  std::vector<float> keep(static_cast<size_t>(pool.num_threads()) * 16);
  const double t = best_of([&] {
    pool.run([&](int thread) __attribute__((target("avx512f,fma"), optimize("fp-contract=fast"))) {
      Wide a[12];
      for (Wide& x : a) x = Wide{} + 1.0f;
      const Wide m = Wide{} + 0.999f, b = Wide{} + 0.001f;
      for (int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
        for (Wide& x : a) x = x * m + b;
      }
      Wide sum{};
      for (const Wide& x : a) sum += x;
      keep[static_cast<size_t>(thread) * 16] = sum[0];
    });
  });
  volatile float k = keep[0];
  static_cast<void>(k);
  return static_cast<double>(kRounds) * 12 * 16 * 2 * pool.num_threads() / t;
}

struct Case {
  KernelSpec spec;
  std::vector<Tensor> in;
  Tensor out;
  int64_t tokens = 0;

  void add(Tensor t, bool per_token = true) {
    in.push_back(per_token ? over_tokens(std::move(t)) : std::move(t));
    spec.in.push_back(spec_of(in.back()));
  }
  void finish(const char* op, std::vector<int64_t> result, std::vector<int64_t> state, int threads) {
    spec.op = op;
    out = over_tokens(make_tensor(std::move(result)));
    spec.out = {spec_of(out)};
    StateSpec s;
    s.kind = StateSpec::Kind::kSlot;
    s.components = {{"h", std::move(state), DType::kF32}};
    spec.states = {s};
    spec.max_tokens = spec.max_seq_len = tokens;
    spec.max_seqs = 1;
    spec.num_threads = threads;
  }

  // Another component of the state.
  void add_state(std::vector<int64_t> shape) {
    spec.states[0].components.push_back({"more", std::move(shape), DType::kF32});
  }

  double seconds(const Kernel& kernel, ThreadPool& pool) {
    std::vector<AlignedBytes> slots;
    StateMemory memory;
    for (const StateComponentSpec& component : spec.states[0].components) {
      int64_t bytes = 4;
      for (int64_t d : component.shape) bytes *= d;
      slots.push_back(aligned_bytes(2 * bytes));
      memory.data.push_back(slots.back().get());
      memory.bytes.push_back(bytes);
    }
    const std::vector<int32_t> query_start = {0, static_cast<int32_t>(tokens)}, kv_len = {query_start[1]},
                               slot = {1};
    const std::vector<uint8_t> has_state = {0};
    StepBatch batch;
    batch.num_tokens = tokens, batch.num_seqs = 1;
    batch.query_start = query_start, batch.kv_len = kv_len, batch.slot = slot, batch.has_state = has_state;
    const AlignedBytes workspace = aligned_bytes(kernel.workspace_bytes() + 64);
    std::vector<TensorView> views;
    for (Tensor& t : in) views.push_back(t.view());
    const TensorView outs[] = {out.view()};
    const StateMemory* states[] = {&memory};
    KernelCall call;
    call.in = views, call.out = outs, call.states = states, call.batch = &batch;
    call.workspace = workspace.get(), call.pool = &pool;
    pool.begin_step();
    const double t = best_of([&] { kernel.run(call); }, 0.2);
    pool.end_step();
    return t;
  }
};

using Make = std::unique_ptr<Kernel> (*)(const KernelSpec&, std::string*, Isa, ScanForm);

// In turns, so that other loads of the machine meet all of them alike.
void bench(const char* name, Case& c, Make make, Isa isa, ThreadPool& pool, double flops) {
  const std::unique_ptr<Kernel> one = make(c.spec, nullptr, isa, ScanForm::kTokens),
                                best = make(c.spec, nullptr, isa, ScanForm::kBest);
  double one_time = 1e9, best_time = 1e9, peak = 0.0;
  for (int round = 0; round < 5; ++round) {
    one_time = std::min(one_time, c.seconds(*one, pool));
    best_time = std::min(best_time, c.seconds(*best, pool));
    peak = std::max(peak, peak_flops(pool));
  }
  std::printf(
      "%-34s %4ld tokens: token by token %8.1f us, chosen %8.1f us (%.2f x), floor %8.1f us at %.1f "
      "GFLOP/s\n",
      name, static_cast<long>(c.tokens), one_time * 1e6, best_time * 1e6, one_time / best_time,
      flops / peak * 1e6, peak / 1e9);
}

void run(int threads, int64_t tokens, Isa isa, int64_t share) {
  ThreadPool pool(threads);
  Random random(1);
  const double count = static_cast<double>(tokens);
  {
    const int64_t h = 80 / share, p = 64, g = 1, n = 128;
    Case c;
    c.tokens = tokens;
    c.add(random_tensor(random, {tokens, h, p}));
    c.add(random_tensor(random, {tokens, h}));
    c.add(random_tensor(random, {h}), false);
    for (int64_t i = 0; i < h; ++i) c.in[2][i] = -1.0f - static_cast<float>(i % 16);
    c.add(random_tensor(random, {tokens, g, n}));
    c.add(random_tensor(random, {tokens, g, n}));
    c.add(random_tensor(random, {h}), false);
    c.add(random_tensor(random, {h}), false);
    c.spec.attrs.set("softplus", true);
    c.spec.attrs.set("dt_min", 0.0);
    c.spec.attrs.set("dt_max", 1e30);
    c.finish("ssd", {tokens, h, p}, {h, p, n}, threads);
    // The recurrence itself: h and y take one multiplication and addition each.
    bench("ssd heads of 64 x 128, 80", c, make_ssd, isa, pool, count * h * p * n * 4);
  }
  for (const bool per_channel : {false, true}) {
    const int64_t hk = 16 / share, hv = 32 / share, d = 128;
    Case c;
    c.tokens = tokens;
    for (int64_t heads : {hk, hk, hv}) c.add(random_tensor(random, {tokens, heads, d}));
    using Shape = std::vector<int64_t>;
    c.add(random_tensor(random, per_channel ? Shape{tokens, hv, d} : Shape{tokens, hv}));
    c.add(random_tensor(random, {tokens, hv}));
    for (int64_t i = 0; i < tokens * hv * (per_channel ? d : 1); ++i)
      c.in[3][i] = -0.1f * std::abs(c.in[3][i]);
    for (int64_t i = 0; i < tokens * hv; ++i) c.in[4][i] = 1.0f / (1.0f + std::exp(c.in[4][i]));
    c.spec.attrs.set("scale", 0.0883883);
    c.spec.attrs.set("l2norm", true);
    c.spec.attrs.set("eps", 1e-6);
    c.finish("gated_delta_rule", {tokens, hv, d}, {hv, d, d}, threads);
    // k S, the correction of S, and q S.
    bench(per_channel ? "gated_delta_rule by channel, heads of 128, 32" : "gated_delta_rule heads of 128, 32",
          c, make_gated_delta_rule, isa, pool, count * hv * d * d * 6);
  }
  {
    const int64_t h = 64 / share, d = 128;
    Case c;
    c.tokens = tokens;
    for (int i = 0; i < 3; ++i) c.add(random_tensor(random, {tokens, h, d}));
    c.spec.in.push_back({});  // no gate
    c.in.emplace_back();
    c.add(random_tensor(random, {h}), false);
    for (int64_t i = 0; i < h; ++i) c.in[4][i] = -0.01f * static_cast<float>(i % 16 + 1);
    c.spec.attrs.set("scale", 1.0);
    c.finish("linear_attention", {tokens, h, d}, {h, d, d}, threads);
    bench("linear_attention heads of 128, 64", c, make_linear_attention, isa, pool, count * h * d * d * 4);
  }
  {
    const int64_t h = 8, k = 256, v = 512;
    Case c;
    c.tokens = tokens;
    for (int64_t width : {k, k, v}) c.add(random_tensor(random, {tokens, h, width}));
    for (int i = 0; i < 2; ++i) c.add(random_tensor(random, {tokens, h}));
    c.spec.attrs.set("scale", 0.0625);
    c.spec.attrs.set("eps", 1e-6);
    c.finish("mlstm", {tokens, h, v}, {h, k, v}, threads);
    c.add_state({h, k});
    c.add_state({h});
    bench("mlstm heads of 256 x 512, 8", c, make_mlstm, isa, pool, count * h * k * v * 4);
  }
}

}  // namespace
}  // namespace autodeploy::bench

int main(int argc, char** argv) {
  const auto arg = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  autodeploy::bench::run(arg(1, 1), arg(2, 512), static_cast<autodeploy::Isa>(arg(3, 3)), arg(4, 1));
}
