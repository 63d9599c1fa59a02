// attention in all of its forms: the step's keys and values are put into their pages, then each block takes
// one token and some query heads of one key head. Its warps share the keys out among them, 32 at a time, each
// with a running maximum (Milakov and Gimelshein 2018, arXiv:1805.02867), and put their parts together at the
// end.
#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_form.h"
#include "kernels/cuda/float_view.h"
#include "kernels/cuda/kv_page.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpSize;
constexpr int kRun = 4;                              // neighbouring channels of values of a lane
constexpr int kRuns = 2;                             // of a lane
constexpr int kChannels = kWarpSize * kRun * kRuns;  // of values, of a block
constexpr size_t kSharedBytes = 48 * 1024;           // what any device gives without being asked
constexpr float kInf = std::numeric_limits<float>::infinity();

// What a step's tokens belong to.
struct StepArgs {
  const int32_t *token_seq = nullptr, *query_start = nullptr, *kv_len = nullptr;

  explicit StepArgs(const DeviceStep& s)
      : token_seq(s.token_seq), query_start(s.query_start), kv_len(s.kv_len) {}
  // Place of a token in its sequence.
  AD_DEVICE int32_t place(int64_t token, int32_t seq) const {
    return kv_len[seq] - (query_start[seq + 1] - static_cast<int32_t>(token));
  }
};

// ---- the step's keys and values into their pages: a block for each token ----

struct AppendArgs {
  StepArgs step;
  FloatView k, v;
  PagedComponent k_pages, v_pages;
  DevicePageTable table;
  int heads = 0;
  bool wide = false;  // rows may be moved in 16 bytes

  explicit AppendArgs(const DeviceStep& s) : step(s) {}
};

template <class T>
AD_DEVICE void append_rows(const FloatView& from, const PagedComponent& to, const int32_t* pages,
                           int64_t token, int32_t place, int heads, bool wide) {
  const int width = static_cast<int>(to.width);
  if constexpr (!std::is_same_v<T, AnyFloat>) {
    constexpr int kCount = 16 / sizeof(T);
    using Row = Pack<T, kCount>;
    if (wide) {
      const int packs = width / kCount;
      for (int i = static_cast<int>(threadIdx.x); i < heads * packs; i += kThreads) {
        const int head = i / packs, c = i % packs;
        const T* row = static_cast<const T*>(from.data) + token * from.stride[0] + head * from.stride[1];
        reinterpret_cast<Row*>(to.row(pages, head, place))[c] = reinterpret_cast<const Row*>(row)[c];
      }
      return;
    }
  }
  for (int i = static_cast<int>(threadIdx.x); i < heads * width; i += kThreads) {
    const int head = i / width, c = i % width;
    const int64_t at = token * from.stride[0] + head * from.stride[1] + c;
    store_common<T>(to.row(pages, head, place), to.dtype, c, load_common<T>(from.data, from.dtype, at));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) append_kernel(AppendArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x;
  const int32_t seq = a.step.token_seq[token], place = a.step.place(token, seq);
  const int32_t* pages = pages_of(a.table, seq);
  append_rows<T>(a.k, a.k_pages, pages, token, place, a.heads, a.wide);
  append_rows<T>(a.v, a.v_pages, pages, token, place, a.heads, a.wide);
}

// ---- which keys a token sees ----

struct KeyRange {
  int32_t window = 0, chunk = 0;
  bool causal = true;

  AD_DEVICE int32_t first(int32_t query) const {
    int32_t first = window > 0 && query >= window ? query - window + 1 : 0;
    if (chunk > 0) first = max(first, query / chunk * chunk);
    return first;
  }
  AD_DEVICE int32_t end(int32_t query, int32_t kv_len) const {
    const int32_t end = causal ? query + 1 : kv_len;
    if (chunk == 0) return end;
    const int64_t chunk_end = (int64_t{query} / chunk + 1) * chunk;
    return chunk_end < end ? static_cast<int32_t>(chunk_end) : end;
  }
};

// Lists of keys, made ready: of each list the keys that its token sees, each once, in ascending order.
struct ReadyLists {
  int32_t* keys = nullptr;    // [T, heads, length]
  int32_t* counts = nullptr;  // [T, heads]
  int64_t length = 0;
  int heads = 0;  // 0: there are no lists
};

struct ListArgs {
  StepArgs step;
  const int64_t* lists = nullptr;
  int64_t token_stride = 0, head_stride = 0;
  ReadyLists ready;
  KeyRange range;

  explicit ListArgs(const DeviceStep& s) : step(s) {}
};

constexpr int kListThreads = 256, kListWords = 4096;

// Sum of v over the threads before this one, and over all of them in *total.
AD_DEVICE int sum_before(int v, int* shared, int* total) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  int sum = v;
#pragma unroll
  for (int d = 1; d < kWarpSize; d *= 2) {
    const int before = __shfl_up_sync(0xffffffffu, sum, static_cast<unsigned>(d));
    if (lane >= d) sum += before;
  }
  if (lane == kWarpSize - 1) shared[warp] = sum;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kListThreads / kWarpSize; ++w) {
    if (w < warp) before += shared[w];
    all += shared[w];
  }
  __syncthreads();
  *total = all;
  return before + sum - v;
}

// A block for each list; keys that are met become bits, so many at a time as there are in shared memory.
__global__ void __launch_bounds__(kListThreads) list_kernel(ListArgs a) {
  __shared__ uint32_t bits[kListWords];
  __shared__ int sums[kListThreads / kWarpSize];
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x, head = blockIdx.y;
  const int thread = static_cast<int>(threadIdx.x);
  const int32_t seq = a.step.token_seq[token], query = a.step.place(token, seq), len = a.step.kv_len[seq];
  const int64_t low = a.range.first(query), high = min(a.range.end(query, len), len);
  const int64_t* list = a.lists + token * a.token_stride + head * a.head_stride;
  const int64_t index = token * a.ready.heads + head;
  int32_t* keys = a.ready.keys + index * a.ready.length;
  int count = 0;
  constexpr int64_t kSpan = int64_t{32} * kListWords;
  for (int64_t base = low / kSpan * kSpan; base < high; base += kSpan) {
    const int words = static_cast<int>((min(high - base, kSpan) + 31) / 32);
    for (int i = thread; i < words; i += kListThreads) bits[i] = 0;
    __syncthreads();
    const int64_t from = max(low, base), to = min(high, base + kSpan);
    for (int64_t i = thread; i < a.ready.length; i += kListThreads) {
      const int64_t key = list[i];
      if (key < from || key >= to) continue;
      const uint32_t at = static_cast<uint32_t>(key - base);
      atomicOr(&bits[at / 32], 1u << (at % 32));
    }
    __syncthreads();
    const int each = (words + kListThreads - 1) / kListThreads;
    const int first = min(thread * each, words), last = min(first + each, words);
    int own = 0, total = 0;
    for (int i = first; i < last; ++i) own += __popc(bits[i]);
    int at = count + sum_before(own, sums, &total);
    for (int i = first; i < last; ++i) {
      for (uint32_t word = bits[i]; word != 0; word &= word - 1)
        keys[at++] = static_cast<int32_t>(base) + i * 32 + __ffs(word) - 1;
    }
    count += total;
    __syncthreads();
  }
  if (thread == 0) a.ready.counts[index] = count;
}

// ---- attention: a block for each token, some heads of a key head, and some channels of values ----

struct AttentionArgs {
  StepArgs step;
  FloatView q, out, sinks, slopes, table;
  PagedComponent k, v;
  DevicePageTable pages;
  ReadyLists lists;
  KeyRange range;
  bool token_sinks = false;
  bool wide_keys = false, wide_values = false;  // rows may be read in packs
  int64_t reach = 0;
  int group = 0, key_len = 0, value_len = 0;
  float scale = 0, softcap = 0;

  explicit AttentionArgs(const DeviceStep& s) : step(s) {}
};

// Floats of shared memory: queries; of each warp weights and where rows of values lie; of each warp maximum,
// sum and values of its part.
constexpr int kPart = 2 + kChannels;
constexpr int64_t shared_floats(int heads, int64_t key_len) {
  return heads * ((key_len + 3) / 4 * 4) + kWarps * kWarpSize * (heads + 2) + kWarps * heads * kPart;
}

// q . k for kHeads queries that lie `stride` floats apart.
template <class T, int kHeads>
AD_DEVICE void multiply_key(const AttentionArgs& a, const uint8_t* key, const float* q, int stride,
                            float* dots) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h) dots[h] = 0;
  if constexpr (!std::is_same_v<T, AnyFloat>) {
    if (a.wide_keys) {
      constexpr int kCount = 16 / sizeof(T);
      for (int c = 0; c < a.key_len; c += kCount) {
        const auto k = *reinterpret_cast<const Pack<T, kCount>*>(reinterpret_cast<const T*>(key) + c);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
#pragma unroll
          for (int i = 0; i < kCount; i += 4) {
            const auto x = *reinterpret_cast<const Pack<float, 4>*>(q + h * stride + c + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) dots[h] += x.x[j] * to_float(k.x[i + j]);
          }
        }
      }
      return;
    }
  }
  for (int c = 0; c < a.key_len; ++c) {
    const float k = load_common<T>(key, a.k.dtype, c);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) dots[h] += q[h * stride + c] * k;
  }
}

// kRun channels of a row of values from `channel` on; zeros behind its end.
template <class T>
AD_DEVICE void load_run(const AttentionArgs& a, const uint8_t* row, int channel, float* x) {
  if constexpr (!std::is_same_v<T, AnyFloat>) {
    if (a.wide_values) {
      if (channel < a.value_len) {
        const auto v = *reinterpret_cast<const Pack<T, kRun>*>(reinterpret_cast<const T*>(row) + channel);
#pragma unroll
        for (int i = 0; i < kRun; ++i) x[i] = to_float(v.x[i]);
      } else {
#pragma unroll
        for (int i = 0; i < kRun; ++i) x[i] = 0;
      }
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kRun; ++i)
    x[i] = channel + i < a.value_len ? load_common<T>(row, a.v.dtype, channel + i) : 0.0f;
}

template <class T, int kHeads>
__global__ void __launch_bounds__(kThreads) attention_kernel(AttentionArgs a) {
  AD_DYNAMIC_SHARED(float, shared);
  wait_for_previous();
  let_next_start();
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpSize, warp = thread / kWarpSize;
  const int64_t token = blockIdx.x;
  const int tiles = (a.group + kHeads - 1) / kHeads;
  const int kv_head = static_cast<int>(blockIdx.y) / tiles, tile = static_cast<int>(blockIdx.y) % tiles;
  const int first_head = kv_head * a.group + tile * kHeads, heads = min(kHeads, a.group - tile * kHeads);
  const int first_channel = static_cast<int>(blockIdx.z) * kChannels;
  const int32_t seq = a.step.token_seq[token], query = a.step.place(token, seq);
  const int32_t* pages = pages_of(a.pages, seq);

  const int stride = (a.key_len + 3) / 4 * 4;
  float* queries = shared;
  int64_t* offsets = reinterpret_cast<int64_t*>(queries + kHeads * stride) + warp * kWarpSize;
  float* weights =
      reinterpret_cast<float*>(offsets + (kWarps - warp) * kWarpSize) + warp * kHeads * kWarpSize;
  float* parts = weights + (kWarps - warp) * kHeads * kWarpSize;
  for (int i = thread; i < kHeads * a.key_len; i += kThreads) {
    const int h = i / a.key_len, c = i % a.key_len;
    const int64_t at = token * a.q.stride[0] + (first_head + h) * a.q.stride[1] + c;
    queries[h * stride + c] = h < heads ? load_common<T>(a.q.data, a.q.dtype, at) * a.scale : 0.0f;
  }
  __syncthreads();

  const int32_t* list = nullptr;
  int32_t first = a.range.first(query), end = a.range.end(query, a.step.kv_len[seq]);
  if (a.lists.heads > 0) {
    const int64_t index = token * a.lists.heads + (a.lists.heads > 1 ? kv_head : 0);
    list = a.lists.keys + index * a.lists.length;
    first = 0, end = a.lists.counts[index];
  }
  float most[kHeads], sum[kHeads], o[kHeads][kRuns][kRun];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    most[h] = -kInf, sum[h] = 0;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) o[h][r][i] = 0;
    }
  }
  for (int64_t base = int64_t{first} + warp * kWarpSize; base < end; base += kThreads) {
    const int count = static_cast<int>(min(int64_t{kWarpSize}, end - base));
    // A lane scores one key.
    float scores[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) scores[h] = -kInf;
    if (lane < count) {
      const int32_t key = list ? list[base + lane] : static_cast<int32_t>(base) + lane;
      multiply_key<T, kHeads>(a, a.k.row(pages, kv_head, key), queries, stride, scores);
      offsets[lane] = a.v.row(pages, kv_head, key) - a.v.data;
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h >= heads) continue;
        if (a.softcap != 0) scores[h] = a.softcap * tanhf(scores[h] / a.softcap);
        if (a.slopes.data) scores[h] += a.slopes.at(first_head + h) * static_cast<float>(key - query);
        if (query >= key && query - key < a.reach)
          scores[h] += a.table.at(token, first_head + h, query - key);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const float top = fmaxf(most[h], warp_max(scores[h]));
      const float still = top == -kInf ? 0.0f : top;  // keys that all weigh nothing
      const float keep = expf(most[h] - still), weight = expf(scores[h] - still);
      most[h] = top;
      sum[h] = sum[h] * keep + weight;  // of this lane's keys
      weights[h * kWarpSize + lane] = weight;
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
#pragma unroll
        for (int i = 0; i < kRun; ++i) o[h][r][i] *= keep;
      }
    }
    __syncwarp();
    // A lane has its channels of all values.
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
      const uint8_t* row = a.v.data + offsets[j];
#pragma unroll
      for (int r = 0; r < kRuns; ++r) {
        const int channel = first_channel + (r * kWarpSize + lane) * kRun;
        if (channel >= a.value_len) continue;
        float x[kRun];
        load_run<T>(a, row, channel, x);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          const float weight = weights[h * kWarpSize + j];
#pragma unroll
          for (int i = 0; i < kRun; ++i) o[h][r][i] += weight * x[i];
        }
      }
    }
    __syncwarp();  // offsets and weights have been read
  }

  // The warps' parts together.
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float* part = parts + (warp * kHeads + h) * kPart;
    const float total = warp_sum(sum[h]);
    if (lane == 0) part[0] = most[h], part[1] = total;
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
#pragma unroll
      for (int i = 0; i < kRun; ++i) part[2 + (r * kWarpSize + lane) * kRun + i] = o[h][r][i];
    }
  }
  __syncthreads();
  const int channels = min(kChannels, a.value_len - first_channel);
  for (int h = 0; h < heads; ++h) {
    const float* part = parts + h * kPart;
    float top = -kInf, total = 0;
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, part[w * kHeads * kPart]);
    float sink = -kInf;
    if (a.sinks.data) sink = a.token_sinks ? a.sinks.at(token, first_head + h) : a.sinks.at(first_head + h);
    top = fmaxf(top, sink);
    const float still = top == -kInf ? 0.0f : top;
    float share[kWarps];
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      share[w] = expf(part[w * kHeads * kPart] - still);
      total += share[w] * part[w * kHeads * kPart + 1];
    }
    // A token that sees no key gives zeros.
    const float inverse = end > first ? 1.0f / (total + expf(sink - still)) : 0.0f;
    const int64_t at = token * a.out.stride[0] + (first_head + h) * a.out.stride[1] + first_channel;
    for (int c = thread; c < channels; c += kThreads) {
      float value = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) value += share[w] * part[w * kHeads * kPart + 2 + c];
      store_common<T>(a.out.data, a.out.dtype, at + c, value * inverse);
    }
  }
}

// ---- the host's side ----

struct AttentionState {
  AttentionForm form;
  StateSpec state;
  std::optional<DType> common;  // dtype of queries, keys, values, results and pages
  int heads = 1;                // of a block: 1, 2 or 4
  int64_t list_length = 0, max_tokens = 0;

  int list_heads() const {
    return list_length == 0 ? 0 : form.head_lists ? static_cast<int>(form.kv_heads) : 1;
  }
  int64_t workspace_bytes() const {
    return max_tokens * list_heads() * (list_length + 1) * static_cast<int64_t>(sizeof(int32_t));
  }
};

// Whether all rows of a view [T, heads, width] begin at multiples of `bytes`.
bool rows_aligned(const TensorView& v, int64_t bytes) {
  const int64_t size = dtype_size(v.dtype);
  return reinterpret_cast<uintptr_t>(v.data) % static_cast<uintptr_t>(bytes) == 0 &&
         v.stride[0] * size % bytes == 0 && v.stride[1] * size % bytes == 0;
}
bool rows_aligned(const PagedComponent& c, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(c.data) % static_cast<uintptr_t>(bytes) == 0 &&
         c.page_bytes % bytes == 0 && c.width * c.element_bytes % bytes == 0;
}

void append(const AttentionState& s, const KernelCall& call) {
  AppendArgs a(*call.device);
  a.k = FloatView(call.in[1]), a.v = FloatView(call.in[2]);
  a.k_pages = PagedComponent(*call.states[0], s.state, 0);
  a.v_pages = PagedComponent(*call.states[0], s.state, 1);
  a.table = call.device->page_tables[s.form.page_group];
  a.heads = static_cast<int>(s.form.kv_heads);
  a.wide = rows_aligned(call.in[1], 16) && rows_aligned(call.in[2], 16) && rows_aligned(a.k_pages, 16) &&
           rows_aligned(a.v_pages, 16);
  const LaunchConfig config{dim3(static_cast<unsigned>(call.device->num_tokens)), dim3(kThreads),
                            stream_of(call), 0, true};
  dispatch_common(s.common, [&](auto t) { launch(config, append_kernel<typename decltype(t)::type>, a); });
}

KeyRange range_of(const AttentionForm& form) {
  return {static_cast<int32_t>(form.window), static_cast<int32_t>(form.chunk), form.causal};
}

ReadyLists make_lists_ready(const AttentionState& s, const KernelCall& call) {
  ReadyLists ready;
  if (s.list_length == 0) return ready;
  ready.heads = s.list_heads();
  ready.length = s.list_length;
  ready.counts = reinterpret_cast<int32_t*>(call.workspace);
  ready.keys = ready.counts + s.max_tokens * ready.heads;
  ListArgs a(*call.device);
  const TensorView& lists = call.in[kListedKeys];
  a.lists = lists.as<const int64_t>();
  a.token_stride = lists.stride[0];
  a.head_stride = s.form.head_lists ? lists.stride[1] : 0;
  a.ready = ready;
  a.range = range_of(s.form);
  const dim3 grid(static_cast<unsigned>(call.device->num_tokens), static_cast<unsigned>(ready.heads));
  launch({grid, dim3(kListThreads), stream_of(call), 0, true}, list_kernel, a);
  return ready;
}

template <class T>
void attend(const AttentionState& s, const LaunchConfig& config, const AttentionArgs& a) {
  if (s.heads == 4)
    launch(config, attention_kernel<T, 4>, a);
  else if (s.heads == 2)
    launch(config, attention_kernel<T, 2>, a);
  else
    launch(config, attention_kernel<T, 1>, a);
}

void run_attention(const AttentionState& s, const KernelCall& call) {
  const AttentionForm& form = s.form;
  if (form.appends) append(s, call);
  AttentionArgs a(*call.device);
  a.lists = make_lists_ready(s, call);
  a.q = FloatView(call.in[0]), a.out = FloatView(call.out[0]);
  if (form.has_sinks) a.sinks = FloatView(call.in[kSinks]);
  if (form.has_slopes) a.slopes = FloatView(call.in[kSlopes]);
  if (form.reach > 0) a.table = FloatView(call.in[kBiasTable]);
  a.k = PagedComponent(*call.states[0], s.state, 0), a.v = PagedComponent(*call.states[0], s.state, 1);
  a.pages = call.device->page_tables[form.page_group];
  a.range = range_of(form);
  a.token_sinks = form.token_sinks;
  a.wide_keys = rows_aligned(a.k, 16), a.wide_values = rows_aligned(a.v, kRun * a.v.element_bytes);
  a.reach = form.reach;
  a.group = static_cast<int>(form.group);
  a.key_len = static_cast<int>(form.key_len), a.value_len = static_cast<int>(form.value_len);
  a.scale = form.scale, a.softcap = form.softcap;
  const int64_t tiles = (form.group + s.heads - 1) / s.heads;
  const dim3 grid(static_cast<unsigned>(call.device->num_tokens),
                  static_cast<unsigned>(form.kv_heads * tiles), blocks_for(form.value_len, kChannels));
  const LaunchConfig config{grid, dim3(kThreads), stream_of(call),
                            static_cast<size_t>(shared_floats(s.heads, form.key_len)) * sizeof(float), true};
  dispatch_common(s.common, [&](auto t) { attend<typename decltype(t)::type>(s, config, a); });
}

}  // namespace

std::unique_ptr<Kernel> make_attention(const KernelSpec& spec, std::string* why) {
  AttentionState s;
  s.form = check_attention(spec);
  s.state = spec.states[0];
  s.max_tokens = spec.max_tokens;
  if (!all_float(spec, {0, 1, 2, kSinks, kSlopes, kBiasTable}, why)) return nullptr;
  const DType key_pages = s.state.components[0].dtype, value_pages = s.state.components[1].dtype;
  if (!is_float(key_pages) || !is_float(value_pages)) {
    *why = "it takes pages of floats";
    return nullptr;
  }
  const DType q = spec.in[0].dtype;
  s.common = common_dtype({q, s.form.appends ? spec.in[1].dtype : q, s.form.appends ? spec.in[2].dtype : q,
                           spec.out[0].dtype, key_pages, value_pages});
  if (spec.in[kListedKeys].present) s.list_length = spec.in[kListedKeys].shape.back().constant;
  const auto fits = [&](int heads) {
    return shared_floats(heads, s.form.key_len) * static_cast<int64_t>(sizeof(float)) <=
           static_cast<int64_t>(kSharedBytes);
  };
  s.heads = s.form.group > 2 ? 4 : s.form.group > 1 ? 2 : 1;
  while (s.heads > 1 && !fits(s.heads)) s.heads /= 2;
  if (!fits(s.heads) || s.form.q_heads > 65535 || s.form.value_len > 65535 * int64_t{kChannels}) {
    *why = "it takes keys of at most " + std::to_string(kSharedBytes / 4 - shared_floats(1, 0)) +
           " channels and at most 65535 heads";
    return nullptr;
  }
  const int64_t workspace = s.workspace_bytes();
  return make_function_kernel("attention.plain", std::move(s), run_attention, workspace);
}

}  // namespace autodeploy::cuda
