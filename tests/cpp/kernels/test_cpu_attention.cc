#include <gtest/gtest.h>

#include <map>

#include "core/error.h"
#include "kernel_harness.h"

namespace autodeploy::testing {
namespace {

struct Geometry {
  const char* title;
  int64_t q_heads, kv_heads, d, dv, page_size;
  int64_t window = 0, chunk = 0;
  double softcap = 0;
  bool sinks = false, causal = true;
};

// The sequences of a test: their keys so far, and pages of a shared pool handed out in a scattered order.
class Sequences {
 public:
  Sequences(const Geometry& g, int64_t num_seqs, int64_t max_len, Random& random)
      : g_(g), num_seqs_(num_seqs) {
    max_pages_ = (max_len + g.page_size - 1) / g.page_size;
    const int64_t pool = num_seqs * max_pages_ + 1;
    for (int64_t p = 1; p < pool; ++p) free_.push_back(static_cast<int32_t>(p));
    for (size_t i = free_.size(); i-- > 1;)
      std::swap(free_[i], free_[static_cast<size_t>(random.below(static_cast<int64_t>(i) + 1))]);
    memory_.bytes = {g.page_size * g.kv_heads * g.d * 4, g.page_size * g.kv_heads * g.dv * 4};
    for (int c = 0; c < 2; ++c) {
      pools_.push_back(aligned_bytes(pool * memory_.bytes[static_cast<size_t>(c)]));
      std::memset(pools_.back().get(), 0xff,
                  static_cast<size_t>(pool * memory_.bytes[static_cast<size_t>(c)]));  // NaN
      memory_.data.push_back(pools_.back().get());
    }
    pages_.assign(static_cast<size_t>(num_seqs * max_pages_), 0);
    keys_.resize(static_cast<size_t>(num_seqs));
    values_.resize(static_cast<size_t>(num_seqs));
  }

  // One step of new_tokens[i] tokens; returns the reference result.
  std::vector<double> step(const std::vector<int64_t>& new_tokens, const Tensor& q, const Tensor& k,
                           const Tensor& v, const Tensor& sinks, double scale, bool with_reference) {
    query_start_ = {0};
    kv_len_.clear();
    std::vector<double> want;
    for (size_t s = 0; s < new_tokens.size(); ++s) {
      const int64_t start = query_start_.back(), n = new_tokens[s];
      query_start_.push_back(static_cast<int32_t>(start + n));
      for (int64_t t = start; t < start + n; ++t) {
        for (int64_t i = 0; i < g_.kv_heads * g_.d; ++i) keys_[s].push_back(k[t * g_.kv_heads * g_.d + i]);
        for (int64_t i = 0; i < g_.kv_heads * g_.dv; ++i)
          values_[s].push_back(v[t * g_.kv_heads * g_.dv + i]);
      }
      const int64_t len = static_cast<int64_t>(keys_[s].size()) / (g_.kv_heads * g_.d);
      kv_len_.push_back(static_cast<int32_t>(len));
      int32_t* row = pages_.data() + static_cast<int64_t>(s) * max_pages_;
      // What lies before the first new query's window is gone, and its page null.
      const int64_t oldest = g_.window  ? std::max<int64_t>(len - n - g_.window + 1, 0)
                             : g_.chunk ? (len - n) / g_.chunk * g_.chunk
                                        : 0;
      for (int64_t p = 0; p < max_pages_; ++p) {
        if ((p + 1) * g_.page_size <= oldest) {
          row[p] = 0;
        } else if (p * g_.page_size < len && row[p] == 0) {
          row[p] = free_.back();
          free_.pop_back();
        }
      }
      for (int64_t t = 0; with_reference && t < n; ++t)
        reference(s, len - n + t, q, start + t, sinks, scale, &want);
    }
    table_ = {static_cast<int32_t>(g_.page_size), static_cast<int32_t>(max_pages_), pages_};
    batch_.num_tokens = query_start_.back();
    batch_.num_seqs = static_cast<int64_t>(new_tokens.size());
    batch_.query_start = query_start_;
    batch_.kv_len = kv_len_;
    batch_.page_tables = std::span(&table_, 1);
    return want;
  }
  const StepBatch& batch() const { return batch_; }
  const StateMemory& memory() const { return memory_; }

 private:
  void reference(size_t s, int64_t i, const Tensor& q, int64_t token, const Tensor& sinks, double scale,
                 std::vector<double>* want) const {
    const int64_t len = kv_len_.back();
    for (int64_t h = 0; h < g_.q_heads; ++h) {
      const int64_t kh = h / (g_.q_heads / g_.kv_heads);
      std::vector<double> p(static_cast<size_t>(len), -HUGE_VAL);
      double top = sinks.data.empty() ? -HUGE_VAL : double{sinks[h]};
      for (int64_t j = 0; j < len; ++j) {
        if ((g_.causal && j > i) || (g_.window && i - j >= g_.window) ||
            (g_.chunk && i / g_.chunk != j / g_.chunk))
          continue;
        double score = 0;
        for (int64_t c = 0; c < g_.d; ++c) {
          score += double{q[(token * g_.q_heads + h) * g_.d + c]} *
                   keys_[s][static_cast<size_t>((j * g_.kv_heads + kh) * g_.d + c)];
        }
        score *= scale;
        if (g_.softcap > 0) score = g_.softcap * std::tanh(score / g_.softcap);
        p[static_cast<size_t>(j)] = score;
        top = std::max(top, score);
      }
      double total = sinks.data.empty() ? 0 : std::exp(sinks[h] - top);
      for (double& x : p) total += x = std::exp(x - top);
      for (int64_t c = 0; c < g_.dv; ++c) {
        double sum = 0;
        for (int64_t j = 0; j < len; ++j) {
          if (p[static_cast<size_t>(j)] > 0)
            sum += p[static_cast<size_t>(j)] *
                   values_[s][static_cast<size_t>((j * g_.kv_heads + kh) * g_.dv + c)];
        }
        want->push_back(sum / total);
      }
    }
  }

  Geometry g_;
  int64_t num_seqs_, max_pages_;
  std::vector<int32_t> free_, pages_, query_start_, kv_len_;
  std::vector<AlignedBytes> pools_;
  StateMemory memory_;
  StepBatch::PageTable table_;
  StepBatch batch_;
  std::vector<std::vector<float>> keys_, values_;
};

KernelSpec make_spec(const Geometry& g, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& sinks, const Tensor& out, double scale) {
  KernelSpec spec;
  spec.op = "attention";
  spec.in = {spec_of(q), spec_of(k), spec_of(v), g.sinks ? spec_of(sinks) : OperandSpec{}, {}, {}, {}};
  spec.out = {spec_of(out)};
  spec.attrs.set("scale", scale);
  spec.attrs.set("causal", g.causal);
  spec.attrs.set("window", g.window);
  spec.attrs.set("chunk", g.chunk);
  spec.attrs.set("softcap", g.softcap);
  StateSpec state;
  state.name = "kv";
  state.components = {{"k", {g.kv_heads, g.d}, DType::kF32}, {"v", {g.kv_heads, g.dv}, DType::kF32}};
  state.group = 0;
  state.page_size = static_cast<int32_t>(g.page_size);
  spec.states = {state};
  spec.max_tokens = 700;
  spec.max_seqs = 5;
  spec.max_seq_len = 1500;
  spec.num_threads = 2;
  return spec;
}

using Steps = std::vector<std::vector<int64_t>>;  // new tokens of each sequence, step by step

void check(const Geometry& g, const Steps& steps, uint64_t seed, float sharp = 1.0f, float apart = 0.0f) {
  std::vector<std::vector<double>> wants(steps.size());  // the same for all kernels
  for (const KernelEntry* entry : kernels_of("attention")) {
    Random random(seed);
    std::vector<std::unique_ptr<Sequences>> worlds;  // one for each number of threads
    std::vector<int64_t> total(steps[0].size(), 0);
    for (const auto& s : steps) {
      for (size_t i = 0; i < s.size(); ++i) total[i] += s[i];
    }
    const int64_t longest = *std::max_element(total.begin(), total.end());
    for (uint64_t i = 0; i < 2; ++i) {
      Random scatter(seed + 1 + i);
      worlds.push_back(std::make_unique<Sequences>(g, static_cast<int64_t>(total.size()), longest, scatter));
    }
    Tensor sinks;
    if (g.sinks) sinks = random_tensor(random, {g.q_heads});
    const double scale = 1.0 / std::sqrt(static_cast<double>(g.d));
    for (size_t step = 0; step < steps.size(); ++step) {
      int64_t tokens = 0;
      for (int64_t n : steps[step]) tokens += n;
      // Views on rows with gaps, as parts of a fused projection are.
      Tensor q = over_tokens(random_tensor(random, {tokens, g.q_heads, g.d}, 11, sharp)),
             k = over_tokens(random_tensor(random, {tokens, g.kv_heads, g.d}, 5));
      Tensor v = over_tokens(random_tensor(random, {tokens, g.kv_heads, g.dv}, 3));
      // Apart: every score is very negative.
      for (int64_t i = 0; i < q.numel(); ++i) q[i] -= apart;
      for (int64_t i = 0; i < k.numel(); ++i) k[i] += apart;
      Tensor out = over_tokens(make_tensor({tokens, g.q_heads, g.dv}));
      std::unique_ptr<Kernel> kernel = entry->make(make_spec(g, q, k, v, sinks, out, scale), nullptr);
      if (!kernel) break;
      Tensor one;
      for (int threads : {1, 2}) {
        Sequences& world = *worlds[static_cast<size_t>(threads - 1)];
        const bool first = wants[step].empty();
        const std::vector<double> reference = world.step(steps[step], q, k, v, sinks, scale, first);
        if (first) wants[step] = reference;
        const std::vector<double>& want = wants[step];
        out.data.assign(out.data.size(), -7.0f);
        run_kernel(*kernel, {q.view(), k.view(), v.view(), g.sinks ? sinks.view() : TensorView{}},
                   {out.view()}, threads, &world.batch(), {&world.memory()});
        ASSERT_EQ(first_difference(out, want, 4e-6 * sharp * sharp * (1 + 10 * apart), 4e-6), "")
            << entry->name << " " << g.title << " step " << step;
        if (threads == 1) one = out;
        ASSERT_TRUE(same_bits(one, out)) << entry->name << " " << g.title << ": two threads differ from one";
      }
    }
  }
}

TEST(CpuAttention, Geometries) {
  const Geometry all[] = {
      {"grouped", 6, 2, 32, 32, 16},
      {"grouped, page of 32", 9, 3, 64, 64, 32},
      {"odd page", 4, 2, 16, 16, 5},
      {"page of 48", 4, 4, 24, 24, 48},
      {"one key head", 9, 1, 40, 40, 16},
      {"many heads on one", 71, 1, 16, 16, 16},
      {"odd widths", 4, 2, 17, 13, 16},
      {"value narrower", 4, 4, 48, 24, 16},
      {"value wider", 4, 2, 16, 200, 32},
      {"one wide", 2, 1, 1, 1, 16},
      {"window", 4, 2, 32, 32, 16, 5},
      {"window of one", 2, 1, 16, 16, 16, 1},
      {"long window", 2, 2, 16, 16, 16, 70},
      {"chunk", 4, 2, 32, 32, 16, 0, 4},
      {"long chunk", 2, 1, 16, 16, 32, 0, 100},
      {"softcap", 4, 2, 32, 32, 16, 0, 0, 2.5},
      {"sinks", 6, 3, 32, 32, 16, 0, 0, 0, true},
      {"all", 4, 2, 32, 24, 16, 6, 0, 3.0, true},
  };
  uint64_t seed = 1;
  for (const Geometry& g : all) {
    check(g, {{1, 5, 17}, {1, 1, 1}, {33, 0, 2}, {1, 70, 1}, {1, 1, 1}}, seed += 7);
  }
}

TEST(CpuAttention, LongSequencesAreSplitAndMerged) {
  check({"grouped", 6, 2, 32, 32, 32}, {{150, 300, 3}, {1, 1, 1}, {90, 700, 1}, {1, 1, 1}}, 100);
  check({"window", 4, 2, 16, 16, 16, 200}, {{400, 3}, {1, 1}, {1, 1}, {50, 190}, {1, 1}}, 101);
  check({"sinks and cap", 4, 1, 16, 16, 16, 0, 0, 5.0, true}, {{400, 129}, {1, 1}, {1, 1}}, 102, 3.0f);
}

TEST(CpuAttention, VeryNegativeScores) {
  check({"window", 4, 2, 16, 16, 16, 70}, {{150, 3}, {1, 60}, {90, 1}}, 300, 1.0f, 8.0f);
  check({"chunk", 2, 2, 16, 16, 32, 0, 50}, {{150, 3}, {1, 60}, {90, 1}}, 301, 1.0f, 8.0f);
}

TEST(CpuAttention, NotCausal) {
  check({"bidirectional", 4, 2, 32, 32, 16, 0, 0, 0, false, false}, {{7, 40, 1}}, 200);
  check({"bidirectional with chunks", 4, 2, 32, 32, 16, 0, 6, 0, false, false}, {{7, 40, 1}}, 201);
}

TEST(CpuAttention, RefusesWrongSpecs) {
  const Geometry g = {"", 4, 2, 16, 16, 16};
  Random random(1);
  const Tensor q = over_tokens(random_tensor(random, {3, 4, 16})),
               k = over_tokens(random_tensor(random, {3, 2, 16}));
  const KernelSpec good = make_spec(g, q, k, k, {}, q, 0.25);
  const auto message = [&](const std::function<void(KernelSpec&)>& spoil) {
    KernelSpec spec = good;
    spoil(spec);
    try {
      kernels_of("attention").back()->make(spec, nullptr);
    } catch (const Error& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_EQ(message([](KernelSpec&) {}), "");
  EXPECT_NE(message([](KernelSpec& s) {
              s.in[0].shape[1] = {5, 0, 0};
            }).find("[attention] expected query heads in whole groups"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) {
              s.in[1].shape[2] = {15, 0, 0};
            }).find("expected k [T, 2, 16], found [T, 2, 15]"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) {
              s.states[0].components[1].shape = {2, 15};
            }).find("expected v [T, 2, 15], found [T, 2, 16]"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) { s.states.clear(); }).find("expected 1 states, found 0"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) { s.attrs.set("window", int64_t{-1}); }).find("'window'"),
            std::string::npos);
  EXPECT_NE(message([](KernelSpec& s) { s.attrs.set("scale", HUGE_VAL); }).find("finite 'scale'"),
            std::string::npos);
}

}  // namespace
}  // namespace autodeploy::testing
