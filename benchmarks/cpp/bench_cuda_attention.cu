// Attention on tensor cores on a GPU: microseconds of a layer, and TB/s (decode) or TFLOP/s (prefill), with
// their share of the rate of a copy of the same run. Results are first checked against a plain kernel.
//
//   nvcc -std=c++20 -O3 -arch=sm_90a -Icpp -Icpp/include benchmarks/cpp/bench_cuda_attention.cu
//        cpp/kernels/cuda/{launch,attention_decode,attention_prefill,attention_append}.cu
//        cpp/core/{dtype,error}.cc -o bench_cuda_attention
//   bench_cuda_attention [--only PART] [--heads 32/8/128,32/8/64,16/2/128] [--page 32] [--type bf16|f16]
//                        [--blocks 0,132,396] [--min-units 1,2,4] [--rows large,small] [--no-check]
//
// --only takes cases whose name contains PART, of: decode-1x1024, decode-1x4096, decode-1x32768,
// decode-8x2048, decode-64-ragged, decode-64x1536, prefill-1x1024, prefill-4x3106, chunk-8x512+4096. --heads:
// query heads, key heads, channels. Variants: --blocks and --min-units of decode (0: what the kernel
// chooses), --rows of prefill's tiles. A launch is one layer; layers have keys of their own, 256 MB or more
// in all (where that is no more than 64 layers), so that the second-level cache does not serve them, and are
// replayed from a graph. Decode appends its tokens; of prefill, that is a launch of its own in the same time.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cuda/paged_attention.h"

using namespace autodeploy;
using namespace autodeploy::cuda;

namespace {

#define CHECK_CUDA(call)                                                                   \
  do {                                                                                     \
    const cudaError_t status = (call);                                                     \
    if (status != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(status)); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (false)

// ---- plain kernels ----

template <class T>
__global__ void fill(T* p, int64_t n, uint32_t seed, float scale) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n;
       i += int64_t{gridDim.x} * blockDim.x) {
    uint32_t h = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(i >> 32) * 40503u + seed;
    h = (h ^ (h >> 15)) * 2246822519u;
    h = (h ^ (h >> 13)) * 3266489917u;
    p[i] = from_float<T>((static_cast<float>(h ^ (h >> 16)) / 4294967296.0f - 0.5f) * scale);
  }
}

// One token and query head per block; keys and values come from the pages. `tokens` lists what is checked.
template <class T>
__global__ void reference(PagedAttention a, const int* tokens, int key_len, int value_len, float scale,
                          float* out) {
  extern __shared__ float scores[];
  __shared__ float buffer[33];
  const int token = tokens[blockIdx.x], head = static_cast<int>(blockIdx.y), kv_head = head / a.group;
  const int seq = a.token_seq[token], query = a.kv_len[seq] - (a.query_start[seq + 1] - token);
  const int32_t* pages = a.pages + a.page_start[seq];
  const T* q = a.q.row<const T>(token, head);
  const auto row = [&](const uint8_t* data, int64_t page_bytes, int key, int width) {
    const int in_page = key & ((1 << a.page_shift) - 1);
    return reinterpret_cast<const T*>(data + pages[key >> a.page_shift] * page_bytes) +
           ((int64_t{kv_head} << a.page_shift) + in_page) * width;
  };
  float most = -INFINITY;
  for (int key = static_cast<int>(threadIdx.x); key <= query; key += static_cast<int>(blockDim.x)) {
    const T* k = row(a.k_pages, a.k_page_bytes, key, key_len);
    float dot = 0;
    for (int c = 0; c < key_len; ++c) dot += to_float(q[c]) * to_float(k[c]);
    scores[key] = dot * scale;
    most = fmaxf(most, dot * scale);
  }
  most = warp_max(most);
  if (threadIdx.x % 32 == 0) buffer[threadIdx.x / 32] = most;
  __syncthreads();
  for (unsigned w = 0; w < blockDim.x / 32; ++w) most = fmaxf(most, buffer[w]);
  __syncthreads();
  float sum = 0;
  for (int key = static_cast<int>(threadIdx.x); key <= query; key += static_cast<int>(blockDim.x)) {
    scores[key] = expf(scores[key] - most);
    sum += scores[key];
  }
  sum = block_sum(sum, buffer);
  for (int c = static_cast<int>(threadIdx.x); c < value_len; c += static_cast<int>(blockDim.x)) {
    float o = 0;
    for (int key = 0; key <= query; ++key)
      o += scores[key] * to_float(row(a.v_pages, a.v_page_bytes, key, value_len)[c]);
    out[(int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * value_len + c] = o / sum;
  }
}

template <class T>
__global__ void compare(PagedAttention a, const int* tokens, int value_len, const float* expected,
                        float* worst) {
  const T* out = a.out.row<const T>(tokens[blockIdx.x], blockIdx.y);
  const float* e = expected + (int64_t{blockIdx.x} * gridDim.y + blockIdx.y) * value_len;
  for (int c = static_cast<int>(threadIdx.x); c < value_len; c += static_cast<int>(blockDim.x)) {
    const float error = fabsf(to_float(out[c]) - e[c]) / (0.02f + fabsf(e[c]));
    atomicMax(reinterpret_cast<int*>(worst), __float_as_int(error < INFINITY ? error : 3e38f));
  }
}

// ---- the host's side ----

template <class T>
class Memory {
 public:
  explicit Memory(size_t n) : n_(n) { CHECK_CUDA(cudaMalloc(&data_, std::max<size_t>(n, 1) * sizeof(T))); }
  explicit Memory(const std::vector<T>& host) : Memory(host.size()) {
    CHECK_CUDA(cudaMemcpy(data_, host.data(), n_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Memory() { cudaFree(data_); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  T* data() const { return data_; }
  size_t size() const { return n_; }

 private:
  T* data_ = nullptr;
  size_t n_ = 0;
};

struct Sequence {
  int query_len, kv_len;
};
struct Case {
  std::string name;
  std::vector<Sequence> seqs;
  bool decode() const { return seqs[0].query_len == 1; }
};

std::vector<Case> all_cases() {
  std::vector<Case> cases;
  const auto add = [&](const char* name, int count, int query_len, int kv_len) {
    cases.push_back({name, std::vector<Sequence>(static_cast<size_t>(count), Sequence{query_len, kv_len})});
  };
  add("decode-1x1024", 1, 1, 1024);
  add("decode-1x4096", 1, 1, 4096);
  add("decode-1x32768", 1, 1, 32768);
  add("decode-8x2048", 8, 1, 2048);
  Case ragged{"decode-64-ragged", {}};
  std::mt19937 random(3);
  for (int i = 0; i < 64; ++i) ragged.seqs.push_back({1, 500 + static_cast<int>(random() % 3501)});
  cases.push_back(ragged);
  add("decode-64x1536", 64, 1, 1536);
  add("prefill-1x1024", 1, 1024, 1024);
  add("prefill-4x3106", 4, 3106, 3106);
  add("chunk-8x512+4096", 8, 512, 4608);
  return cases;
}

struct Heads {
  int q = 0, kv = 0, width = 0;
};
struct Options {
  std::string only;
  std::vector<Heads> heads{{32, 8, 128}, {32, 8, 64}, {16, 2, 128}};
  int page_size = 32;
  DType dtype = DType::kBF16;
  std::vector<int> blocks{0}, min_units{2};
  std::vector<std::string> rows{"auto"};
  bool check = true;
};

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

// Bytes per second of copies that are far larger than the second-level cache, read and written.
double copy_rate() {
  constexpr size_t kBytes = size_t{1} << 30;
  Memory<uint8_t> from(kBytes), to(kBytes);
  CHECK_CUDA(cudaMemset(from.data(), 1, kBytes));
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  float best = 1e9f;
  for (int i = 0; i < 5; ++i) {
    CHECK_CUDA(cudaEventRecord(begin));
    CHECK_CUDA(cudaMemcpyAsync(to.data(), from.data(), kBytes, cudaMemcpyDeviceToDevice));
    CHECK_CUDA(cudaEventRecord(end));
    CHECK_CUDA(cudaEventSynchronize(end));
    float ms = 0;
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    best = std::min(best, ms);
  }
  return 2.0 * kBytes / (best * 1e-3);
}

int shift_of(int page_size) {
  int shift = 0;
  while (1 << shift < page_size) ++shift;
  return shift;
}

template <class T>
void run_case(const Case& c, const Heads& h, const Options& o, double copy) {
  const auto num_seqs = static_cast<int>(c.seqs.size());
  std::vector<int32_t> query_start{0}, kv_len, page_start, pages, token_seq;
  int max_query_len = 1;
  double flops = 0, keys = 0;
  for (const Sequence& s : c.seqs) {
    page_start.push_back(static_cast<int32_t>(pages.size()));
    for (int p = 0; p * o.page_size < s.kv_len; ++p) pages.push_back(static_cast<int32_t>(pages.size()) + 1);
    for (int t = 0; t < s.query_len; ++t) {
      token_seq.push_back(num_seqs > 0 ? static_cast<int32_t>(kv_len.size()) : 0);
      flops += 4.0 * h.q * h.width * (s.kv_len - s.query_len + t + 1);
    }
    query_start.push_back(query_start.back() + s.query_len);
    kv_len.push_back(s.kv_len);
    keys += s.kv_len;
    max_query_len = std::max(max_query_len, s.query_len);
  }
  std::shuffle(pages.begin(), pages.end(), std::mt19937(5));
  const int64_t tokens = query_start.back();
  const auto page_elements = static_cast<int64_t>(h.kv) * o.page_size * h.width;
  const auto layer_elements = static_cast<size_t>((static_cast<int64_t>(pages.size()) + 1) * page_elements);
  const size_t layer_bytes = layer_elements * 2 * sizeof(T);
  const auto layers = static_cast<int>(
      c.decode() ? std::clamp<size_t>((size_t{256} << 20) / layer_bytes + 1, 4, 64) : size_t{4});

  Memory<T> k_pages(layer_elements * static_cast<size_t>(layers)),
      v_pages(layer_elements * static_cast<size_t>(layers));
  const int64_t qkv_width = static_cast<int64_t>(h.q + 2 * h.kv) * h.width;  // as one fused result
  Memory<T> qkv(static_cast<size_t>(tokens * qkv_width)), out(static_cast<size_t>(tokens * h.q * h.width));
  fill<<<1024, 256>>>(k_pages.data(), static_cast<int64_t>(k_pages.size()), 1u, 3.4f);
  fill<<<1024, 256>>>(v_pages.data(), static_cast<int64_t>(v_pages.size()), 2u, 3.4f);
  fill<<<1024, 256>>>(qkv.data(), static_cast<int64_t>(qkv.size()), 3u, 3.4f);
  CHECK_CUDA(cudaMemset(out.data(), 0xff, out.size() * sizeof(T)));
  Memory<int32_t> d_query_start(query_start), d_kv_len(kv_len), d_page_start(page_start), d_pages(pages),
      d_token_seq(token_seq);

  PagedAttention a;
  a.q = {qkv.data(), qkv_width, h.width, true};
  a.k = {qkv.data() + static_cast<int64_t>(h.q) * h.width, qkv_width, h.width, true};
  a.v = {qkv.data() + static_cast<int64_t>(h.q + h.kv) * h.width, qkv_width, h.width, true};
  a.out = {out.data(), static_cast<int64_t>(h.q) * h.width, h.width, true};
  a.k_page_bytes = a.v_page_bytes = page_elements * static_cast<int64_t>(sizeof(T));
  a.page_shift = shift_of(o.page_size);
  a.page_start = d_page_start.data(), a.pages = d_pages.data();
  a.query_start = d_query_start.data(), a.kv_len = d_kv_len.data(), a.token_seq = d_token_seq.data();
  a.kv_heads = h.kv, a.group = h.q / h.kv;
  const float scale = 1.0f / std::sqrt(static_cast<float>(h.width));
  a.set_scale(scale, 0);

  if (!prepare_decode(o.dtype, h.width, h.width) || !prepare_prefill(o.dtype, h.width, h.width)) {
    std::printf("no kernels for %d channels\n", h.width);
    return;
  }
  const int usual_blocks = decode_blocks(h.width, h.width);
  int most_blocks = usual_blocks;
  for (int b : o.blocks) most_blocks = std::max(most_blocks, b);
  Memory<float> partials(static_cast<size_t>(decode_partial_floats(most_blocks, h.width, a.group)));
  Memory<int32_t> counters(static_cast<size_t>(num_seqs) *
                           static_cast<size_t>(h.kv * decode_head_tiles(a.group)));
  CHECK_CUDA(cudaMemset(counters.data(), 0, counters.size() * sizeof(int32_t)));
  a.partials = partials.data(), a.counters = counters.data();

  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreate(&stream));
  std::vector<int> checked;
  for (int i = 0; i < 48; ++i)
    checked.push_back(
        static_cast<int>(i < 16 ? tokens - 1 - std::min<int64_t>(i, tokens - 1) : (i * 7919) % tokens));
  Memory<int> d_checked(checked);
  Memory<float> expected(checked.size() * static_cast<size_t>(h.q * h.width)), worst(1);

  struct Variant {
    std::string name;
    int blocks = 0, min_units = 2, max_query_len = 1;
  };
  std::vector<Variant> variants;
  if (c.decode()) {
    for (int b : o.blocks) {
      for (int u : o.min_units) {
        const int blocks = b > 0 ? b : usual_blocks;
        variants.push_back(
            {std::to_string(blocks) + " blocks, " + std::to_string(u) + " units", blocks, u, 1});
      }
    }
  } else {
    for (const std::string& rows : o.rows)
      variants.push_back({rows + " tiles", 0, 2,
                          rows == "large"   ? 1 << 20
                          : rows == "small" ? 1
                                            : max_query_len});
  }
  for (const Variant& v : variants) {
    const auto layer = [&](int i) {
      PagedAttention l = a;
      l.k_pages = reinterpret_cast<uint8_t*>(k_pages.data() + static_cast<size_t>(i) * layer_elements);
      l.v_pages = reinterpret_cast<uint8_t*>(v_pages.data() + static_cast<size_t>(i) * layer_elements);
      l.min_units = v.min_units;
      if (c.decode()) {
        launch_decode(o.dtype, h.width, h.width, l, num_seqs, v.blocks, stream);
      } else {
        launch_append(o.dtype, h.width, h.width, l, 0, tokens, stream);
        launch_prefill(o.dtype, h.width, h.width, l, 0, num_seqs, 0, tokens, v.max_query_len, stream);
      }
      return l;
    };
    float error = -1;
    if (o.check) {
      const PagedAttention l = layer(0);
      const dim3 grid(static_cast<unsigned>(checked.size()), static_cast<unsigned>(h.q));
      const int shared = *std::max_element(kv_len.begin(), kv_len.end()) * static_cast<int>(sizeof(float));
      CHECK_CUDA(cudaFuncSetAttribute(reference<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
      reference<T><<<grid, 256, static_cast<size_t>(shared), stream>>>(l, d_checked.data(), h.width, h.width,
                                                                       scale, expected.data());
      CHECK_CUDA(cudaMemsetAsync(worst.data(), 0, sizeof(float), stream));
      compare<T><<<grid, 128, 0, stream>>>(l, d_checked.data(), h.width, expected.data(), worst.data());
      CHECK_CUDA(cudaMemcpyAsync(&error, worst.data(), sizeof(float), cudaMemcpyDeviceToHost, stream));
      CHECK_CUDA(cudaStreamSynchronize(stream));
    }
    if (const char* why = take_launch_error()) {
      std::printf("%-18s %s: %s\n", c.name.c_str(), v.name.c_str(), why);
      continue;
    }
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < layers; ++i) (void)layer(i);
    CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
    CHECK_CUDA(cudaGraphInstantiate(&exec, graph, 0));
    cudaEvent_t begin, end;
    CHECK_CUDA(cudaEventCreate(&begin));
    CHECK_CUDA(cudaEventCreate(&end));
    float best = 1e9f;
    for (int i = 0; i < 12; ++i) {
      CHECK_CUDA(cudaEventRecord(begin, stream));
      CHECK_CUDA(cudaGraphLaunch(exec, stream));
      CHECK_CUDA(cudaEventRecord(end, stream));
      CHECK_CUDA(cudaEventSynchronize(end));
      float ms = 0;
      CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
      if (i >= 2) best = std::min(best, ms);
    }
    CHECK_CUDA(cudaGraphExecDestroy(exec));
    CHECK_CUDA(cudaGraphDestroy(graph));
    const double seconds = best * 1e-3 / layers;
    const double bytes = keys * h.kv * h.width * 2 * sizeof(T);
    std::printf(
        "%2d/%d x %-3d %-18s %-22s %9.2f us  %6.3f TB/s (%3.0f%% of copy)  %7.1f TFLOP/s  error %.1e%s\n",
        h.q, h.kv, h.width, c.name.c_str(), v.name.c_str(), seconds * 1e6, bytes / seconds * 1e-12,
        100 * bytes / seconds / copy, flops / seconds * 1e-12, static_cast<double>(error),
        o.check && !(error < 0.25f) ? "  WRONG" : "");
    std::fflush(stdout);
  }
  CHECK_CUDA(cudaStreamDestroy(stream));
}

Options options_of(int argc, char** argv) {
  Options o;
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    if (arg == "--no-check") {
      o.check = false;
      continue;
    }
    if (i + 1 == argc) {
      std::fprintf(stderr, "%s: expected a value\n", arg.c_str());
      std::exit(2);
    }
    const std::string value = argv[++i];
    const auto integers = [&](std::vector<int>* list) {
      list->clear();
      for (const std::string& part : split(value, ',')) list->push_back(std::atoi(part.c_str()));
    };
    if (arg == "--only") {
      o.only = value;
    } else if (arg == "--page") {
      o.page_size = std::atoi(value.c_str());
    } else if (arg == "--type") {
      o.dtype = value == "f16" ? DType::kF16 : DType::kBF16;
    } else if (arg == "--blocks") {
      integers(&o.blocks);
    } else if (arg == "--min-units") {
      integers(&o.min_units);
    } else if (arg == "--rows") {
      o.rows = split(value, ',');
    } else if (arg == "--heads") {
      o.heads.clear();
      for (const std::string& part : split(value, ',')) {
        Heads h;
        if (std::sscanf(part.c_str(), "%d/%d/%d", &h.q, &h.kv, &h.width) != 3 || h.kv < 1 ||
            h.q % h.kv != 0) {
          std::fprintf(stderr, "--heads: expected 32/8/128, found %s\n", part.c_str());
          std::exit(2);
        }
        o.heads.push_back(h);
      }
    } else {
      std::fprintf(stderr, "unknown option %s\n", arg.c_str());
      std::exit(2);
    }
  }
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = options_of(argc, argv);
  const double copy = copy_rate();
  cudaDeviceProp device;
  CHECK_CUDA(cudaGetDeviceProperties(&device, 0));
  std::printf("%s, %d multiprocessors, copy %.2f TB/s\n", device.name, device.multiProcessorCount,
              copy * 1e-12);
  for (const Heads& h : o.heads) {
    for (const Case& c : all_cases()) {
      if (c.name.find(o.only) == std::string::npos) continue;
      dispatch_half(o.dtype, [&](auto t) { run_case<typename decltype(t)::type>(c, h, o, copy); });
    }
  }
  return 0;
}
