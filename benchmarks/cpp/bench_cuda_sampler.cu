// The sampler on a GPU: microseconds of a step, replayed from a graph, for each kind of options; and how many
// tokens are those of the host's sampler for the same logits.
//
//   nvcc -std=c++20 -O3 -arch=sm_90a -Xcompiler=-ffp-contract=off -Icpp -Icpp/include
//        benchmarks/cpp/bench_cuda_sampler.cu cpp/kernels/cuda/{launch,sample,sample_choose}.cu
//        cpp/runtime/cuda/{device_api,device_sampler,edit_slots}.cc
//        cpp/runtime/{sampler,token_filter,row_math}.cc cpp/core/{dtype,error,thread_pool,processors}.cc
//        -o bench_cuda_sampler
//   bench_cuda_sampler [--vocab 128256,151936] [--rows 1,8,64] [--check 8] [--only PART]
//
// Logits are normal with a standard deviation of 3; "flat" ones of 0.3, which leave top_p most of the
// vocabulary. They are overwritten between replays as by a model's last layer, so they come from the
// second-level cache as far as they fit into it; the time of that write is taken off. --check compares so
// many rows (0: none).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "core/error.h"
#include "runtime/cuda/device_sampler.h"
#include "runtime/sampler.h"

using namespace autodeploy;
using namespace autodeploy::cuda;

namespace {

using Path = DeviceSampler::Path;

struct Case {
  const char* name;
  float deviation;
  DType dtype;
  std::function<void(SamplingParams&)> change;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"greedy", 3, DType::kF32, [](auto& p) { p.temperature = 0; }},
      {"greedy bfloat16", 3, DType::kBF16, [](auto& p) { p.temperature = 0; }},
      {"temperature", 3, DType::kF32, [](auto& p) { p.temperature = 0.8; }},
      {"temperature bfloat16", 3, DType::kBF16, [](auto& p) { p.temperature = 0.8; }},
      {"top_k 50", 3, DType::kF32, [](auto& p) { p.top_k = 50; }},
      {"top_k 5000", 3, DType::kF32, [](auto& p) { p.top_k = 5000; }},
      {"top_p 0.9", 3, DType::kF32, [](auto& p) { p.top_p = 0.9; }},
      {"top_p 0.9 flat", 0.3f, DType::kF32, [](auto& p) { p.top_p = 0.9; }},
      {"top_k 50 top_p 0.9", 3, DType::kF32, [](auto& p) { p.top_k = 50, p.top_p = 0.9; }},
      {"min_p 0.05", 3, DType::kF32, [](auto& p) { p.min_p = 0.05; }},
      {"repetition", 3, DType::kF32, [](auto& p) { p.repetition_penalty = 1.2; }},
      {"penalties bias top_p", 3, DType::kF32,
       [](auto& p) {
         p.repetition_penalty = 1.2, p.frequency_penalty = 0.3, p.top_p = 0.9;
         p.logit_bias = {{5, 3.0}, {6, -3.0}};
       }},
      {"logprobs 5", 3, DType::kF32, [](auto& p) { p.logprobs = 5; }},
      {"everything", 3, DType::kF32,
       [](auto& p) {
         p.repetition_penalty = 1.2, p.top_k = 200, p.top_p = 0.9, p.min_p = 0.01, p.logprobs = 20;
       }},
  };
  return all;
}

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> out;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(std::atoll(part.c_str()));
  return out;
}

TensorView view_of(void* data, DType dtype, int64_t rows, int64_t vocab) {
  TensorView v;
  v.data = data;
  v.dtype = dtype;
  v.ndim = 2;
  v.shape = {rows, vocab};
  v.stride = {vocab, 1};
  return v;
}

float best_microseconds(const Graph& graph, Queue& queue) {
  Event begin(true), end(true);
  float best = 1e9f;
  for (int round = 0; round < 5; ++round) {
    constexpr int kReplays = 20;
    begin.record(queue.stream());
    for (int i = 0; i < kReplays; ++i) graph.launch(queue.stream());
    end.record(queue.stream());
    end.wait();
    best = std::min(best, end.milliseconds_since(begin) * 1000 / kReplays);
  }
  return best;
}

void run(const Case& c, int64_t rows, int64_t vocab, int64_t check, Queue& queue) {
  std::mt19937 rng(7);
  std::normal_distribution<float> normal(0, c.deviation);
  std::vector<float> floats(static_cast<size_t>(rows * vocab));
  for (float& x : floats) x = normal(rng);
  std::vector<bf16> halves;
  if (c.dtype == DType::kBF16) {
    for (float& x : floats) {
      halves.push_back(__float2bfloat16_rn(x));
      x = __bfloat162float(halves.back());
    }
  }
  const void* source =
      halves.empty() ? static_cast<const void*>(floats.data()) : static_cast<const void*>(halves.data());
  const int64_t bytes = rows * vocab * dtype_size(c.dtype);
  DeviceMemory logits(bytes, "logits"), origin(bytes, "logits");
  queue.copy_to_device(origin.data(), source, bytes);
  queue.copy_on_device(logits.data(), origin.data(), bytes);

  std::vector<SamplingParams> params(static_cast<size_t>(rows));
  std::vector<std::vector<int64_t>> prompts(params.size()), generated(params.size());
  std::vector<SampleRow> sample_rows;
  for (size_t r = 0; r < params.size(); ++r) {
    params[r].seed = r;
    c.change(params[r]);
    for (int i = 0; i < 2000; ++i)
      prompts[r].push_back(static_cast<int64_t>(rng() % static_cast<uint64_t>(vocab)));
    for (int i = 0; i < 500; ++i) generated[r].push_back(static_cast<int64_t>(rng() % 400));
    sample_rows.push_back({&params[r], prompts[r], generated[r]});
  }
  DeviceSampler sampler(vocab, rows, 4096, 1);
  const Path path = DeviceSampler::path_for(sample_rows);
  const int64_t options_bytes = DeviceSampler::options_bytes(rows, path);
  PinnedMemory pinned(options_bytes, "options");
  DeviceMemory options(options_bytes, "options");
  const auto record = [&](bool sample) {
    queue.begin_recording();
    queue.copy_on_device(logits.data(), origin.data(), bytes);
    if (sample)
      sampler.enqueue(view_of(logits.data(), c.dtype, rows, vocab), rows, path, options.data(), queue);
    return queue.end_recording();
  };
  sampler.write_options(sample_rows, rows, path, 0, pinned.data(), queue);
  queue.copy_to_device(options.data(), pinned.data(), options_bytes);
  sampler.enqueue(view_of(logits.data(), c.dtype, rows, vocab), rows, path, options.data(), queue);
  sampler.download(rows, path, 0, queue);
  queue.wait();
  const auto got = sampler.collect(rows, 0);

  // Of a row, whether the token and the log probabilities are those of the host.
  int64_t same = 0;
  const int64_t checked = std::min(check, rows);
  if (checked > 0) {
    ThreadPool pool(1);
    Sampler host(vocab, checked, 1);
    const auto want =
        host.sample(view_of(floats.data(), DType::kF32, checked, vocab),
                    std::span<const SampleRow>(sample_rows).first(static_cast<size_t>(checked)), pool);
    for (size_t r = 0; r < want.size(); ++r) {
      bool equal = got[r].token == want[r].token && got[r].logprob.rank == want[r].logprob.rank &&
                   got[r].logprob.top.size() == want[r].logprob.top.size();
      for (size_t i = 0; equal && i < want[r].logprob.top.size(); ++i) {
        equal = got[r].logprob.top[i].token == want[r].logprob.top[i].token &&
                std::fabs(got[r].logprob.top[i].logprob - want[r].logprob.top[i].logprob) < 1e-4f;
      }
      same += equal;
    }
  }
  const Graph both = record(true), copy_alone = record(false);
  const float total = best_microseconds(both, queue), copied = best_microseconds(copy_alone, queue);
  std::printf("%-24s %4lld rows x %7lld  %7.1f us", c.name, static_cast<long long>(rows),
              static_cast<long long>(vocab), total - copied);
  if (checked > 0)
    std::printf("   %lld of %lld rows as on the host", static_cast<long long>(same),
                static_cast<long long>(checked));
  std::printf("\n");
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  std::string vocabs = "128256,151936", rows = "1,8,64", only;
  int64_t check = 8;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--vocab")
      vocabs = argv[i + 1];
    else if (flag == "--rows")
      rows = argv[i + 1];
    else if (flag == "--check")
      check = std::atoll(argv[i + 1]);
    else if (flag == "--only")
      only = argv[i + 1];
  }
  try {
    std::printf("%s\n", use_device(0).name.c_str());
    Queue queue;
    for (int64_t vocab : numbers(vocabs)) {
      for (int64_t r : numbers(rows)) {
        for (const Case& c : cases()) {
          if (std::strstr(c.name, only.c_str())) run(c, r, vocab, check, queue);
        }
      }
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
