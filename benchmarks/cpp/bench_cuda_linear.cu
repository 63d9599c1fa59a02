// Kernels of linear on a GPU: microseconds, TB/s and the share of a copy's rate, for the shapes of dense
// models, all launch shapes that the kernels have, and cuBLASLt. Every variant is first checked against a
// plain kernel ("WRONG" in the output).
//
// clang-format off
//   nvcc -std=c++20 -O3 -gencode=arch=compute_90a,code=sm_90a -Icpp -Icpp/include -o bench_cuda_linear
//        benchmarks/cpp/bench_cuda_linear.cu cpp/kernels/cuda/{launch.cu,wgmma.cu,linear_choice.cc,cublaslt.cc} cpp/core/{dtype,error,own_folder}.cc -ldl
//   bench_cuda_linear [--shapes 8b,1b,3b or 4096x14336,...] [--rows 1,2,4,8,16,32,64] [--only PART] [--best 3]
//                     [--no-overlap] [--csv FILE] [--chain 8b,1b,3b] [--pause 1.5]
// clang-format on
//
// --rows: 2048 at most. --only takes variants whose name contains PART. Of each shape the --best fastest are
// printed; --csv writes all. --chain times a decode step of one row as a model makes it, with kernels of
// --pause microseconds for what stands between its linears (norms and gate either so or fused), over how much
// of their weights kernels bring to the second-level cache before their turn. Weights rotate through copies
// of 256 MB or more in all, so that the second-level cache does not serve them, and launches are replayed
// from a graph, each of them overlapped with the one before it (unless --no-overlap).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/linear_choice.h"
#include "kernels/cuda/linear_epilogue.h"
#include "kernels/cuda/linear_gemv.h"
#include "kernels/cuda/linear_mma.h"
#include "kernels/cuda/linear_tensor_kernel.h"
#include "kernels/cuda/linear_wgmma_kernel.h"
#include "kernels/cuda/processors.h"

using namespace autodeploy;
using namespace autodeploy::cuda;

namespace {

#define CHECK_CUDA(call)                                                                  \
  do {                                                                                    \
    const cudaError_t error = (call);                                                     \
    if (error != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      std::exit(1);                                                                       \
    }                                                                                     \
  } while (false)

// ---- plain kernels ----

__global__ void fill(bf16* p, int64_t n, uint32_t seed) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + seed;
    h = (h ^ (h >> 15)) * 2246822519u;
    h = (h ^ (h >> 13)) * 3266489917u;
    p[i] = __float2bfloat16_rn((static_cast<float>(h ^ (h >> 16)) / 4294967296.0f - 0.5f) * 0.25f);
  }
}

__global__ void reference(const bf16* x, const bf16* w, float* y, int n, int k) {
  const int64_t row = blockIdx.y, out = int64_t{blockIdx.x} * (blockDim.x / 32) + threadIdx.x / 32;
  if (out >= n) return;
  float sum = 0;
  for (int i = static_cast<int>(threadIdx.x % 32); i < k; i += 32)
    sum += to_float(x[row * k + i]) * to_float(w[out * k + i]);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) y[row * n + out] = sum;
}

__global__ void compare(const bf16* y, const float* expected, int64_t n, float* worst) {
  float most = 0;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float d = fabsf(to_float(y[i]) - expected[i]) / (0.05f + fabsf(expected[i]));
    most = d <= most ? most : (d > most ? d : 1e9f);  // NaN counts as most wrong
  }
  atomicMax(reinterpret_cast<int*>(worst), __float_as_int(most));
}

__global__ void read_all(const uint4* p, int64_t n, uint32_t* sink) {
  uint32_t h = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  for (; i + 7 * step < n; i += 8 * step) {
    uint4 v[8];
#pragma unroll
    for (int u = 0; u < 8; ++u) v[u] = __ldcs(p + i + u * step);
#pragma unroll
    for (int u = 0; u < 8; ++u) h ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  if (h == 0x12345678u) *sink = h;
}

// Stands for what a model does between linears: waits for its turn, then takes some time.
__global__ void pause(long long cycles) {
  wait_for_previous();
  let_next_start();
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

// ---- variants ----

struct Product {
  int m, n, k;
  const bf16 *x, *w;
  bf16* y;
};
using Launch = std::function<const char*(const Product&, Stream, bool overlap)>;
struct Variant {
  std::string name;
  int min_rows, max_rows;
  std::function<bool(int m, int n, int k)> fits;  // shared memory, mostly
  Launch launch;
};

SmallLinearArgs args_of(const Product& p) {
  TensorView x, y;
  x.data = const_cast<bf16*>(p.x), y.data = p.y;
  x.ndim = y.ndim = 2;
  x.shape = {p.m, p.k}, x.stride = {p.k, 1}, y.shape = {p.m, p.n}, y.stride = {p.n, 1};
  SmallLinearArgs a;
  a.x = DeviceRows(x, 1), a.y = DeviceRows(y, 1);
  a.weight = p.w, a.rows = p.m, a.cols = p.k, a.outputs = p.n, a.x_aligned = true;
  return a;
}

constexpr size_t kShared = size_t{226} << 10;  // of 227 KiB, static shared memory counted in
int g_processors = 1;

template <int kOutputs, int kStages>
void add_gemv(std::vector<Variant>* variants) {
  allow_shared(gemv_kernel<bf16, kOutputs, kStages, StoreLinear>, kShared);
  for (int warps : {4, 8, 16}) {
    for (int warps_k : {1, 2, 4, 8}) {
      for (int per_processor : {1, 2, 3}) {
        for (int l2 : {0, 64 << 10}) {
          if (warps_k > warps || warps * per_processor > 24) continue;
          std::ostringstream name;
          name << "gemv out" << kOutputs << " stages" << kStages << " warps" << warps << " k" << warps_k
               << " blocks" << per_processor << " l2_" << l2 / 1024;
          variants->push_back(
              {name.str(), 1, 1,
               [=](int, int n, int k) {
                 return (gemv_shared<kOutputs, kStages>(k, warps) + 1024) * per_processor <= kShared &&
                        k >= warps_k * kGemvChunk && n >= kOutputs;
               },
               [=](const Product& p, Stream stream, bool overlap) -> const char* {
                 launch_gemv<bf16, kOutputs, kStages>(
                     args_of(p), StoreLinear{},
                     SmallLinearLaunch{warps, warps_k, per_processor * g_processors, l2, overlap}, stream);
                 return take_launch_error();
               }});
        }
      }
    }
  }
}

template <int kOctets, int kRowGroups, int kStages, bool kStaged>
void add_mma(std::vector<Variant>* variants) {
  allow_shared(mma_kernel<bf16, kOctets, kRowGroups, kStages, kStaged, StoreLinear>, kShared);
  for (int warps : {4, 8, 16}) {
    for (int per_processor : {1, 2}) {
      for (int l2 : {0, 64 << 10}) {
        std::ostringstream name;
        name << "mma octets" << kOctets << " stages" << kStages << (kStaged ? " staged" : " direct")
             << " warps" << warps << " blocks" << per_processor << " l2_" << l2 / 1024;
        variants->push_back(
            {name.str(), kRowGroups == 1 ? 1 : kRowGroups * 4 + 1, kRowGroups * 8,
             [=](int m, int, int k) {
               return (mma_shared<kOctets, kRowGroups, kStages, kStaged>(k, m, warps) + 1024) *
                          per_processor <=
                      kShared;
             },
             [=](const Product& p, Stream stream, bool overlap) -> const char* {
               launch_mma<bf16, kOctets, kRowGroups, kStages, kStaged>(
                   args_of(p), StoreLinear{},
                   SmallLinearLaunch{warps, 1, per_processor * g_processors, l2, overlap}, stream);
               return take_launch_error();
             }});
      }
    }
  }
}

template <int kRowGroups>
void add_mma_rows(std::vector<Variant>* variants) {
  add_mma<1, kRowGroups, 8, true>(variants);
  add_mma<2, kRowGroups, 4, true>(variants);
  add_mma<2, kRowGroups, 8, true>(variants);
  add_mma<4, kRowGroups, 2, true>(variants);
  add_mma<4, kRowGroups, 4, true>(variants);
  add_mma<2, kRowGroups, 4, false>(variants);
  add_mma<2, kRowGroups, 8, false>(variants);
  add_mma<4, kRowGroups, 4, false>(variants);
}

size_t g_workspace_bytes = size_t{64} << 20;
uint8_t* g_workspace = nullptr;

template <int kRows, int kOutputs, int kDown, int kAcross, int kStages>
void add_tensor(std::vector<Variant>* variants) {
  allow_shared(tensor_linear_kernel<bf16, kRows, kOutputs, kDown, kAcross, kStages>,
               tensor_shared<kRows, kOutputs, kStages>());
  for (int splits : {1, 2, 3, 4, 6, 8}) {
    std::ostringstream name;
    name << "tensor " << kRows << "x" << kOutputs << " stages" << kStages << " splits" << splits;
    variants->push_back({name.str(), 9, 1 << 30,
                         [=](int m, int n, int k) {
                           return splits == 1 || (k / (64 * splits) >= 4 &&
                                                  size_t{4} * static_cast<size_t>(splits) *
                                                          static_cast<size_t>(m) * static_cast<size_t>(n) <=
                                                      g_workspace_bytes &&
                                                  (n + kOutputs - 1) / kOutputs * splits <= 6 * g_processors);
                         },
                         [=](const Product& p, Stream stream, bool overlap) -> const char* {
                           const SmallLinearArgs small = args_of(p);
                           TensorLinearArgs a;
                           a.x = small.x, a.y = small.y, a.weight = p.w;
                           a.rows = p.m, a.cols = p.k, a.outputs = p.n;
                           a.pairs = p.n % 2 == 0, a.splits = splits;
                           a.partial = reinterpret_cast<float*>(g_workspace);
                           launch_tensor_linear<bf16, kRows, kOutputs, kDown, kAcross, kStages>(a, stream,
                                                                                                overlap);
                           return take_launch_error();
                         }});
  }
}

uint32_t* g_arrived = nullptr;  // zeros

// splits 0: tiles' columns are shared evenly among all blocks.
template <int kRows, int kGroups, int kBoxes, int kStages>
void add_wgmma(std::vector<Variant>* variants) {
  allow_shared(wgmma_linear_kernel<bf16, kRows, kGroups, kBoxes, kStages, StoreLinear>,
               wgmma_shared<kRows, kGroups, kBoxes, kStages>());
  for (int splits : {0, 1, 2, 3, 4, 6, 8}) {
    std::ostringstream name;
    name << "wgmma " << kRows << "x" << kGroups * 64 << "x" << kBoxes * 64 << " stages" << kStages
         << " splits" << splits;
    const auto tiles = [](int n) { return (n + kGroups * 64 - 1) / (kGroups * 64); };
    variants->push_back({name.str(), kRows == 16 ? 1 : kRows / 2 + 1, kRows,
                         [=](int, int n, int) {
                           const int blocks = tiles(n) * splits;
                           return has_wgmma() &&
                                  (splits == 0 || (blocks <= g_processors && 2 * blocks >= g_processors));
                         },
                         [=](const Product& p, Stream stream, bool overlap) -> const char* {
                           WgmmaLinearArgs a;
                           a.linear = args_of(p);
                           a.partial = reinterpret_cast<float*>(g_workspace), a.arrived = g_arrived;
                           const WgmmaLinearLaunch l{splits, g_processors, overlap};
                           if (const char* why = launch_wgmma_linear<bf16, kRows, kGroups, kBoxes, kStages>(
                                   a, StoreLinear{}, l, stream))
                             return why;
                           return take_launch_error();
                         }});
  }
}

// ---- timing ----

struct Device {
  cudaStream_t stream;
  cudaEvent_t begin, end;
  bf16* weights;
  int64_t capacity;  // elements
  bf16 *x, *y;
  float *expected, *worst;
  void* workspace;
};

// Seconds of one replay of what `record` launches, the least of three.
double time_graph(const Device& d, const std::function<void(cudaStream_t)>& record) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_CUDA(cudaStreamBeginCapture(d.stream, cudaStreamCaptureModeThreadLocal));
  record(d.stream);
  CHECK_CUDA(cudaStreamEndCapture(d.stream, &graph));
  CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
  float least = 1e30f;
  for (int i = 0; i < 4; ++i) {
    CHECK_CUDA(cudaEventRecord(d.begin, d.stream));
    CHECK_CUDA(cudaGraphLaunch(exec, d.stream));
    CHECK_CUDA(cudaEventRecord(d.end, d.stream));
    CHECK_CUDA(cudaStreamSynchronize(d.stream));
    float ms = 0;
    CHECK_CUDA(cudaEventElapsedTime(&ms, d.begin, d.end));
    if (i > 0) least = std::min(least, ms);
  }
  CHECK_CUDA(cudaGraphExecDestroy(exec));
  CHECK_CUDA(cudaGraphDestroy(graph));
  return static_cast<double>(least) * 1e-3;
}

struct Result {
  std::string name;
  double seconds;
};

struct Shape {
  std::string of;
  int n, k;
};

// Largest error relative to 0.05 + |y|; the plain kernel's results are in d.expected.
float error_of(const Device& d, const Product& p, const Launch& launch) {
  CHECK_CUDA(cudaMemsetAsync(d.y, 0xff, size_t{2} * p.m * p.n, d.stream));
  CHECK_CUDA(cudaMemsetAsync(d.worst, 0, 4, d.stream));
  const char* error = launch(p, d.stream, true);
  if (error) {
    std::printf("    %s\n", error);
    return 1e9f;
  }
  compare<<<256, 256, 0, d.stream>>>(d.y, d.expected, int64_t{p.m} * p.n, d.worst);
  float worst = 0;
  CHECK_CUDA(cudaMemcpyAsync(&worst, d.worst, 4, cudaMemcpyDeviceToHost, d.stream));
  CHECK_CUDA(cudaStreamSynchronize(d.stream));
  return worst;
}

void bench(const Device& d, const std::vector<Variant>& variants, const Shape& s, int m,
           const std::string& only, size_t best, bool overlap, double copy_rate, std::FILE* csv) {
  const int64_t elements = int64_t{s.n} * s.k;
  const int copies = static_cast<int>(std::clamp<int64_t>((int64_t{128} << 20) / elements + 1, 2,
                                                          std::max<int64_t>(d.capacity / elements, 1)));
  const int launches = std::max(copies, 4);
  const auto product = [&](int i) {
    return Product{m, s.n, s.k, d.x, d.weights + (i % copies) * elements, d.y};
  };
  reference<<<dim3(static_cast<unsigned>((s.n + 7) / 8), static_cast<unsigned>(m)), 256, 0, d.stream>>>(
      d.x, d.weights, d.expected, s.n, s.k);
  std::vector<Result> results;
  const auto measure = [&](const std::string& name, const Launch& launch) {
    if (!only.empty() && name.find(only) == std::string::npos) return;
    const float error = error_of(d, product(0), launch);
    if (!(error < 0.02f)) std::printf("  WRONG %s: error %g\n", name.c_str(), static_cast<double>(error));
    const double seconds = time_graph(d,
                                      [&](cudaStream_t stream) {
                                        for (int i = 0; i < launches; ++i) {
                                          if (const char* e = launch(product(i), stream, overlap))
                                            std::printf("  %s: %s\n", name.c_str(), e);
                                        }
                                      }) /
                           launches;
    results.push_back({name, seconds});
    if (csv)
      std::fprintf(csv, "%s,%d,%d,%d,%s,%.3f\n", s.of.c_str(), m, s.n, s.k, name.c_str(), seconds * 1e6);
  };
  for (const Variant& v : variants) {
    if (m >= v.min_rows && m <= v.max_rows && v.fits(m, s.n, s.k)) measure(v.name, v.launch);
  }
  std::string why;
  const std::shared_ptr<LtLinear> lt = LtLinear::make(DType::kBF16, s.n, s.k, false, &why);
  double lt_seconds = 0;
  if (lt) {
    measure("cublaslt", [&, lt](const Product& p, Stream stream, bool) {
      return lt->run(stream, p.m, p.x, p.k, p.w, nullptr, p.y, p.n, d.workspace, LtLinear::kWorkspace);
    });
    if (!results.empty() && results.back().name == "cublaslt") lt_seconds = results.back().seconds;
  } else {
    static bool said = false;
    if (!said) std::printf("no cublaslt: %s\n", why.c_str());
    said = true;
  }
  std::sort(results.begin(), results.end(),
            [](const Result& a, const Result& b) { return a.seconds < b.seconds; });
  const double bytes = 2.0 * static_cast<double>(elements) + 2.0 * m * (s.n + s.k);
  std::printf("%-3s m %-2d n %-6d k %-5d  cublaslt %.2f us\n", s.of.c_str(), m, s.n, s.k, lt_seconds * 1e6);
  for (size_t i = 0; i < std::min(best, results.size()); ++i) {
    const double rate = bytes / results[i].seconds;
    std::printf("    %8.2f us  %.3f TB/s  %5.1f%%  %s\n", results[i].seconds * 1e6, rate * 1e-12,
                100 * rate / copy_rate, results[i].name.c_str());
  }
  std::fflush(stdout);
}

struct Model {
  const char* name;
  int hidden, qkv, inner, vocab, layers;
};
constexpr Model kModels[] = {{"8b", 4096, 6144, 14336, 128256, 32},
                             {"1b", 2048, 3072, 8192, 128256, 16},
                             {"3b", 2048, 2560, 11008, 151936, 36}};

// A decode step of one row.
void chain(const Device& d, const Model& model, double pause_us, double copy_rate) {
  int clock_khz = 0;
  CHECK_CUDA(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0));
  const auto cycles = static_cast<long long>(pause_us * clock_khz / 1000);
  const Shape linears[] = {{"qkv", model.qkv, model.hidden},
                           {"o", model.hidden, model.hidden},
                           {"up", 2 * model.inner, model.hidden},
                           {"down", model.hidden, model.inner}};
  int64_t layer_elements = 0;
  for (const Shape& s : linears) layer_elements += int64_t{s.n} * s.k;
  const int layers = static_cast<int>(std::min<int64_t>(model.layers, d.capacity / layer_elements));
  const int64_t head = int64_t{model.vocab} * model.hidden;
  const double bytes = 2.0 * (static_cast<double>(layer_elements) * model.layers + static_cast<double>(head));
  std::printf("%s: weights %.2f GB, at a copy's rate %.2f ms\n", model.name, bytes * 1e-9,
              bytes / copy_rate * 1e3);
  const auto one_token = [&](const char* name, int warps, int l2_kib, bool fused, bool overlap) {
    const auto linear = [&](const Shape& s, const bf16* w, cudaStream_t stream) {
      const bool gate = fused && s.of == "up", norm = fused && (gate || s.of == "qkv" || s.of == "head");
      SmallLinearArgs a = args_of(Product{1, gate ? s.n / 2 : s.n, s.k, d.x, w, d.y});
      const SmallLinearChoice c = choose_small_linear(1, s.k, a.outputs, gate ? 2 : 1, norm, g_processors);
      const SmallLinearLaunch l{warps, c.warps_k, g_processors, l2_kib << 10, overlap};
      if (norm) {
        a.norm.on = true;
        a.norm.weight = w, a.norm.eps = 1e-5f;
        a.norm.residual = a.x;
        a.norm.sum = a.y;
        a.norm.sum.data = d.expected;
      }
      if (gate) {
        a.slice_offset[1] = s.n / 2;
        launch_gemv<bf16, 1, 8>(a, GateStore{}, l, stream);
      } else {
        launch_gemv<bf16, 1, 16>(a, StoreLinear{}, l, stream);
      }
    };
    const auto between = [&](unsigned blocks, cudaStream_t stream) {
      launch(LaunchConfig{dim3(blocks), dim3(128), stream, 0, overlap}, pause, cycles);
    };
    const double body = time_graph(d, [&](cudaStream_t stream) {
      for (int layer = 0; layer < layers; ++layer) {
        const bf16* w = d.weights + layer * layer_elements;
        for (const Shape& s : linears) {
          if (s.of == "o") {  // rope, attention
            between(8, stream);
            between(64, stream);
          } else if (!fused) {  // a norm, an activation
            between(1, stream);
          }
          linear(s, w, stream);
          w += int64_t{s.n} * s.k;
        }
      }
    });
    const double whole = body / layers * model.layers + time_graph(d, [&](cudaStream_t stream) {
                           if (!fused) between(1, stream);
                           linear({"head", model.vocab, model.hidden}, d.weights, stream);
                         });
    if (const char* e = take_launch_error()) std::printf("  %s\n", e);
    std::printf("    %6.2f us a layer, %6.3f ms a token   warps %d, l2 %d KiB, %s\n", body / layers * 1e6,
                whole * 1e3, warps, l2_kib, name);
    std::fflush(stdout);
  };
  one_token("parts, no overlap", 8, 0, false, false);
  for (int warps : {8, 16}) {
    for (int l2_kib : {0, 32, 64, 96, 128, 192, 256}) {
      one_token("parts", warps, l2_kib, false, true);
      one_token("norms and gate fused", warps, l2_kib, true, true);
    }
  }
}

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream s(text);
  for (std::string part; std::getline(s, part, ',');) parts.push_back(part);
  return parts;
}

}  // namespace

int main(int argc, char** argv) {
  std::string shapes = "8b,1b,3b", rows = "1,2,4,8,16,32,64", only, csv_path, chains;
  size_t best = 3;
  bool overlap = true;
  double pause_us = 1.5;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 < argc) return argv[++i];
      std::fprintf(stderr, "%s: expected a value\n", flag.c_str());
      std::exit(1);
    };
    if (flag == "--shapes")
      shapes = value();
    else if (flag == "--rows")
      rows = value();
    else if (flag == "--only")
      only = value();
    else if (flag == "--best")
      best = std::stoul(value());
    else if (flag == "--no-overlap")
      overlap = false;
    else if (flag == "--csv")
      csv_path = value();
    else if (flag == "--chain")
      chains = value();
    else if (flag == "--pause")
      pause_us = std::stod(value());
    else {
      std::fprintf(stderr, "%s: expected one of the flags at the head of the source\n", flag.c_str());
      return 1;
    }
  }
  std::vector<Shape> list;
  for (const std::string& s : split(shapes)) {
    const size_t cross = s.find('x');
    if (cross != std::string::npos) {
      list.push_back({"", std::stoi(s), std::stoi(s.substr(cross + 1))});
      continue;
    }
    for (const Model& m : kModels) {
      if (s != m.name) continue;
      list.push_back({s, m.qkv, m.hidden});
      list.push_back({s, m.hidden, m.hidden});
      list.push_back({s, 2 * m.inner, m.hidden});
      list.push_back({s, m.hidden, m.inner});
      list.push_back({s, m.vocab, m.hidden});
    }
  }

  g_processors = num_multiprocessors();
  Device d = {};
  CHECK_CUDA(cudaStreamCreate(&d.stream));
  CHECK_CUDA(cudaEventCreate(&d.begin));
  CHECK_CUDA(cudaEventCreate(&d.end));
  d.capacity = int64_t{1} << 30;
  constexpr int64_t kMaxRows = 2048, kMaxX = 32768, kMaxOutputs = 262144;
  CHECK_CUDA(cudaMalloc(&d.weights, static_cast<size_t>(d.capacity) * 2));
  CHECK_CUDA(cudaMalloc(&d.x, kMaxRows * kMaxX * 2));
  CHECK_CUDA(cudaMalloc(&d.y, kMaxRows * kMaxOutputs * 2));
  CHECK_CUDA(cudaMalloc(&d.expected, kMaxRows * kMaxOutputs * 4));
  CHECK_CUDA(cudaMalloc(&d.worst, 4));
  CHECK_CUDA(cudaMalloc(&d.workspace, LtLinear::kWorkspace));
  CHECK_CUDA(cudaMalloc(&g_workspace, g_workspace_bytes));
  constexpr size_t kMaxTiles = 65536;
  CHECK_CUDA(cudaMalloc(&g_arrived, kMaxTiles * 4));
  CHECK_CUDA(cudaMemset(g_arrived, 0, kMaxTiles * 4));
  fill<<<1024, 256, 0, d.stream>>>(d.weights, d.capacity, 1);
  fill<<<1024, 256, 0, d.stream>>>(d.x, kMaxRows * kMaxX, 2);
  CHECK_CUDA(cudaStreamSynchronize(d.stream));

  const auto half = static_cast<size_t>(d.capacity);  // bytes: one half of the weights onto the other
  const double copy_rate =
      2 * static_cast<double>(half) / time_graph(d, [&](cudaStream_t stream) {
        CHECK_CUDA(cudaMemcpyAsync(d.weights, reinterpret_cast<uint8_t*>(d.weights) + half, half,
                                   cudaMemcpyDeviceToDevice, stream));
      });
  const double read_rate =
      2 * static_cast<double>(half) / time_graph(d, [&](cudaStream_t stream) {
        read_all<<<static_cast<unsigned>(g_processors * 4), 512, 0, stream>>>(
            reinterpret_cast<const uint4*>(d.weights), d.capacity / 8, static_cast<uint32_t*>(d.workspace));
      });
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, 0));
  std::printf("%s, %d multiprocessors; copy %.3f TB/s, read %.3f TB/s; shares are of the copy\n",
              properties.name, g_processors, copy_rate * 1e-12, read_rate * 1e-12);

  for (const std::string& name : split(chains)) {
    for (const Model& m : kModels) {
      if (name != m.name) continue;
      allow_shared(gemv_kernel<bf16, 1, 16, StoreLinear>, kShared);
      allow_shared(gemv_kernel<bf16, 1, 8, GateStore>, kShared);
      chain(d, m, pause_us, copy_rate);
    }
  }

  std::vector<Variant> variants;
  add_gemv<1, 8>(&variants);
  add_gemv<1, 16>(&variants);
  add_gemv<1, 24>(&variants);
  add_gemv<2, 8>(&variants);
  add_gemv<4, 4>(&variants);
  add_mma_rows<1>(&variants);
  add_mma_rows<2>(&variants);
  add_tensor<32, 128, 1, 8, 5>(&variants);
  add_tensor<32, 64, 1, 4, 6>(&variants);
  add_tensor<64, 128, 2, 4, 4>(&variants);
  add_tensor<64, 64, 2, 4, 5>(&variants);
  add_tensor<128, 128, 2, 2, 3>(&variants);
  add_wgmma<16, 1, 2, 10>(&variants);
  add_wgmma<16, 2, 2, 5>(&variants);
  add_wgmma<16, 2, 1, 5>(&variants);
  add_wgmma<16, 3, 1, 7>(&variants);
  add_wgmma<16, 4, 1, 6>(&variants);
  add_wgmma<32, 1, 2, 8>(&variants);
  add_wgmma<32, 2, 2, 5>(&variants);
  add_wgmma<32, 3, 1, 7>(&variants);
  add_wgmma<32, 4, 1, 5>(&variants);
  add_wgmma<64, 1, 1, 6>(&variants);
  add_wgmma<64, 1, 2, 6>(&variants);
  add_wgmma<64, 2, 1, 4>(&variants);
  add_wgmma<64, 2, 1, 8>(&variants);
  add_wgmma<64, 2, 2, 4>(&variants);
  add_wgmma<64, 3, 1, 6>(&variants);
  add_wgmma<64, 4, 1, 5>(&variants);
  std::FILE* csv = csv_path.empty() ? nullptr : std::fopen(csv_path.c_str(), "w");
  if (csv) std::fprintf(csv, "model,m,n,k,variant,us\n");
  for (const Shape& s : list) {
    for (const std::string& m : split(rows))
      bench(d, variants, s, std::stoi(m), only, best, overlap, copy_rate, csv);
  }
  if (csv) std::fclose(csv);
  return 0;
}
