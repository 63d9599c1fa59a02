// Recurrences with two forms: chunks, single tokens and any cuts of a prefill agree; threads change no bit.
#include <gtest/gtest.h>

#include "kernel_harness.h"
#include "kernels/cpu/scan_form.h"

namespace autodeploy::testing {
namespace {

constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512};
constexpr int64_t kSlots = 3;

// Operands of `tokens` tokens in all; a step takes some rows of those that have tokens.
struct Model {
  KernelSpec spec;
  std::vector<Tensor> in;
  std::vector<bool> per_token;
  std::vector<int64_t> result;  // of one token
  int64_t state_floats = 1;

  void add(Tensor t, bool rows) {
    spec.in.push_back(spec_of(rows ? over_tokens(t) : t));
    in.push_back(std::move(t));
    per_token.push_back(rows);
  }
  void add_none() {
    spec.in.emplace_back();
    in.emplace_back();
    per_token.push_back(false);
  }
  void finish(const char* op, std::vector<int64_t> per_token_result, std::vector<int64_t> state,
              int64_t max_tokens, int threads) {
    spec.op = op;
    result = std::move(per_token_result);
    std::vector<int64_t> shape = {max_tokens};
    shape.insert(shape.end(), result.begin(), result.end());
    spec.out = {spec_of(over_tokens(make_tensor(shape)))};
    for (int64_t d : state) state_floats *= d;
    StateSpec s;
    s.kind = StateSpec::Kind::kSlot;
    s.components = {{"h", std::move(state), DType::kF32}};
    spec.states = {s};
    spec.max_tokens = spec.max_seq_len = max_tokens;
    spec.max_seqs = kSlots;
    spec.num_threads = threads;
  }
};

Model make_ssd_model(Random& random, int64_t tokens, float rate, int threads) {
  const int64_t h = 4, p = 20, g = 2, n = 24;
  Model m;
  m.add(random_tensor(random, {tokens, h, p}, 3), true);
  m.add(random_tensor(random, {tokens, h}, 5), true);
  m.add(random_tensor(random, {h}), false);
  for (int64_t i = 0; i < h; ++i) m.in[2][i] = -rate * (0.1f + std::abs(m.in[2][i]));
  m.add(random_tensor(random, {tokens, g, n}, 1), true);
  m.add(random_tensor(random, {tokens, g, n}), true);
  m.add(random_tensor(random, {h, p}), false);
  m.add(random_tensor(random, {h}), false);
  m.spec.attrs.set("softplus", true);
  m.spec.attrs.set("dt_min", 0.0);
  m.spec.attrs.set("dt_max", 1e30);
  m.finish("ssd", {h, p}, {h, p, n}, tokens, threads);
  return m;
}

// `per_channel`: a decay for each channel of the keys, not one per head.
Model make_delta(Random& random, int64_t tokens, float rate, int threads, bool per_channel) {
  const int64_t hk = 2, hv = 4, dk = 20, dv = 70;
  Model m;
  for (int64_t heads : {hk, hk}) m.add(random_tensor(random, {tokens, heads, dk}, 3), true);
  m.add(random_tensor(random, {tokens, hv, dv}, 2), true);
  if (rate > 0.0f) {
    using Shape = std::vector<int64_t>;
    m.add(random_tensor(random, per_channel ? Shape{tokens, hv, dk} : Shape{tokens, hv}, 1), true);
    for (int64_t i = 0; i < tokens * hv * (per_channel ? dk : 1); ++i)
      m.in[3][i] = -rate * std::abs(m.in[3][i]);
  } else {
    m.add_none();
  }
  m.add(random_tensor(random, {tokens, hv}), true);
  for (int64_t i = 0; i < tokens * hv; ++i) m.in[4][i] = 1.0f / (1.0f + std::exp(m.in[4][i]));
  m.spec.attrs.set("scale", 0.25);
  m.spec.attrs.set("l2norm", true);
  m.spec.attrs.set("eps", 1e-6);
  m.finish("gated_delta_rule", {hv, dv}, {hv, dk, dv}, tokens, threads);
  return m;
}

Model make_delta_model(Random& random, int64_t tokens, float rate, int threads) {
  return make_delta(random, tokens, rate, threads, false);
}

Model make_channel_delta_model(Random& random, int64_t tokens, float rate, int threads) {
  return make_delta(random, tokens, rate, threads, true);
}

// Results of the sequences whose lengths these are, each step taking `cuts[step][i]` tokens of sequence i.
std::vector<float> run_steps(Model& m, const Kernel& kernel, const std::vector<int64_t>& lengths,
                             const std::vector<std::vector<int64_t>>& cuts, int threads) {
  const AlignedBytes slots = aligned_bytes((kSlots + 1) * 4 * m.state_floats);
  std::memset(slots.get(), 0xff, static_cast<size_t>((kSlots + 1) * 4 * m.state_floats));  // NaN
  const StateMemory memory{{slots.get()}, {4 * m.state_floats}};
  int64_t row = 1;
  for (int64_t d : m.result) row *= d;
  std::vector<int64_t> first = {0}, past(lengths.size(), 0);
  for (int64_t n : lengths) first.push_back(first.back() + n);
  std::vector<float> all(static_cast<size_t>(first.back() * row));
  for (const std::vector<int64_t>& cut : cuts) {
    std::vector<int32_t> query_start = {0}, kv_len, slot;
    std::vector<uint8_t> has_state;
    std::vector<int64_t> tokens;  // of the whole
    std::vector<size_t> who;
    for (size_t s = 0; s < cut.size(); ++s) {
      if (cut[s] == 0) continue;
      for (int64_t t = 0; t < cut[s]; ++t) tokens.push_back(first[s] + past[s] + t);
      query_start.push_back(static_cast<int32_t>(tokens.size()));
      has_state.push_back(past[s] > 0);
      past[s] += cut[s];
      kv_len.push_back(static_cast<int32_t>(past[s]));
      slot.push_back(static_cast<int32_t>(s + 1));
    }
    std::vector<Tensor> rows;
    for (size_t i = 0; i < m.in.size(); ++i) {
      rows.push_back(m.in[i]);
      if (!m.per_token[i]) continue;
      const int64_t stride = m.in[i].stride[0];
      for (size_t t = 0; t < tokens.size(); ++t) {
        std::memcpy(rows.back().data.data() + static_cast<int64_t>(t) * stride,
                    m.in[i].data.data() + tokens[t] * stride, static_cast<size_t>(stride) * sizeof(float));
      }
      rows.back().shape[0] = static_cast<int64_t>(tokens.size());
    }
    std::vector<int64_t> shape = {static_cast<int64_t>(tokens.size())};
    shape.insert(shape.end(), m.result.begin(), m.result.end());
    Tensor out = make_tensor(shape);
    StepBatch batch;
    batch.num_tokens = static_cast<int64_t>(tokens.size()),
    batch.num_seqs = static_cast<int64_t>(slot.size());
    batch.query_start = query_start, batch.kv_len = kv_len, batch.slot = slot, batch.has_state = has_state;
    std::vector<TensorView> views;
    for (Tensor& t : rows) views.push_back(t.shape.empty() ? TensorView{} : t.view());
    run_kernel(kernel, views, {out.view()}, threads, &batch, {&memory});
    for (size_t t = 0; t < tokens.size(); ++t)
      std::memcpy(all.data() + tokens[t] * row, out.data.data() + static_cast<int64_t>(t) * row,
                  static_cast<size_t>(row) * sizeof(float));
  }
  return all;
}

void expect_near(const std::vector<float>& found, const std::vector<float>& expected,
                 const std::string& what) {
  float top = 0.0f, worst = 0.0f;
  for (float x : expected) top = std::max(top, std::abs(x));
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_TRUE(std::isfinite(found[i])) << what << " at " << i;
    worst = std::max(worst, std::abs(found[i] - expected[i]));
  }
  EXPECT_LE(worst, 1e-5f * top) << what;
}

using MakeModel = Model (*)(Random&, int64_t, float, int);
using MakeKernel = std::unique_ptr<Kernel> (*)(const KernelSpec&, std::string*, Isa, ScanForm);

void check(MakeModel make_model, MakeKernel make_kernel, const std::vector<float>& rates) {
  Random random(7);
  for (Isa isa : kIsas) {
    if (!isa_available(isa)) continue;
    for (float rate : rates) {
      for (const std::vector<int64_t>& lengths :
           {std::vector<int64_t>{1}, {15, 16}, {17, 3, 63}, {64, 65}, {130, 1, 40}}) {
        int64_t total = 0;
        for (int64_t n : lengths) total += n;
        Model m = make_model(random, total, rate, 3);
        const std::string what = std::string(isa_name(isa)) + " rate " + std::to_string(rate) + " of " +
                                 std::to_string(lengths[0]) + " tokens and more";
        const auto one = make_kernel(m.spec, nullptr, isa, ScanForm::kTokens),
                   best = make_kernel(m.spec, nullptr, isa, ScanForm::kBest);
        const std::vector<float> expected = run_steps(m, *one, lengths, {lengths}, 1);
        const std::vector<float> whole = run_steps(m, *best, lengths, {lengths}, 1);
        expect_near(whole, expected, what);
        EXPECT_EQ(whole, run_steps(m, *best, lengths, {lengths}, 3)) << what;
        for (int round = 0; round < 3; ++round) {
          std::vector<std::vector<int64_t>> cuts;
          std::vector<int64_t> left = lengths;
          for (int64_t rest = total; rest > 0;) {
            cuts.emplace_back();
            for (int64_t& n : left) {
              const int64_t take = random.below(n + 1);
              cuts.back().push_back(take);
              n -= take, rest -= take;
            }
            if (std::all_of(cuts.back().begin(), cuts.back().end(), [](int64_t n) { return n == 0; }))
              cuts.pop_back();
          }
          expect_near(run_steps(m, *best, lengths, cuts, 2), expected, what + ", cut");
        }
      }
    }
  }
}

TEST(Scans, SsdFormsCutsAndThreadsAgree) { check(make_ssd_model, make_ssd, {0.01f, 1.0f, 100.0f}); }
TEST(Scans, GatedDeltaRuleFormsCutsAndThreadsAgree) {
  check(make_delta_model, make_gated_delta_rule, {0.0f, 0.05f, 1.0f, 100.0f});
}
TEST(Scans, GatedDeltaRuleByChannelFormsCutsAndThreadsAgree) {
  check(make_channel_delta_model, make_gated_delta_rule, {0.05f, 1.0f, 100.0f});
}

}  // namespace
}  // namespace autodeploy::testing
