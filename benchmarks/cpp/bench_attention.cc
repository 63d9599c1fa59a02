// Attention of one layer: bench_attention [threads] [kernel name part] [query heads] [key heads] [head width]
#include <cstdio>

#include "bench_util.h"

namespace autodeploy::bench {
namespace {

using namespace autodeploy::testing;

void bench(const KernelEntry& entry, int threads, int64_t hq, int64_t hkv, int64_t d, int64_t num_seqs,
           int64_t tokens, int64_t past) {
  constexpr int64_t kPage = 32;
  const int64_t total = num_seqs * tokens, len = past + tokens, pages = (len + kPage - 1) / kPage;
  Random random(1);
  Tensor q = over_tokens(random_tensor(random, {total, hq, d})),
         k = over_tokens(random_tensor(random, {total, hkv, d})), v = k;
  Tensor out = over_tokens(make_tensor({total, hq, d}));
  KernelSpec spec;
  spec.op = "attention";
  spec.in = {spec_of(q), spec_of(k), spec_of(v), {}, {}, {}, {}};
  spec.out = {spec_of(out)};
  spec.attrs.set("scale", 0.125);
  spec.attrs.set("causal", true);
  spec.attrs.set("window", int64_t{0});
  spec.attrs.set("chunk", int64_t{0});
  spec.attrs.set("softcap", 0.0);
  StateSpec state;
  state.components = {{"k", {hkv, d}, DType::kF32}, {"v", {hkv, d}, DType::kF32}};
  state.group = 0;
  state.page_size = kPage;
  spec.states = {state};
  spec.max_tokens = total;
  spec.max_seqs = num_seqs;
  spec.max_seq_len = len;
  spec.num_threads = threads;
  std::unique_ptr<Kernel> kernel = entry.make(spec, nullptr);
  if (!kernel) return;  // serves another form of the op
  if (!kernel) return;

  StateMemory memory;
  memory.bytes = {kPage * hkv * d * 4, kPage * hkv * d * 4};
  std::vector<AlignedBytes> pools;
  for (int c = 0; c < 2; ++c) {
    const int64_t floats = (num_seqs * pages + 1) * kPage * hkv * d;
    pools.push_back(aligned_bytes(4 * floats));
    for (int64_t i = 0; i < floats; ++i)
      reinterpret_cast<float*>(pools.back().get())[i] = 0.01f * static_cast<float>(i % 97);
    memory.data.push_back(pools.back().get());
  }
  std::vector<int32_t> table, query_start = {0}, kv_len;
  for (int64_t s = 0; s < num_seqs; ++s) {
    for (int64_t p = 0; p < pages; ++p) table.push_back(static_cast<int32_t>(1 + p * num_seqs + s));
    query_start.push_back(static_cast<int32_t>((s + 1) * tokens));
    kv_len.push_back(static_cast<int32_t>(len));
  }
  StepBatch::PageTable pt{kPage, static_cast<int32_t>(pages), table};
  StepBatch batch;
  batch.num_tokens = total;
  batch.num_seqs = num_seqs;
  batch.query_start = query_start;
  batch.kv_len = kv_len;
  batch.page_tables = std::span(&pt, 1);
  ThreadPool pool(threads);
  const AlignedBytes workspace = aligned_bytes(kernel->workspace_bytes() + 64);
  const TensorView in[] = {q.view(), k.view(), v.view(), TensorView{}}, outs[] = {out.view()};
  const StateMemory* states[] = {&memory};
  KernelCall call;
  call.in = in;
  call.out = outs;
  call.states = states;
  call.batch = &batch;
  call.workspace = workspace.get();
  call.pool = &pool;
  pool.begin_step();
  const double t = best_of([&] { kernel->run(call); });
  pool.end_step();
  const double pairs = static_cast<double>(num_seqs * tokens) *
                       (static_cast<double>(past) + static_cast<double>(tokens + 1) / 2);
  const double read = static_cast<double>(num_seqs * len * hkv * d * 8);
  std::printf("%-18s %2ld x %4ld tokens after %4ld: %9.1f us  %7.1f GFLOP/s  %6.2f GB/s of keys and values\n",
              entry.name, static_cast<long>(num_seqs), static_cast<long>(tokens), static_cast<long>(past),
              t * 1e6, pairs * 4 * static_cast<double>(hq * d) / t / 1e9, read / t / 1e9);
}

}  // namespace
}  // namespace autodeploy::bench

int main(int argc, char** argv) {
  const auto arg = [&](int i, int otherwise) { return argc > i ? std::atoi(argv[i]) : otherwise; };
  const int threads = arg(1, 2);
  for (const autodeploy::KernelEntry* e : autodeploy::testing::kernels_of("attention")) {
    if (argc > 2 && std::string(e->name).find(argv[2]) == std::string::npos) continue;
    const int64_t shapes[][3] = {{1, 512, 0}, {1, 64, 448}, {1, 16, 1000}, {1, 1, 127},
                                 {1, 1, 511}, {1, 1, 4095}, {8, 1, 511}};
    for (const auto& s : shapes)
      autodeploy::bench::bench(*e, threads, arg(3, 9), arg(4, 3), arg(5, 64), s[0], s[1], s[2]);
  }
}
