// The device's sampler, emulated, against the host's on the same logits.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "runtime/cuda/device_sampler.h"
#include "runtime/sampler.h"

namespace autodeploy::cuda {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
using Path = DeviceSampler::Path;

struct Row {
  SamplingParams params;
  std::vector<int64_t> prompt = {0}, generated;
  int32_t pending_row = -1;
};

// A copy, whose spans of log probabilities outlive the sampler's.
std::vector<SampledRow> copy(std::span<const SampledRow> rows) { return {rows.begin(), rows.end()}; }

// Logits with some room between the rows, that holds NaN.
struct Logits {
  Logits(int64_t rows, int64_t vocab, DType dtype = DType::kF32, int64_t room = 0)
      : rows(rows), vocab(vocab), stride(vocab + room), dtype(dtype) {
    bytes.resize(static_cast<size_t>(rows * stride * dtype_size(dtype)), 0xff);
  }
  // Rounds x where the type is narrow.
  void set(int64_t row, int64_t token, float x) {
    uint8_t* to = bytes.data() + (row * stride + token) * dtype_size(dtype);
    if (dtype == DType::kF32) {
      std::memcpy(to, &x, 4);
    } else if (dtype == DType::kBF16) {
      const bf16 v = __float2bfloat16_rn(x);
      std::memcpy(to, &v, 2);
    } else {
      const f16 v = __float2half_rn(x);
      std::memcpy(to, &v, 2);
    }
  }
  float get(int64_t row, int64_t token) const {
    const uint8_t* from = bytes.data() + (row * stride + token) * dtype_size(dtype);
    if (dtype == DType::kF32) {
      float x;
      std::memcpy(&x, from, 4);
      return x;
    }
    if (dtype == DType::kBF16) {
      bf16 v;
      std::memcpy(static_cast<void*>(&v), from, 2);
      return __bfloat162float(v);
    }
    f16 v;
    std::memcpy(static_cast<void*>(&v), from, 2);
    return __half2float(v);
  }
  void set_row(int64_t row, const std::vector<float>& x) {
    for (size_t i = 0; i < x.size(); ++i) set(row, static_cast<int64_t>(i), x[i]);
  }
  TensorView view() {
    TensorView v;
    v.data = bytes.data();
    v.dtype = dtype;
    v.ndim = 2;
    v.shape = {rows, vocab};
    v.stride = {stride, 1};
    return v;
  }
  int64_t rows, vocab, stride;
  DType dtype;
  std::vector<uint8_t> bytes;
};

std::vector<float> random_logits(int64_t vocab, std::mt19937& rng, float scale) {
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> row(static_cast<size_t>(vocab));
  for (float& x : row) x = normal(rng);
  return row;
}

std::vector<SampleRow> sample_rows(const std::vector<Row>& rows) {
  std::vector<SampleRow> out;
  for (const Row& row : rows) out.push_back({&row.params, row.prompt, row.generated, row.pending_row});
  return out;
}

// What the host makes of it; `known`: tokens behind `generated`, of rows that are pending.
std::vector<SampledRow> on_host(const Logits& logits, std::vector<Row> rows,
                                const std::vector<int64_t>& known = {}) {
  for (Row& row : rows) {
    if (row.pending_row >= 0) row.generated.push_back(known[static_cast<size_t>(row.pending_row)]);
    row.pending_row = -1;
  }
  Logits floats(static_cast<int64_t>(rows.size()), logits.vocab);
  for (int64_t r = 0; r < floats.rows; ++r) {
    for (int64_t i = 0; i < logits.vocab; ++i) floats.set(r, i, logits.get(r, i));
  }
  ThreadPool pool(1);
  Sampler sampler(logits.vocab, floats.rows, 1);
  return copy(sampler.sample(floats.view(), sample_rows(rows), pool));
}

class Device {
 public:
  Device(int64_t vocab, int64_t max_rows, int slots = 1)
      : sampler(vocab, max_rows, 4096, slots),
        options_(DeviceSampler::options_bytes(max_rows, Path::kFull), "options") {
    for (int i = 0; i < slots; ++i) pinned_.emplace_back(options_.bytes(), "options");
  }

  void upload(std::span<const SampleRow> rows, int64_t padded_rows, Path path, int slot) {
    PinnedMemory& pinned = pinned_[static_cast<size_t>(slot)];
    sampler.write_options(rows, padded_rows, path, slot, pinned.data(), queue);
    queue.copy_to_device(options_.data(), pinned.data(), DeviceSampler::options_bytes(padded_rows, path));
  }
  void enqueue(const TensorView& logits, int64_t padded_rows, Path path) {
    sampler.enqueue(logits, padded_rows, path, options_.data(), queue);
  }

  void launch(Logits& logits, const std::vector<Row>& rows, int slot = 0) {
    kept_.push_back(sample_rows(rows));
    const Path path = DeviceSampler::path_for(kept_.back());
    upload(kept_.back(), logits.rows, path, slot);
    enqueue(logits.view(), logits.rows, path);
    sampler.download(static_cast<int64_t>(rows.size()), path, slot, queue);
  }
  std::vector<SampledRow> run(Logits& logits, const std::vector<Row>& rows) {
    launch(logits, rows);
    return copy(sampler.collect(static_cast<int64_t>(rows.size()), 0));
  }

  Queue queue;
  DeviceSampler sampler;

 private:
  DeviceMemory options_;
  std::vector<PinnedMemory> pinned_;
  std::vector<std::vector<SampleRow>> kept_;
};

void expect_same(const std::vector<SampledRow>& got, const std::vector<SampledRow>& want,
                 const std::string& what) {
  ASSERT_EQ(got.size(), want.size());
  const auto near = [](float a, float b) {
    return a == b || (std::isnan(a) && std::isnan(b)) ||
           std::fabs(a - b) <= 1e-5f * std::max(1.0f, std::fabs(b));
  };
  for (size_t r = 0; r < got.size(); ++r) {
    const std::string here = what + ", row " + std::to_string(r);
    EXPECT_EQ(got[r].token, want[r].token) << here;
    const ChosenLogprob &a = got[r].logprob, &b = want[r].logprob;
    EXPECT_EQ(a.chosen.token, b.chosen.token) << here;
    EXPECT_PRED2(near, a.chosen.logprob, b.chosen.logprob) << here;
    EXPECT_EQ(a.rank, b.rank) << here;
    ASSERT_EQ(a.top.size(), b.top.size()) << here;
    for (size_t i = 0; i < a.top.size(); ++i) {
      EXPECT_EQ(a.top[i].token, b.top[i].token) << here << ", top " << i;
      EXPECT_PRED2(near, a.top[i].logprob, b.top[i].logprob) << here << ", top " << i;
    }
  }
}

struct Option {
  const char* title;
  std::function<void(SamplingParams&, std::mt19937&, int64_t vocab)> change;
};

int64_t draw_int(std::mt19937& rng, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(rng);
}
double draw_real(std::mt19937& rng, double low, double high) {
  return std::uniform_real_distribution<double>(low, high)(rng);
}

const std::vector<Option>& options() {
  static const std::vector<Option> all = {
      {"greedy", [](auto& p, auto&, auto) { p.temperature = 0; }},
      {"plain", [](auto&, auto&, auto) {}},
      {"temperature", [](auto& p, auto& rng, auto) { p.temperature = draw_real(rng, 0.05, 4); }},
      {"cold", [](auto& p, auto&, auto) { p.temperature = 1e-4; }},
      {"top_k", [](auto& p, auto& rng, auto) { p.top_k = draw_int(rng, 1, 20); }},
      {"top_k_of_any_size", [](auto& p, auto& rng, auto vocab) { p.top_k = draw_int(rng, 1, vocab + 2); }},
      {"top_p", [](auto& p, auto& rng, auto) { p.top_p = draw_real(rng, 0.05, 1); }},
      {"top_p_close_to_one",
       [](auto& p, auto& rng, auto) { p.top_p = 1 - std::exp(-draw_real(rng, 3, 14)); }},
      {"top_p_tiny", [](auto& p, auto&, auto) { p.top_p = 1e-9; }},
      {"min_p", [](auto& p, auto& rng, auto) { p.min_p = draw_real(rng, 0, 1); }},
      {"min_p_small", [](auto& p, auto&, auto) { p.min_p = 1e-3; }},
      {"repetition", [](auto& p, auto& rng, auto) { p.repetition_penalty = draw_real(rng, 0.5, 3); }},
      {"presence", [](auto& p, auto& rng, auto) { p.presence_penalty = draw_real(rng, -2, 2); }},
      {"frequency", [](auto& p, auto& rng, auto) { p.frequency_penalty = draw_real(rng, -2, 2); }},
      {"bias",
       [](auto& p, auto& rng, auto vocab) {
         for (int i = 0; i < 9; ++i)
           p.logit_bias.emplace_back(draw_int(rng, 0, vocab - 1), draw_real(rng, -6, 6));
       }},
      {"min_tokens",
       [](auto& p, auto& rng, auto vocab) {
         p.min_tokens = draw_int(rng, 1, 8);
         p.max_tokens = 100;
         for (int i = 0; i < 9; ++i) p.eos_token_ids.push_back(draw_int(rng, 0, vocab + 5));
         for (int i = 0; i < 9; ++i) p.stop_token_ids.push_back(draw_int(rng, 0, vocab + 5));
         p.ignore_eos = draw_int(rng, 0, 1) == 1;
       }},
      {"logprobs", [](auto& p, auto& rng, auto) { p.logprobs = static_cast<int32_t>(draw_int(rng, 0, 8)); }},
      {"many_logprobs", [](auto& p, auto&, auto) { p.logprobs = kMaxLogprobs; }},
  };
  return all;
}

Row random_row(int64_t vocab, std::mt19937& rng) {
  Row row;
  row.params.seed = rng();
  row.prompt.clear();
  for (int64_t i = draw_int(rng, 1, 40); i > 0; --i) row.prompt.push_back(draw_int(rng, 0, vocab - 1));
  for (int64_t i = draw_int(rng, 0, 20); i > 0; --i)
    row.generated.push_back(draw_int(rng, 0, std::min<int64_t>(vocab - 1, 30)));
  return row;
}

class DeviceSamplerOption : public testing::TestWithParam<size_t> {};

TEST_P(DeviceSamplerOption, AloneIsAsOnTheHost) {
  const Option& option = options()[GetParam()];
  std::mt19937 rng(static_cast<uint32_t>(GetParam()) + 1);
  for (int64_t vocab : {50, 256, 1031, 8193, 20011}) {
    Device device(vocab, 6);
    for (float scale : {0.02f, 1.0f, 5.0f}) {
      std::vector<Row> rows;
      for (int r = 0; r < 6; ++r) {
        rows.push_back(random_row(vocab, rng));
        option.change(rows.back().params, rng, vocab);
      }
      Logits logits(6, vocab, DType::kF32, draw_int(rng, 0, 5));
      for (int64_t r = 0; r < 6; ++r) logits.set_row(r, random_logits(vocab, rng, scale));
      expect_same(device.run(logits, rows), on_host(logits, rows),
                  "vocabulary of " + std::to_string(vocab) + ", scale " + std::to_string(scale));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, DeviceSamplerOption, testing::Range<size_t>(0, options().size()),
                         [](const auto& info) { return options()[info.param].title; });

// Few levels of logits, as 16-bit ones have: thresholds fall between equal ones.
TEST(DeviceSampler, CombinationsWithTiesAreAsOnTheHost) {
  std::mt19937 rng(5);
  for (int round = 0; round < 60; ++round) {
    const int64_t vocab = draw_int(rng, 50, 5000);
    const DType dtype = std::array{DType::kF32, DType::kBF16, DType::kF16}[static_cast<size_t>(round % 3)];
    Device device(vocab, 8);
    Logits logits(8, vocab, dtype, draw_int(rng, 0, 9));
    std::vector<Row> rows;
    for (int64_t r = 0; r < 8; ++r) {
      rows.push_back(random_row(vocab, rng));
      for (const Option& option : options()) {
        if (draw_int(rng, 0, 4) == 0) option.change(rows.back().params, rng, vocab);
      }
      std::vector<float> x = random_logits(vocab, rng, static_cast<float>(draw_real(rng, 0.1, 6)));
      if (const int64_t levels = draw_int(rng, 0, 3)) {
        for (float& v : x) v = std::round(v * static_cast<float>(levels)) / static_cast<float>(levels);
      }
      for (int64_t i = draw_int(rng, 0, 30); i > 0; --i)
        x[static_cast<size_t>(draw_int(rng, 0, vocab - 1))] = -kInf;
      logits.set_row(r, x);
    }
    expect_same(device.run(logits, rows), on_host(logits, rows), "round " + std::to_string(round));
  }
}

TEST(DeviceSampler, AllEqualLogits) {
  for (const char* title : {"top_k", "top_p", "many_logprobs", "greedy", "min_p"}) {
    std::mt19937 rng(3);
    const auto option = std::find_if(options().begin(), options().end(),
                                     [&](const Option& o) { return !std::strcmp(o.title, title); });
    Device device(3001, 4);
    Logits logits(4, 3001);
    std::vector<Row> rows;
    for (int64_t r = 0; r < 4; ++r) {
      rows.push_back(random_row(3001, rng));
      option->change(rows.back().params, rng, 3001);
      logits.set_row(r, std::vector<float>(3001, r < 2 ? 1.5f : r == 2 ? -0.0f : 0.0f));
    }
    for (int64_t i = 0; i < 3001; i += 2) logits.set(3, i, -0.0f);  // equal to the others
    expect_same(device.run(logits, rows), on_host(logits, rows), title);
  }
}

TEST(DeviceSampler, GreedyStepsOfEveryType) {
  std::mt19937 rng(8);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (int64_t vocab : {1, 7, 50, 4096, 8192, 30001}) {
      Device device(vocab, 5);
      Logits logits(5, vocab, dtype, vocab % 3);
      std::vector<Row> rows(4);  // and one of padding
      for (Row& row : rows) row.params.temperature = 0;
      for (int64_t r = 0; r < 5; ++r) logits.set_row(r, random_logits(vocab, rng, 2));
      logits.set(1, vocab / 2, 90);
      logits.set(1, vocab - 1, 90);
      logits.set(2, vocab - 1, std::nanf(""));
      const auto want = on_host(logits, rows);
      EXPECT_EQ(want[1].token, vocab / 2);
      EXPECT_EQ(want[2].token, -1);
      ASSERT_EQ(DeviceSampler::path_for(sample_rows(rows)), Path::kGreedy);
      // Twice: what the blocks of a row meet at is as it was.
      for (int i = 0; i < 2; ++i) expect_same(device.run(logits, rows), want, std::to_string(vocab));
    }
  }
}

TEST(DeviceSampler, BadRowsGiveNoToken) {
  for (double temperature : {0.0, 1.0}) {
    for (int32_t logprobs : {-1, 3}) {
      Device device(600, 6);
      Logits logits(6, 600);
      std::mt19937 rng(1);
      std::vector<Row> rows(6);
      for (int64_t r = 0; r < 6; ++r) {
        rows[static_cast<size_t>(r)].params.temperature = temperature;
        rows[static_cast<size_t>(r)].params.logprobs = logprobs;
        logits.set_row(r, r < 3 ? random_logits(600, rng, 1) : std::vector<float>(600, -kInf));
      }
      logits.set(0, 570, std::nanf(""));
      logits.set(1, 33, kInf);
      logits.set(2, 599, std::nanf(""));
      // A NaN is one also where the token is forbidden.
      rows[2].params.min_tokens = 1, rows[2].params.eos_token_ids = {599};
      logits.set(4, 577, -5);
      logits.set(5, 577, -5);
      rows[5].params.min_tokens = 1, rows[5].params.stop_token_ids = {577};
      const auto got = device.run(logits, rows);
      expect_same(got, on_host(logits, rows), "bad rows");
      for (size_t r = 0; r < 6; ++r) EXPECT_EQ(got[r].token, r == 4 ? 577 : -1) << r;
    }
  }
}

// Requests over many steps, two in flight: the newest token of a row is not known to the host, rows change
// places, requests pause, end and begin, and another takes the address of one that ended.
TEST(DeviceSampler, PendingTokensCount) {
  constexpr int64_t kVocab = 300, kRows = 4;
  std::mt19937 rng(21);
  const auto begin = [&] {
    Row row;
    row.params.seed = rng();
    row.params.temperature = draw_int(rng, 0, 2) ? 0.8 : 0.0;
    row.params.frequency_penalty = draw_int(rng, 0, 1) ? 1.5 : 0.0;
    row.params.repetition_penalty = draw_int(rng, 0, 1) ? 1.7 : 1.0;
    row.params.presence_penalty = draw_int(rng, 0, 1) ? 0.9 : 0.0;
    if (draw_int(rng, 0, 1))
      row.params.logit_bias = {{draw_int(rng, 0, 99), 4.0}, {draw_int(rng, 0, 99), 5.0}};
    row.params.min_tokens = draw_int(rng, 0, 6);
    row.params.eos_token_ids = {1, 2, 3};
    row.prompt.clear();
    for (int i = 0; i < 10; ++i) row.prompt.push_back(draw_int(rng, 0, 20));
    return row;
  };
  Device device(kVocab, kRows, 2);
  std::vector<Row> requests(6);
  for (Row& row : requests) {
    row = begin();
    row.generated.reserve(400);
  }
  struct Step {
    std::vector<size_t> requests;
    std::vector<SampleRow> rows;
    std::vector<SampledRow> want;
    Logits logits{kRows, kVocab};
  };
  // What is known when: the host's tokens of the step before arrive after the next one was launched.
  std::vector<Step> steps;
  for (int t = 0; t < 60; ++t) {
    Step step;
    std::vector<size_t> order = {0, 1, 2, 3, 4, 5};
    std::shuffle(order.begin(), order.end(), rng);
    order.resize(static_cast<size_t>(draw_int(rng, 1, kRows)));
    const auto pending_row = [&](size_t request) -> int32_t {
      if (steps.empty()) return -1;
      const auto& before = steps.back().requests;
      const auto at = std::find(before.begin(), before.end(), request);
      return at == before.end() ? -1 : static_cast<int32_t>(at - before.begin());
    };
    std::vector<Row> rows;
    std::vector<int64_t> known;
    if (!steps.empty()) {
      for (const SampledRow& row : steps.back().want) known.push_back(row.token);
    }
    for (size_t i : order) {
      if (pending_row(i) < 0 && draw_int(rng, 0, 9) == 0) {  // ended; its place is another's
        std::vector<int64_t> room = std::move(requests[i].generated);
        room.clear();
        requests[i] = begin();
        requests[i].generated = std::move(room);
      }
      requests[i].pending_row = pending_row(i);
      const Row& row = requests[i];
      step.requests.push_back(i);
      step.rows.push_back({&row.params, row.prompt, row.generated, row.pending_row});
      rows.push_back(row);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      std::vector<float> x = random_logits(kVocab, rng, 1);
      for (size_t i = 0; i < 20; ++i) x[i] += 3;  // tokens come again
      step.logits.set_row(r, x);
    }
    step.want = on_host(step.logits, rows, known);
    const int slot = t % 2;
    const Path path = DeviceSampler::path_for(step.rows);
    device.upload(step.rows, kRows, path, slot);
    device.enqueue(step.logits.view(), kRows, path);
    device.sampler.download(static_cast<int64_t>(step.rows.size()), path, slot, device.queue);
    if (!steps.empty()) {
      const Step& before = steps.back();
      const auto got = copy(device.sampler.collect(static_cast<int64_t>(before.rows.size()), 1 - slot));
      expect_same(got, before.want, "step " + std::to_string(t - 1));
      for (size_t r = 0; r < got.size(); ++r) {
        ASSERT_GE(got[r].token, 0);
        requests[before.requests[r]].generated.push_back(got[r].token);
      }
    }
    steps.push_back(std::move(step));
  }
}

// A step that is run again, as after a failure, sees nothing of its first run.
TEST(DeviceSampler, AStepRunAgain) {
  std::mt19937 rng(2);
  std::vector<Row> rows = {random_row(100, rng)};
  rows[0].params.temperature = 0;
  rows[0].params.frequency_penalty = 2;
  Device device(100, 1);
  Logits logits(1, 100);
  logits.set_row(0, random_logits(100, rng, 1));
  const auto want = on_host(logits, rows);
  for (int i = 0; i < 3; ++i) expect_same(device.run(logits, rows), want, "run " + std::to_string(i));
}

// Edits beyond what goes to the device at once.
TEST(DeviceSampler, ABiasOnEveryTokenAndALongHistory) {
  constexpr int64_t kVocab = 150'001;
  std::mt19937 rng(4);
  std::vector<Row> rows(2);
  for (Row& row : rows) {
    row.params.temperature = 0.7;
    row.params.repetition_penalty = 1.3;
    row.params.frequency_penalty = 0.01;
    for (int64_t i = 0; i < kVocab; ++i) row.params.logit_bias.emplace_back(i, draw_real(rng, -3, 3));
    for (int i = 0; i < 50'000; ++i) row.prompt.push_back(draw_int(rng, 0, kVocab - 1));
    for (int i = 0; i < 20'000; ++i) row.generated.push_back(draw_int(rng, 0, 500));
  }
  Device device(kVocab, 2);
  Logits logits(2, kVocab);
  for (int64_t r = 0; r < 2; ++r) logits.set_row(r, random_logits(kVocab, rng, 3));
  expect_same(device.run(logits, rows), on_host(logits, rows), "large");
}

TEST(DeviceSampler, DrawsFollowTheDistribution) {
  constexpr int64_t kVocab = 61, kRows = 64;
  std::mt19937 rng(17);
  const std::vector<float> x = random_logits(kVocab, rng, 1.5);
  for (double top_p : {1.0, 0.8}) {
    std::vector<double> probs(kVocab), sorted;
    double total = 0;
    for (size_t i = 0; i < probs.size(); ++i) total += probs[i] = std::exp(static_cast<double>(x[i]) / 1.3);
    for (double& p : probs) sorted.push_back(p /= total);
    std::sort(sorted.rbegin(), sorted.rend());
    double mass = 0, least = 0;
    for (size_t i = 0; i < sorted.size() && mass < top_p; ++i) mass += least = sorted[i];
    for (double& p : probs) p = p >= least ? p / mass : 0;

    Device device(kVocab, kRows);
    Logits logits(kRows, kVocab);
    for (int64_t r = 0; r < kRows; ++r) logits.set_row(r, x);
    std::vector<int> counts(kVocab);
    constexpr int kSteps = 20;
    for (int step = 0; step < kSteps; ++step) {
      std::vector<Row> rows(kRows);
      for (size_t r = 0; r < rows.size(); ++r) {
        rows[r].params.temperature = 1.3;
        rows[r].params.top_p = top_p;
        rows[r].params.seed = r;
        rows[r].generated.assign(static_cast<size_t>(step), 0);
      }
      for (const SampledRow& row : device.run(logits, rows)) ++counts[static_cast<size_t>(row.token)];
    }
    double chi = 0, rest_expected = 0;
    int cells = 0, rest = 0;
    for (size_t i = 0; i < probs.size(); ++i) {
      const double expected = probs[i] * kSteps * kRows;
      ASSERT_TRUE(expected > 0 || counts[i] == 0) << i;
      if (expected < 5) {
        rest_expected += expected, rest += counts[i];
      } else {
        chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        ++cells;
      }
    }
    if (rest_expected > 1) chi += (rest - rest_expected) * (rest - rest_expected) / rest_expected, ++cells;
    EXPECT_GT(cells, 10);
    EXPECT_LT(chi, cells - 1 + 5 * std::sqrt(2.0 * (cells - 1))) << "top_p " << top_p;
  }
}

// A recorded step serves others of fewer rows, and leaves rows of padding alone.
TEST(DeviceSampler, ReplaysServeStepsOfFewerRows) {
  constexpr int64_t kVocab = 9000, kRows = 4;
  std::mt19937 rng(9);
  Device device(kVocab, kRows);
  Logits logits(kRows, kVocab);
  for (const Path path : {Path::kGreedy, Path::kFull}) {
    device.queue.begin_recording();
    device.enqueue(logits.view(), kRows, path);
    const Graph graph = device.queue.end_recording();
    for (size_t n : {4, 1, 3}) {
      std::vector<Row> rows;
      for (size_t r = 0; r < n; ++r) {
        rows.push_back(random_row(kVocab, rng));
        rows.back().params.temperature = path == Path::kGreedy || r == 1 ? 0 : 1;
        if (path == Path::kFull && r == 0) rows.back().params.logprobs = static_cast<int32_t>(n);
        if (path == Path::kFull && r == 2) rows.back().params.top_k = 4, rows.back().params.top_p = 0.7;
      }
      for (int64_t r = 0; r < kRows; ++r) logits.set_row(r, random_logits(kVocab, rng, 2));
      const auto given = sample_rows(rows);
      device.upload(given, kRows, path, 0);
      graph.launch(device.queue.stream());
      device.sampler.download(static_cast<int64_t>(n), path, 0, device.queue);
      expect_same(copy(device.sampler.collect(static_cast<int64_t>(n), 0)), on_host(logits, rows),
                  std::to_string(n) + " rows");
    }
  }
}

TEST(DeviceSampler, ResolvesTokensOfTheStepBefore) {
  Device device(100, 3);
  Logits logits(3, 100);
  std::mt19937 rng(1);
  for (int64_t r = 0; r < 3; ++r) logits.set_row(r, random_logits(100, rng, 1));
  logits.set(0, 42, 50), logits.set(1, 7, std::nanf("")), logits.set(2, 99, 50);
  std::vector<Row> rows(3);
  for (Row& row : rows) row.params.temperature = 0;
  device.run(logits, rows);
  std::vector<int64_t> ids = {11, 0, 0, 12, 0};
  const std::vector<int32_t> from = {-1, 2, 1, -1, 0};
  device.sampler.resolve_tokens(ids.data(), from.data(), 5, device.queue);
  EXPECT_EQ(ids, (std::vector<int64_t>{11, 99, 0, 12, 42}));
}

TEST(DeviceSampler, PathsAndSizes) {
  std::vector<Row> rows(2);
  for (Row& row : rows) row.params.temperature = 0;
  EXPECT_EQ(DeviceSampler::path_for(sample_rows(rows)), Path::kGreedy);
  rows[1].params.min_tokens = 3;
  EXPECT_EQ(DeviceSampler::path_for(sample_rows(rows)), Path::kGreedy) << "nothing to forbid";
  rows[1].params.eos_token_ids = {5};
  EXPECT_EQ(DeviceSampler::path_for(sample_rows(rows)), Path::kFull);
  rows[1].generated = {1, 2};
  rows[1].pending_row = 0;
  EXPECT_EQ(DeviceSampler::path_for(sample_rows(rows)), Path::kGreedy) << "the pending token counts";
  rows[0].params.logprobs = 0;
  EXPECT_EQ(DeviceSampler::path_for(sample_rows(rows)), Path::kFull);

  DeviceSampler sampler(5000, 7, 1000, 2);
  EXPECT_EQ(sampler.bytes(), DeviceSampler::plan_bytes(5000, 7, 1000));
  EXPECT_GT(sampler.pinned_bytes(), 0);
  EXPECT_THROW(DeviceSampler((int64_t{1} << 20) + 1, 1, 1000, 1), Error);
}

}  // namespace
}  // namespace autodeploy::cuda
