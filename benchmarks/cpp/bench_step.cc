// Whole steps of an artifact, and where their time goes, op by op.
//   bench_step ARTIFACT [threads] [exact]
#include <cstdio>
#include <map>

#include "bench_util.h"
#include "bindings/runner.h"

namespace autodeploy::bench {
namespace {

RunnerStep make_step(int64_t num_seqs, int64_t new_tokens, int64_t past, int64_t vocab) {
  RunnerStep s;
  s.query_start = {0};
  for (int64_t i = 0; i < num_seqs; ++i) {
    for (int64_t t = 0; t < new_tokens; ++t) {
      s.token_ids.push_back((i * 7919 + t * 104729 + past) % vocab);
      s.positions.push_back(past + t);
    }
    s.query_start.push_back(static_cast<int32_t>(s.token_ids.size()));
    s.kv_len.push_back(static_cast<int32_t>(past + new_tokens));
    s.slot.push_back(static_cast<int32_t>(i));
    s.has_state.push_back(past > 0);
    s.rows.push_back(static_cast<int32_t>(s.token_ids.size()) - 1);
  }
  return s;
}

void bench(Runner& runner, const char* title, int64_t num_seqs, int64_t new_tokens, int64_t past) {
  Executor& executor = runner.executor();
  const StepBatch& batch =
      runner.prepare(make_step(num_seqs, new_tokens, past, executor.program().vocab_size));
  const double t = best_of([&] { executor.run(batch); }, 1.0);
  std::printf("%-34s %9.3f ms  %9.1f tokens/s\n", title, t * 1e3,
              static_cast<double>(num_seqs * new_tokens) / t);
  // The least time of each instruction over some steps.
  const auto& choices = executor.choices();
  std::map<int32_t, size_t> writer;  // value -> choice
  for (size_t c = 0; c < choices.size(); ++c) {
    const InstructionSpec& ins = executor.program().instructions[static_cast<size_t>(choices[c].instruction)];
    for (int32_t v : ins.out) writer[v] = c;
  }
  std::vector<double> least(choices.size(), 1e9);
  const int repeats = new_tokens > 1 ? 5 : 60;
  for (int i = 0; i < repeats; ++i) {
    double before = now();
    executor.run(batch, [&](int32_t value, const TensorView&) {
      const double after = now();
      const auto it = writer.find(value);
      if (it != writer.end() && after - before > 1e-7)
        least[it->second] = std::min(least[it->second], after - before);
      before = now();
    });
  }
  std::map<std::string, std::pair<int, double>> by_kernel;
  for (size_t c = 0; c < choices.size(); ++c) {
    auto& [count, sum] = by_kernel[choices[c].kernel];
    ++count;
    if (least[c] < 1e8) sum += least[c];
  }
  for (const auto& [name, entry] : by_kernel) {
    std::printf("    %-30s %4d x %9.1f us = %8.3f ms\n", name.c_str(), entry.first,
                entry.second / entry.first * 1e6, entry.second * 1e3);
  }
}

}  // namespace
}  // namespace autodeploy::bench

int main(int argc, char** argv) {
  using namespace autodeploy;
  if (argc < 2) return std::fprintf(stderr, "usage: bench_step ARTIFACT [threads] [exact]\n"), 2;
  RunnerOptions options;
  options.max_tokens = 512;
  options.max_seqs = 8;
  options.max_seq_len = 1024;
  options.num_threads = argc > 2 ? std::atoi(argv[2]) : 0;
  options.exact = argc > 3;
  try {
    Runner runner(argv[1], options);
    bench::bench(runner, "prefill 512", 1, 512, 0);
    bench::bench(runner, "decode 1, 128 before", 1, 1, 128);
    bench::bench(runner, "decode 1, 511 before", 1, 1, 511);
    bench::bench(runner, "decode 8, 128 before", 8, 1, 128);
  } catch (const std::exception& e) {
    return std::fprintf(stderr, "%s\n", e.what()), 1;
  }
}
