// attention.tensor on the emulated device, against sums in double over the same rounded elements.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "emulated_setting.h"
#include "kernels/cpu/attention_form.h"
#include "kernels/cuda/attention_tensor.h"
#include "kernels/cuda/device_step.h"
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {

namespace {

// Elements of 16 bits.
class Halves {
 public:
  Halves(DType t, size_t n) : dtype_(t), bits_((n + 15) / 8) {}
  void* data() { return bits_.data(); }
  void set(size_t i, float x) {
    uint16_t b;
    if (dtype_ == DType::kBF16) {
      const bf16 v = __float2bfloat16_rn(x);
      std::memcpy(&b, &v, 2);
    } else {
      const f16 v = __float2half_rn(x);
      std::memcpy(&b, &v, 2);
    }
    at(i) = b;
  }
  float get(size_t i) const {
    const uint16_t b = const_cast<Halves*>(this)->at(i);
    if (dtype_ == DType::kBF16) {
      bf16 v;
      std::memcpy(static_cast<void*>(&v), &b, 2);
      return __bfloat162float(v);
    }
    f16 v;
    std::memcpy(static_cast<void*>(&v), &b, 2);
    return __half2float(v);
  }
  void fill_random(std::mt19937& random, float scale = 1) {
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < bits_.size() * 8; ++i) set(i, scale * normal(random));
  }
  void fill_nan() {
    for (size_t i = 0; i < bits_.size() * 8; ++i) at(i) = 0xffff;
  }

 private:
  struct alignas(16) Piece {
    uint16_t x[8];
  };
  uint16_t& at(size_t i) { return bits_[i / 8].x[i % 8]; }
  DType dtype_;
  std::vector<Piece> bits_;
};

struct Sequence {
  int query_len = 1, kv_len = 1;
  bool null = false;  // writes and reads page 0
};

struct Case {
  std::vector<Sequence> seqs;  // decodes first
  int num_decodes = 0;
  DType dtype = DType::kBF16;
  int kv_heads = 2, group = 4, key_len = 64, value_len = 64, page_size = 32;
  int window = 0, chunk = 0;
  bool causal = true;
  float softcap = 0, scale = 0;  // scale 0: 1 / sqrt(key_len)
  int sinks = 0;                 // 1: [Hq] of float32, 2: [T, Hq] of the dtype
  bool appends = true;
  int gap = 0;   // elements between rows of q, k and v
  int half = 0;  // rope+attention: width of its tables
  bool interleaved = false, turn_f32 = true;
  int max_seqs = 0;
};

struct Run {
  std::vector<float> out;
  std::string name;
};

OperandSpec operand(DType t, std::vector<int64_t> shape) {
  OperandSpec o;
  o.present = true;
  o.dtype = t;
  int64_t stride = 1;
  for (int64_t n : shape) o.shape.push_back({n}), o.stride.push_back({0});
  for (size_t i = shape.size(); i-- > 0; stride *= shape[i]) o.stride[i] = {stride};
  return o;
}

KernelSpec spec_of(const Case& c, int64_t tokens) {
  KernelSpec spec;
  spec.op = "attention";
  const int64_t heads = c.kv_heads * c.group;
  const float scale = c.scale != 0 ? c.scale : 1 / std::sqrt(static_cast<float>(c.key_len));
  spec.attrs.set("scale", static_cast<double>(scale));
  spec.attrs.set("softcap", static_cast<double>(c.softcap));
  spec.attrs.set("causal", c.causal);
  spec.attrs.set("window", int64_t{c.window});
  spec.attrs.set("chunk", int64_t{c.chunk});
  spec.in.resize(kAttentionOperands);
  spec.in[0] = operand(c.dtype, {tokens, heads, c.key_len});
  if (c.appends) {
    spec.in[1] = operand(c.dtype, {tokens, c.kv_heads, c.key_len});
    spec.in[2] = operand(c.dtype, {tokens, c.kv_heads, c.value_len});
  }
  if (c.sinks == 1) spec.in[kSinks] = operand(DType::kF32, {heads});
  if (c.sinks == 2) spec.in[kSinks] = operand(c.dtype, {tokens, heads});
  if (c.half > 0) {
    const OperandSpec table = operand(c.turn_f32 ? DType::kF32 : c.dtype, {tokens, c.half});
    spec.op = "rope+attention";
    spec.attrs.set("interleaved", c.interleaved);
    spec.in = {spec.in[0], spec.in[1], spec.in[2], table, table, spec.in[kSinks]};
  }
  spec.out = {operand(c.dtype, {tokens, heads, c.value_len})};
  StateSpec state;
  state.name = "kv";
  state.components = {{"k", {c.kv_heads, c.key_len}, c.dtype}, {"v", {c.kv_heads, c.value_len}, c.dtype}};
  state.group = 0;
  state.page_size = c.page_size;
  spec.states = {state};
  spec.max_tokens = tokens;
  spec.max_seqs = std::max<int64_t>(c.max_seqs, static_cast<int64_t>(c.seqs.size()));
  spec.max_seq_len = 4096;
  return spec;
}

TensorView view(void* data, DType t, std::vector<int64_t> shape, std::vector<int64_t> stride) {
  TensorView v;
  v.data = data;
  v.dtype = t;
  v.ndim = static_cast<int>(shape.size());
  for (size_t i = 0; i < shape.size(); ++i) v.shape[i] = shape[i], v.stride[i] = stride[i];
  return v;
}

// Runs the kernel twice over fresh memory and expects the same bits, results near the exact ones, and the
// step's keys and values in their pages; pages beyond are NaNs, and NaNs fill memory that nobody may use.
void check(const Case& c, unsigned seed = 1) {
  std::mt19937 random(seed);
  const auto num_seqs = c.seqs.size();
  std::vector<int32_t> query_start{0}, kv_len, start, token_seq;
  int64_t max_query_len = 1;
  for (size_t i = 0; i < num_seqs; ++i) {
    const Sequence& s = c.seqs[i];
    query_start.push_back(query_start.back() + s.query_len);
    kv_len.push_back(s.kv_len);
    max_query_len = std::max<int64_t>(max_query_len, s.query_len);
    for (int t = 0; t < s.query_len; ++t) token_seq.push_back(static_cast<int32_t>(i));
  }
  const int64_t tokens = query_start.back(), heads = c.kv_heads * c.group;
  // Pages, in random order; those that hold no key that is still seen are page 0.
  std::vector<int32_t> pages;
  int32_t num_pages = 1;
  const auto first_seen = [&](int query) {
    int first = c.window > 0 ? std::max(query - c.window + 1, 0) : 0;
    if (c.chunk > 0) first = std::max(first, query / c.chunk * c.chunk);
    return first;
  };
  for (const Sequence& s : c.seqs) {
    start.push_back(static_cast<int32_t>(pages.size()));
    const int live = first_seen(s.kv_len - s.query_len);
    for (int p = 0; p * c.page_size < s.kv_len; ++p) {
      const bool dead = s.null || (p + 1) * c.page_size <= live;
      pages.push_back(dead ? 0 : num_pages++);
    }
  }
  std::vector<int32_t> order;
  for (int32_t i = 1; i < num_pages; ++i) order.push_back(i);
  std::shuffle(order.begin(), order.end(), random);
  for (int32_t& p : pages) {
    if (p > 0) p = order[static_cast<size_t>(p - 1)];
  }
  pages.insert(pages.end(), 64, 1 << 28);  // what lies behind must not be followed

  const auto page_elements = [&](int width) {
    return static_cast<size_t>((c.kv_heads * c.page_size * width * 2 + 63) / 64 * 64 / 2);
  };
  const size_t k_page = page_elements(c.key_len), v_page = page_elements(c.value_len);
  const auto row_at = [&](size_t seq, int head, int token, int width, size_t page_size) {
    const auto page = static_cast<size_t>(pages[static_cast<size_t>(start[seq] + token / c.page_size)]);
    return page * page_size + static_cast<size_t>((head * c.page_size + token % c.page_size) * width);
  };
  Halves k_pages(c.dtype, static_cast<size_t>(num_pages) * k_page),
      v_pages(c.dtype, static_cast<size_t>(num_pages) * v_page);
  k_pages.fill_nan(), v_pages.fill_nan();
  const int64_t q_stride = heads * c.key_len + c.gap, k_stride = c.kv_heads * c.key_len + c.gap,
                v_stride = c.kv_heads * c.value_len + c.gap;
  Halves q(c.dtype, static_cast<size_t>(tokens * q_stride)),
      k(c.dtype, static_cast<size_t>(tokens * k_stride)), v(c.dtype, static_cast<size_t>(tokens * v_stride));
  q.fill_random(random, 2), k.fill_random(random), v.fill_random(random);
  // What attention is of: q and k turned.
  const int64_t table_stride = c.half + c.gap;
  std::vector<float> tables_f32[2];
  Halves tables[2] = {Halves(c.dtype, static_cast<size_t>(tokens * table_stride)),
                      Halves(c.dtype, static_cast<size_t>(tokens * table_stride))};
  Halves turned_q = q, turned_k = k;
  for (int i = 0; i < 2; ++i) {
    tables[i].fill_random(random);
    for (int64_t j = 0; j < tokens * table_stride; ++j)
      tables_f32[i].push_back(tables[i].get(static_cast<size_t>(j)) + (c.turn_f32 ? 1e-3f : 0.0f));
  }
  const auto turn = [&](Halves& x, int64_t stride, int64_t x_heads) {
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t h = 0; h < x_heads; ++h) {
        for (int i = 0; i < c.half; ++i) {
          const int64_t row = t * stride + h * c.key_len;
          const auto low = static_cast<size_t>(row + (c.interleaved ? 2 * i : i));
          const auto high = static_cast<size_t>(row + (c.interleaved ? 2 * i + 1 : i + c.half));
          const float a = x.get(low), b = x.get(high);
          const auto at = static_cast<size_t>(t * table_stride + i);
          x.set(low, a * tables_f32[0][at] - b * tables_f32[1][at]);
          x.set(high, b * tables_f32[0][at] + a * tables_f32[1][at]);
        }
      }
    }
  };
  turn(turned_q, q_stride, heads), turn(turned_k, k_stride, c.kv_heads);
  std::normal_distribution<float> normal;
  // Of all keys and values, what the pages shall hold after the step.
  std::vector<std::vector<float>> keys(num_seqs), values(num_seqs);
  const auto place = [&](size_t seq, int head, int token, int c_, int width) {
    return static_cast<size_t>((token * c.kv_heads + head) * width + c_) + 0 * seq;
  };
  for (size_t s = 0; s < num_seqs; ++s) {
    const int len = kv_len[s], past = len - c.seqs[s].query_len;
    keys[s].resize(static_cast<size_t>(len * c.kv_heads * c.key_len));
    values[s].resize(static_cast<size_t>(len * c.kv_heads * c.value_len));
    for (int t = 0; t < len; ++t) {
      for (int h = 0; h < c.kv_heads; ++h) {
        const auto fill = [&](Halves& in_pages, Halves& fresh, int width, int64_t stride, size_t page_size,
                              std::vector<float>& all) {
          const size_t row = row_at(s, h, t, width, page_size);
          const bool dead = pages[static_cast<size_t>(start[s] + t / c.page_size)] == 0;
          for (int i = 0; i < width; ++i) {
            const size_t from = static_cast<size_t>((query_start[s] + t - past) * stride + h * width + i);
            if (t >= past && c.appends) {
              all[place(s, h, t, i, width)] = fresh.get(from);
            } else if (!dead || c.seqs[s].null) {
              in_pages.set(row + static_cast<size_t>(i), normal(random));
              all[place(s, h, t, i, width)] = in_pages.get(row + static_cast<size_t>(i));
            }
          }
        };
        fill(k_pages, turned_k, c.key_len, k_stride, k_page, keys[s]);
        fill(v_pages, v, c.value_len, v_stride, v_page, values[s]);
      }
    }
  }
  std::vector<float> sinks_f32(static_cast<size_t>(heads));
  Halves sinks(c.dtype, static_cast<size_t>(tokens * heads));
  sinks.fill_random(random);
  for (float& s : sinks_f32) s = normal(random);

  KernelSpec spec = spec_of(c, tokens);
  std::string why;
  const std::unique_ptr<Kernel> kernel =
      c.half > 0 ? make_rope_attention(spec, &why) : make_attention_tensor(spec, &why);
  ASSERT_TRUE(kernel) << why;
  std::vector<uint8_t> workspace(static_cast<size_t>(kernel->workspace_bytes()) + 64, 0xff);
  uint8_t* aligned = workspace.data() + (64 - reinterpret_cast<uintptr_t>(workspace.data()) % 64) % 64;
  simt::Stream stream;
  DeviceStep step;
  step.stream = &stream;
  step.num_tokens = tokens, step.num_seqs = static_cast<int64_t>(num_seqs), step.num_decodes = c.num_decodes;
  step.max_query_len = max_query_len;
  step.max_kv_len = *std::max_element(kv_len.begin(), kv_len.end());
  step.token_seq = token_seq.data(), step.query_start = query_start.data(), step.kv_len = kv_len.data();
  step.page_tables[0] = {c.page_size, start.data(), pages.data()};

  Halves result[2] = {Halves(c.dtype, static_cast<size_t>(tokens * heads * c.value_len)),
                      Halves(c.dtype, static_cast<size_t>(tokens * heads * c.value_len))};
  for (Halves& out : result) {
    out.fill_nan();
    StateMemory memory;
    memory.data = {static_cast<uint8_t*>(k_pages.data()), static_cast<uint8_t*>(v_pages.data())};
    memory.bytes = {static_cast<int64_t>(k_page * 2), static_cast<int64_t>(v_page * 2)};
    std::vector<TensorView> in(kAttentionOperands), outs;
    in[0] = view(q.data(), c.dtype, {tokens, heads, c.key_len}, {q_stride, c.key_len, 1});
    if (c.appends) {
      in[1] = view(k.data(), c.dtype, {tokens, c.kv_heads, c.key_len}, {k_stride, c.key_len, 1});
      in[2] = view(v.data(), c.dtype, {tokens, c.kv_heads, c.value_len}, {v_stride, c.value_len, 1});
    }
    if (c.sinks == 1) in[kSinks] = view(sinks_f32.data(), DType::kF32, {heads}, {1});
    if (c.sinks == 2) in[kSinks] = view(sinks.data(), c.dtype, {tokens, heads}, {heads, 1});
    if (c.half > 0) {
      in = {in[0], in[1], in[2], TensorView(), TensorView(), in[kSinks]};
      for (int i = 0; i < 2; ++i)
        in[static_cast<size_t>(3 + i)] =
            view(c.turn_f32 ? static_cast<void*>(tables_f32[i].data()) : tables[i].data(),
                 c.turn_f32 ? DType::kF32 : c.dtype, {tokens, c.half}, {table_stride, 1});
    }
    outs = {view(out.data(), c.dtype, {tokens, heads, c.value_len}, {heads * c.value_len, c.value_len, 1})};
    const StateMemory* states[] = {&memory};
    KernelCall call;
    call.in = in, call.out = outs, call.states = states, call.device = &step, call.workspace = aligned;
    kernel->run(call);
    ASSERT_EQ(take_launch_error(), nullptr);
  }

  const double scale = spec.attrs.number("scale");
  double worst = 0;
  std::string where;
  for (size_t s = 0; s < num_seqs; ++s) {
    for (int t = 0; t < c.seqs[s].query_len; ++t) {
      const int query = kv_len[s] - c.seqs[s].query_len + t;
      const int token = query_start[s] + t;
      int low = first_seen(query), high = c.causal ? query + 1 : kv_len[s];
      if (c.chunk > 0) high = std::min(high, (query / c.chunk + 1) * c.chunk);
      for (int64_t h = 0; h < heads; ++h) {
        const int kv_head = static_cast<int>(h / c.group);
        std::vector<double> weight(static_cast<size_t>(high));
        double most = -INFINITY, sum = 0;
        for (int j = low; j < high; ++j) {
          double dot = 0;
          for (int i = 0; i < c.key_len; ++i)
            dot +=
                static_cast<double>(turned_q.get(static_cast<size_t>(token * q_stride + h * c.key_len + i))) *
                keys[s][place(s, kv_head, j, i, c.key_len)];
          dot *= scale;
          if (c.softcap > 0) dot = c.softcap * std::tanh(dot / c.softcap);
          weight[static_cast<size_t>(j)] = dot;
          most = std::max(most, dot);
        }
        for (int j = low; j < high; ++j) {
          double& w = weight[static_cast<size_t>(j)];
          w = std::exp(w - most);
          sum += w;
        }
        if (c.sinks == 1) sum += std::exp(sinks_f32[static_cast<size_t>(h)] - most);
        if (c.sinks == 2) sum += std::exp(sinks.get(static_cast<size_t>(token * heads + h)) - most);
        for (int i = 0; i < c.value_len; ++i) {
          double expected = 0;
          for (int j = low; j < high; ++j)
            expected +=
                weight[static_cast<size_t>(j)] / sum * values[s][place(s, kv_head, j, i, c.value_len)];
          const auto at = static_cast<size_t>((token * heads + h) * c.value_len + i);
          const double found = result[0].get(at);
          // Weights and the result are rounded.
          const double error = std::abs(found - expected) / (1 + std::abs(expected));
          if (!(error <= worst)) {
            worst = std::isnan(error) ? INFINITY : error;
            where = "sequence " + std::to_string(s) + " token " + std::to_string(t) + " head " +
                    std::to_string(h) + " channel " + std::to_string(i) + ": expected " +
                    std::to_string(expected) + ", found " + std::to_string(found);
          }
          const double again = result[1].get(at);
          ASSERT_TRUE(found == again || (std::isnan(found) && std::isnan(again))) << "runs differ";
        }
      }
    }
  }
  EXPECT_LT(worst, c.dtype == DType::kBF16 ? 8e-3 : 1e-3) << where;
  if (!c.appends) return;
  for (size_t s = 0; s < num_seqs; ++s) {
    if (c.seqs[s].null) continue;
    for (int t = kv_len[s] - c.seqs[s].query_len; t < kv_len[s]; ++t) {
      for (int h = 0; h < c.kv_heads; ++h) {
        // A step whose tokens fall out of the window at once has no page for them.
        if (pages[static_cast<size_t>(start[s] + t / c.page_size)] == 0) continue;
        for (int i = 0; i < c.key_len; ++i)
          ASSERT_EQ(k_pages.get(row_at(s, h, t, c.key_len, k_page) + static_cast<size_t>(i)),
                    keys[s][place(s, h, t, i, c.key_len)]);
        for (int i = 0; i < c.value_len; ++i)
          ASSERT_EQ(v_pages.get(row_at(s, h, t, c.value_len, v_page) + static_cast<size_t>(i)),
                    values[s][place(s, h, t, i, c.value_len)]);
      }
    }
  }
}

Case decodes(std::vector<int> lens) {
  Case c;
  for (int len : lens) c.seqs.push_back({1, len});
  c.num_decodes = static_cast<int>(lens.size());
  return c;
}

TEST(CudaAttention, DecodesOfAllLengths) {
  for (int len : {1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 300}) {
    SCOPED_TRACE(len);
    check(decodes({len}));
  }
}

// More parts of a head than are read together.
TEST(CudaAttention, DecodesThatManyBlocksShare) {
  const EmulatedSetting with(simt::num_processors, 24);
  for (int len : {1088, 1200, 2900}) {
    SCOPED_TRACE(len);
    Case c = decodes({len});
    c.kv_heads = 1;
    check(c);
    c.window = 1100;
    check(c);
  }
}

TEST(CudaAttention, DecodesOfManySequences) {
  check(decodes({5, 300, 1, 64, 200, 77, 128, 19, 1, 1, 250}));
  std::vector<int> lens;
  for (int i = 0; i < 150; ++i) lens.push_back(1 + i * 7 % 40);
  Case c = decodes(lens);
  c.kv_heads = 1, c.group = 2;
  check(c);
}

TEST(CudaAttention, DecodeWidthsGroupsAndPages) {
  const int widths[][2] = {{64, 64},   {80, 80},   {96, 96},   {112, 112},
                           {128, 128}, {192, 128}, {192, 192}, {256, 256}};
  const int groups[] = {1, 2, 4, 7, 8, 16, 20, 5};
  const int page_sizes[] = {8, 16, 32, 64, 128, 8, 16, 32};
  for (size_t i = 0; i < 8; ++i) {
    for (DType t : {DType::kBF16, DType::kF16}) {
      SCOPED_TRACE(widths[i][0] * 1000 + widths[i][1]);
      Case c = decodes({70, 1, 200});
      c.dtype = t;
      c.key_len = widths[i][0], c.value_len = widths[i][1];
      c.group = groups[i], c.page_size = page_sizes[i];
      check(c);
    }
  }
}

TEST(CudaAttention, DecodeForms) {
  for (int form = 0; form < 9; ++form) {
    SCOPED_TRACE(form);
    Case c = decodes({70, 1, 200, 129, 64});
    if (form == 0) c.window = 50;
    if (form == 1) c.window = 1;
    if (form == 2) c.chunk = 48;
    if (form == 3) c.softcap = 3, c.scale = 1;
    if (form == 4) c.sinks = 1;
    if (form == 5) c.sinks = 2, c.window = 64;
    if (form == 6) c.appends = false;
    if (form == 7) c.gap = 8, c.causal = false;
    if (form == 8) c.gap = 3;  // rows that begin anywhere
    check(c);
    c.page_size = 8;
    c.group = 1;
    check(c);
  }
}

TEST(CudaAttention, NullSequences) {
  Case c = decodes({70, 30});
  for (int i = 0; i < 6; ++i) c.seqs.push_back({1, 1, true});
  c.num_decodes = 8;
  check(c);
}

TEST(CudaAttention, PrefillOfAllLengths) {
  for (int len : {1, 2, 15, 16, 17, 33, 64, 65, 100, 129}) {
    SCOPED_TRACE(len);
    Case c;
    c.kv_heads = 1;
    c.seqs = {{std::max(len, 2), std::max(len, 2)}};
    check(c);
    c.seqs = {{std::max(len, 2), len + 45}};
    check(c);
  }
}

TEST(CudaAttention, PrefillWidthsGroupsAndPages) {
  const int widths[][2] = {{64, 64},   {80, 80},   {96, 96},   {112, 112},
                           {128, 128}, {192, 128}, {192, 192}, {256, 256}};
  const int groups[] = {1, 2, 4, 7, 8, 3, 2, 5};
  const int page_sizes[] = {8, 16, 32, 64, 128, 8, 16, 32};
  for (size_t i = 0; i < 8; ++i) {
    for (DType t : {DType::kBF16, DType::kF16}) {
      SCOPED_TRACE(widths[i][0] * 1000 + widths[i][1]);
      Case c;
      c.dtype = t;
      c.kv_heads = i % 2 == 0 ? 2 : 1;
      c.seqs = {{3, 40}, {40, 90}, {33, 33}, {1, 20}};
      c.key_len = widths[i][0], c.value_len = widths[i][1];
      c.group = groups[i], c.page_size = page_sizes[i];
      check(c);
    }
  }
}

TEST(CudaAttention, PrefillForms) {
  for (int form = 0; form < 10; ++form) {
    SCOPED_TRACE(form);
    Case c;
    c.kv_heads = 1;
    c.seqs = {{50, 130}, {70, 70}, {5, 200}};
    if (form == 0) c.window = 50;
    if (form == 1) c.window = 1;
    if (form == 2) c.chunk = 48;
    if (form == 3) c.softcap = 3, c.scale = 1;
    if (form == 4) c.sinks = 1;
    if (form == 5) c.sinks = 2, c.window = 64;
    if (form == 6) c.appends = false;
    if (form == 7) c.gap = 8, c.causal = false;
    if (form == 8) c.gap = 3;
    if (form == 9) c.causal = false, c.window = 30, c.chunk = 64;
    check(c);
  }
}

TEST(CudaAttention, MixedSteps) {
  Case c;
  c.seqs = {{1, 100}, {1, 1}, {1, 257}, {60, 60}, {1, 33}, {17, 150}, {90, 91}};
  c.num_decodes = 3;
  check(c);
  c.gap = 5;
  check(c);
  c.gap = 0, c.group = 1, c.kv_heads = 3, c.window = 40;
  check(c);
  c.appends = false;
  check(c);
}

TEST(CudaAttention, MorePrefillsThanAWarpHasLanes) {
  Case c;
  c.kv_heads = 1, c.group = 3;
  for (int i = 0; i < 70; ++i) c.seqs.push_back({1 + i * 5 % 9, 9 + i % 4});
  check(c);
}

TEST(CudaAttention, TurnedQueriesAndKeys) {
  for (int form = 0; form < 10; ++form) {
    SCOPED_TRACE(form);
    Case c;
    c.seqs = {{1, 100}, {1, 1}, {1, 64}, {1, 257}, {30, 30}, {17, 50}};
    c.num_decodes = 4;
    c.half = 32;
    if (form == 1) c.interleaved = true;
    if (form == 2) c.turn_f32 = false, c.gap = 8;
    if (form == 3) c.half = 16, c.sinks = 1;
    if (form == 4) c.half = 24, c.interleaved = true, c.turn_f32 = false;
    if (form == 5) c.gap = 3;
    if (form == 6) c.key_len = c.value_len = 128, c.half = 64, c.dtype = DType::kF16;
    if (form == 7) c.key_len = c.value_len = 256, c.half = 128, c.kv_heads = 1, c.page_size = 8;
    if (form == 8) c.group = 20, c.kv_heads = 1, c.window = 40;
    if (form == 9) c.key_len = c.value_len = 96, c.half = 48, c.sinks = 2, c.group = 1;
    check(c);
    c.num_decodes = 0;  // sequences of one token among the others
    check(c);
  }
}

TEST(CudaAttention, SaysWhatItDeclines) {
  const auto why_not = [](const KernelSpec& spec) {
    std::string why;
    EXPECT_FALSE(make_attention_tensor(spec, &why));
    return why;
  };
  Case c = decodes({10});
  c.page_size = 24;
  EXPECT_NE(why_not(spec_of(c, 1)).find("power of 2"), std::string::npos);
  c = decodes({10});
  c.key_len = c.value_len = 72;
  EXPECT_NE(why_not(spec_of(c, 1)).find("72"), std::string::npos);
  c = decodes({10});
  c.dtype = DType::kF32;
  EXPECT_NE(why_not(spec_of(c, 1)).find("bfloat16"), std::string::npos);
  c = decodes({10});
  c.scale = -1;
  EXPECT_NE(why_not(spec_of(c, 1)).find("scale"), std::string::npos);
  c = decodes({10});
  c.max_seqs = 100000;
  EXPECT_NE(why_not(spec_of(c, 1)).find("sequences"), std::string::npos);
  c = decodes({10});
  KernelSpec spec = spec_of(c, 1);
  spec.in[kSlopes] = operand(DType::kF32, {8});
  EXPECT_NE(why_not(spec).find("slopes"), std::string::npos);
  c.half = 20;
  std::string why;
  EXPECT_FALSE(make_rope_attention(spec_of(c, 1), &why));
  EXPECT_NE(why.find("multiple of 8"), std::string::npos);
  c.half = 40;
  EXPECT_THROW((void)make_rope_attention(spec_of(c, 1), &why), Error);
}

}  // namespace
}  // namespace autodeploy::cuda
