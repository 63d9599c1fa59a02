// What the tests and micro-benchmarks of kernels share: random operands with guarded strides, specs made from
// them, a run, and a comparison that prints the first wrong coordinate.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "kernels/cpu/half.h"
#include "kernels/cpu/packed_weight.h"
#include "kernels/kernel.h"

namespace autodeploy::testing {

struct AlignedFree {
  void operator()(uint8_t* p) const { std::free(p); }
};
using AlignedBytes = std::unique_ptr<uint8_t[], AlignedFree>;
inline AlignedBytes aligned_bytes(int64_t n) {
  return AlignedBytes(
      static_cast<uint8_t*>(std::aligned_alloc(64, static_cast<size_t>((n + 127) / 64 * 64))));
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  int64_t below(int64_t n) { return static_cast<int64_t>(engine_() % static_cast<uint64_t>(n)); }
  float uniform(float a, float b) { return std::uniform_real_distribution<float>(a, b)(engine_); }

 private:
  std::mt19937_64 engine_;
  std::normal_distribution<float> normal_{0.0f, 1.0f};
};

// A tensor with its own storage. Strides may leave gaps, which hold NaN.
struct Tensor {
  std::vector<int64_t> shape, stride;
  std::vector<float> data;
  std::vector<int64_t> ints;
  std::vector<Dim> dims;  // the shape in symbols, when it is not fixed

  TensorView view() {
    TensorView v;
    v.dtype = ints.empty() ? DType::kF32 : DType::kI64;
    v.data = ints.empty() ? static_cast<void*>(data.data()) : static_cast<void*>(ints.data());
    v.ndim = static_cast<int>(shape.size());
    for (size_t i = 0; i < shape.size(); ++i) {
      v.shape[i] = shape[i];
      v.stride[i] = stride[i];
    }
    return v;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t d : shape) n *= d;
    return n;
  }
  // Storage index of the i-th element in row-major order.
  size_t at(int64_t i) const {
    int64_t offset = 0;
    for (size_t d = shape.size(); d-- > 0;) {
      offset += i % shape[d] * stride[d];
      i /= shape[d];
    }
    return static_cast<size_t>(offset);
  }
  float& operator[](int64_t i) { return data[at(i)]; }
  float operator[](int64_t i) const { return data[at(i)]; }
};

// `gap` extra elements between rows of the outermost dimension.
inline Tensor make_tensor(std::vector<int64_t> shape, int64_t gap = 0) {
  Tensor t;
  t.shape = std::move(shape);
  t.stride.resize(t.shape.size());
  int64_t stride = 1;
  for (size_t d = t.shape.size(); d-- > 0;) {
    if (d == 0 && t.shape.size() > 1) stride += gap;
    t.stride[d] = stride;
    stride *= t.shape[d];
  }
  t.data.assign(static_cast<size_t>(std::max<int64_t>(stride, 1)), std::nanf(""));
  return t;
}
inline Tensor random_tensor(Random& random, std::vector<int64_t> shape, int64_t gap = 0, float scale = 1.0f) {
  Tensor t = make_tensor(std::move(shape), gap);
  for (int64_t i = 0; i < t.numel(); ++i) t[i] = random.normal() * scale;
  return t;
}

// The dims of a tensor whose outermost dimension is the step's tokens.
inline Tensor over_tokens(Tensor t) {
  for (size_t d = 0; d < t.shape.size(); ++d) t.dims.push_back(d == 0 ? Dim{0, 1, 0} : Dim{t.shape[d], 0, 0});
  return t;
}

inline OperandSpec spec_of(const Tensor& t) {
  OperandSpec o;
  o.present = true;
  o.dtype = t.ints.empty() ? DType::kF32 : DType::kI64;
  for (size_t d = 0; d < t.shape.size(); ++d) {
    o.shape.push_back(t.dims.empty() ? Dim{t.shape[d], 0, 0} : t.dims[d]);
    o.stride.push_back(Dim{t.stride[d], 0, 0});
  }
  return o;
}

// A random weight in stored form, packed, and dequantized.
struct Weight {
  PackedWeight packed;
  std::vector<AlignedBytes> storage;
  std::vector<float> values;  // [rows, cols]
  int64_t rows = 0, cols = 0;

  OperandSpec spec() const {
    OperandSpec o;
    o.present = true;
    o.weight = &packed;
    for (int64_t d : packed.shape) o.shape.push_back({d, 0, 0});
    return o;
  }
};

inline std::vector<uint8_t> random_stored(Random& random, Format f, int64_t rows, int64_t cols) {
  std::vector<uint8_t> bytes(static_cast<size_t>(rows * format_row_bytes(f, cols)));
  uint8_t* p = bytes.data();
  const auto put16 = [&](uint16_t v) {
    std::memcpy(p, &v, 2);
    p += 2;
  };
  if (!is_quantized(f)) {
    for (int64_t i = 0; i < rows * cols; ++i) {
      const float v = random.normal();
      if (f == Format::kF32) {
        std::memcpy(p, &v, 4);
        p += 4;
      } else {
        put16(f == Format::kF16 ? float_to_half(v) : float_to_bf16(v));
      }
    }
    return bytes;
  }
  const bool minimum = f == Format::kQ4_1 || f == Format::kQ5_1;
  const int64_t rest = format_info(f).block_bytes - (minimum ? 4 : 2);
  for (int64_t b = 0; b < rows * cols / 32; ++b) {
    const float d = random.uniform(-1.0f, 1.0f) / (f == Format::kQ8_0 ? 127.0f : 8.0f);
    put16(float_to_half(d));
    if (minimum) put16(float_to_half(random.uniform(-1.0f, 1.0f)));
    for (int64_t i = 0; i < rest; ++i) *p++ = static_cast<uint8_t>(random.below(256));
  }
  return bytes;
}

// Dequantization as GGUF defines it, from the stored form.
inline void dequantize_row(Format f, const uint8_t* p, int64_t cols, float* out) {
  const auto get16 = [&] {
    uint16_t v;
    std::memcpy(&v, p, 2);
    p += 2;
    return v;
  };
  if (f == Format::kF32) {
    std::memcpy(out, p, static_cast<size_t>(cols) * 4);
    return;
  }
  if (!is_quantized(f)) {
    for (int64_t k = 0; k < cols; ++k)
      out[k] = f == Format::kF16 ? half_to_float(get16()) : bf16_to_float(get16());
    return;
  }
  for (int64_t b = 0; b < cols / 32; ++b, out += 32) {
    const float d = half_to_float(get16());
    const float m = f == Format::kQ4_1 || f == Format::kQ5_1 ? half_to_float(get16()) : 0.0f;
    if (f == Format::kQ8_0) {
      for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(*p++));
      continue;
    }
    uint32_t high = 0;
    if (f == Format::kQ5_0 || f == Format::kQ5_1) {
      std::memcpy(&high, p, 4);
      p += 4;
    }
    for (int i = 0; i < 32; ++i) {
      int u = i < 16 ? p[i] & 15 : p[i - 16] >> 4;
      u |= static_cast<int>(high >> i & 1) << 4;
      if (f == Format::kQ4_0) u -= 8;
      if (f == Format::kQ5_0) u -= 16;
      out[i] = d * static_cast<float>(u);
      if (f == Format::kQ4_1 || f == Format::kQ5_1) out[i] += m;
    }
    p += 16;
  }
}

struct SegmentShape {
  Format format;
  int64_t rows;
};

// Segments below one another; num_experts > 0 makes a rank 3 weight [num_experts, rows, cols] of the single
// segment's rows per expert.
inline Weight random_weight(Random& random, const std::vector<SegmentShape>& segments, int64_t cols,
                            int64_t num_experts = 0) {
  Weight w;
  w.cols = cols;
  w.packed.name = "weight";
  for (const SegmentShape& s : segments) {
    const int64_t rows = s.rows * std::max<int64_t>(num_experts, 1);
    const std::vector<uint8_t> stored = random_stored(random, s.format, rows, cols);
    PackedSegment packed = plan_packed_segment(s.format, rows, cols, s.rows);
    w.storage.push_back(aligned_bytes(packed.bytes));
    std::memset(w.storage.back().get(), 0xff,
                static_cast<size_t>(packed.bytes));  // padding must be written, not assumed
    const int64_t row_bytes = format_row_bytes(s.format, cols);
    // In two calls, the later rows first.
    const int64_t half = rows / 2 / packed_row_granule() * packed_row_granule();
    pack_rows(packed, half, rows - half, stored.data() + half * row_bytes, w.storage.back().get());
    pack_rows(packed, 0, half, stored.data(), w.storage.back().get());
    packed.data = w.storage.back().get();
    w.packed.segments.push_back(packed);
    const size_t start = w.values.size();
    w.values.resize(start + static_cast<size_t>(rows * cols));
    for (int64_t r = 0; r < rows; ++r) {
      dequantize_row(s.format, stored.data() + r * row_bytes, cols,
                     w.values.data() + start + static_cast<size_t>(r * cols));
    }
    w.rows += rows;
  }
  if (num_experts > 0) {
    w.packed.shape = {num_experts, segments[0].rows, cols};
  } else {
    w.packed.shape = {w.rows, cols};
  }
  return w;
}

// Runs a kernel once on a pool of `threads`; the workspace is poisoned, and guarded behind its end.
inline void run_kernel(const Kernel& kernel, std::vector<TensorView> in, std::vector<TensorView> out,
                       int threads, const StepBatch* batch = nullptr,
                       std::vector<const StateMemory*> states = {}) {
  ThreadPool pool(threads);
  const int64_t bytes = kernel.workspace_bytes();
  AlignedBytes workspace = aligned_bytes(bytes + 64);
  std::memset(workspace.get(), 0xfe, static_cast<size_t>(bytes + 64));
  KernelCall call;
  call.in = in;
  call.out = out;
  call.states = states;
  call.batch = batch;
  call.workspace = workspace.get();
  call.pool = &pool;
  kernel.run(call);
  for (int64_t i = bytes; i < bytes + 64; ++i) {
    if (workspace[static_cast<size_t>(i)] != 0xfe)
      throw std::runtime_error("the kernel wrote behind its workspace");
  }
}

// "" when |got - want| <= tolerance(i) everywhere, else the first wrong coordinate.
inline std::string first_difference(const Tensor& got, const std::vector<double>& want,
                                    const std::function<double(int64_t)>& tolerance) {
  for (int64_t i = 0; i < got.numel(); ++i) {
    const double g = got[i], w = want[static_cast<size_t>(i)];
    if (std::fabs(g - w) <= tolerance(i) || (std::isnan(g) && std::isnan(w)) || g == w) continue;
    std::ostringstream text;
    text << "at [";
    int64_t rest = i;
    std::vector<int64_t> index(got.shape.size());
    for (size_t d = got.shape.size(); d-- > 0;) {
      index[d] = rest % got.shape[d];
      rest /= got.shape[d];
    }
    for (size_t d = 0; d < index.size(); ++d) text << (d ? ", " : "") << index[d];
    text << "]: " << g << " instead of " << w << ", tolerance " << tolerance(i);
    return text.str();
  }
  return "";
}
inline std::string first_difference(const Tensor& got, const std::vector<double>& want, double absolute,
                                    double relative) {
  return first_difference(
      got, want, [&](int64_t i) { return absolute + relative * std::fabs(want[static_cast<size_t>(i)]); });
}
// Bitwise, gaps included.
inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.data.size() == b.data.size() && std::memcmp(a.data.data(), b.data.data(), a.data.size() * 4) == 0;
}

// Every kernel of an op that this processor can run, by name and factory.
inline std::vector<const KernelEntry*> kernels_of(const std::string& op) {
  std::vector<const KernelEntry*> found;
  for (const KernelEntry& e : kernel_table()) {
    if (op == e.op) found.push_back(&e);
  }
  return found;
}

}  // namespace autodeploy::testing
