// All linear layers of a small language model, one after the other with weights of their own, as a decoder
// runs them.
//   bench_linear [threads] [kernel name part] [formats...]
// Reports the time of a step, weight bytes per second beside the measured read bandwidth, and operations per
// second.
#include <cstdio>

#include "bench_util.h"
#include "kernels/cpu/isa.h"

namespace autodeploy::bench {
namespace {

using namespace autodeploy::testing;

struct Layer {
  int64_t rows, cols;
  Format format;
};

struct Loaded {
  std::vector<AlignedBytes> storage;
  std::vector<PackedWeight> weights;
  int64_t elements = 0;
};

Loaded load(const std::vector<Layer>& layers) {
  Loaded m;
  Random random(1);
  for (const Layer& l : layers) {
    // One random group of rows, repeated: packing time does not matter here.
    const std::vector<uint8_t> some = random_stored(random, l.format, 64, l.cols);
    PackedSegment s = plan_packed_segment(l.format, l.rows, l.cols, l.rows);
    m.storage.push_back(aligned_bytes(s.bytes));
    for (int64_t r = 0; r < l.rows; r += 64)
      pack_rows(s, r, std::min<int64_t>(64, l.rows - r), some.data(), m.storage.back().get());
    s.data = m.storage.back().get();
    m.weights.push_back({"w", {l.rows, l.cols}, {s}});
    m.elements += l.rows * l.cols;
  }
  return m;
}

void bench(const char* title, const std::vector<Layer>& layers, int threads, const std::string& wanted,
           bool exact, double bandwidth) {
  Loaded model = load(layers);
  ThreadPool pool(threads);
  for (int64_t tokens : {1, 2, 4, 8, 16, 64, 512}) {
    // Many tokens are bound by arithmetic: a few layers tell as much as all, and a short run is disturbed
    // less.
    const size_t used = tokens > 8 ? std::min<size_t>(4, model.weights.size()) : model.weights.size();
    int64_t bytes = 0, elements = 0;
    for (size_t i = 0; i < used; ++i) {
      bytes += layers[i].rows * format_row_bytes(layers[i].format, layers[i].cols);
      elements += layers[i].rows * layers[i].cols;
    }
    Random random(2);
    Tensor x = random_tensor(random, {tokens, 4096});
    Tensor y = make_tensor({tokens, 65536});
    for (const KernelEntry* entry : kernels_of("linear")) {
      if (std::string(entry->name).find(wanted) == std::string::npos) continue;
      std::vector<std::unique_ptr<Kernel>> kernels;
      int64_t workspace = 0;
      std::vector<OperandSpec> keep;
      for (size_t i = 0; i < used; ++i) {
        const PackedWeight& w = model.weights[i];
        KernelSpec spec;
        spec.op = "linear";
        OperandSpec xs, ws, ys;
        xs.present = ws.present = ys.present = true;
        xs.shape = {{0, 1, 0}, {w.shape[1], 0, 0}};
        xs.stride = {{w.shape[1], 0, 0}, {1, 0, 0}};
        ys.shape = {{0, 1, 0}, {w.shape[0], 0, 0}};
        ys.stride = {{w.shape[0], 0, 0}, {1, 0, 0}};
        ws.weight = &w;
        spec.in = {xs, ws, {}};
        spec.out = {ys};
        spec.max_tokens = tokens;
        spec.num_threads = threads;
        spec.exact = exact;
        std::unique_ptr<Kernel> k = entry->make(spec, nullptr);
        if (!k) break;
        workspace = std::max(workspace, k->workspace_bytes());
        kernels.push_back(std::move(k));
      }
      if (kernels.size() != used) continue;
      const AlignedBytes scratch = aligned_bytes(workspace + 64);
      const auto run_one = [&](size_t i) {
        const PackedWeight& w = model.weights[i];
        TensorView in[3], out[1];
        in[0] = x.view();
        in[0].shape = {tokens, w.shape[1]};
        in[0].stride = {w.shape[1], 1};
        out[0] = y.view();
        out[0].shape = {tokens, w.shape[0]};
        out[0].stride = {w.shape[0], 1};
        KernelCall call;
        call.in = in;
        call.out = out;
        call.workspace = scratch.get();
        call.pool = &pool;
        kernels[i]->run(call);
      };
      pool.begin_step();
      double t = 0;
      if (used == model.weights.size() && used > 1) {
        t = best_of([&] {
          for (size_t i = 0; i < used; ++i) run_one(i);
        });
      } else {
        for (size_t i = 0; i < used; ++i) t += best_of([&] { run_one(i); }, 0.2);
      }
      pool.end_step();
      const double gbs = static_cast<double>(bytes) / t / 1e9,
                   steps = static_cast<double>(model.elements) / static_cast<double>(elements);
      std::printf(
          "%-22s M=%-4ld %-18s %9.3f ms  %7.2f GB/s (%5.1f %% of read bandwidth)  %8.1f GOP/s  %9.0f "
          "tokens/s\n",
          title, static_cast<long>(tokens), entry->name, t * steps * 1e3, gbs, gbs / bandwidth * 100,
          2.0 * static_cast<double>(elements * tokens) / t / 1e9, static_cast<double>(tokens) / t / steps);
    }
  }
}

}  // namespace
}  // namespace autodeploy::bench

int main(int argc, char** argv) {
  using namespace autodeploy;
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const std::string wanted = argc > 2 ? argv[2] : "";
  std::vector<Format> formats;
  bool exact = false;
  for (int i = 3; i < argc; ++i) {
    if (std::string(argv[i]) == "exact")
      exact = true;
    else
      formats.push_back(format_from_name(argv[i]));
  }
  if (formats.empty()) formats = {Format::kQ4_1, Format::kQ8_0, Format::kF32};
  for (Format f : formats) {
    // 30 layers of [hidden 576, mlp 1536, 9 + 3 + 3 heads of 64], and a head over 49152 words in 8 bits.
    std::vector<bench::Layer> layers;
    for (int i = 0; i < 30; ++i) {
      layers.push_back({960, 576, f});
      layers.push_back({576, 576, f});
      layers.push_back({3072, 576, f});
      layers.push_back({576, 1536, f});
    }
    std::vector<bench::Layer> head = {{49152, 576, is_quantized(f) ? Format::kQ8_0 : f}};
    ThreadPool pool(threads);
    int64_t bytes = 0;
    for (const bench::Layer& l : layers) bytes += l.rows * format_row_bytes(f, l.cols);
    const double bandwidth = bench::read_bandwidth(pool, bytes) / 1e9,
                 far = bench::read_bandwidth(pool, int64_t{2} << 30) / 1e9;
    std::printf("read bandwidth, %d threads: %.1f GB/s over %.0f MB, %.1f GB/s over 2 GiB\n", threads,
                bandwidth, static_cast<double>(bytes) / 1e6, far);
    bench::bench(("layers " + std::string(format_info(f).name)).c_str(), layers, threads, wanted, exact,
                 bandwidth);
    bench::bench(("head " + std::string(format_info(head[0].format).name)).c_str(), head, threads, wanted,
                 exact, bandwidth);
  }
}
