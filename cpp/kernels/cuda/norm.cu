// rms_norm (Zhang and Sennrich 2019), layer_norm (Ba et al. 2016), and both with a residual addition before:
// one block for each row. Where rows allow it, a thread loads 16 bytes at a time and keeps them in registers.
#include <type_traits>

#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

struct NormArgs {
  DeviceRows x, residual, y, sum;  // residual and sum where a residual is added
  const void *weight = nullptr, *bias = nullptr;
  int64_t len = 0;
  float eps = 0, offset = 0;  // rms_norm: y = xhat * (offset + weight)
  bool layer = false;
  bool params = false;  // weight and bias are: they may be read while earlier kernels run
};

constexpr int kThreads = 256;

// The sum of x and residual is rounded to T before it is normed, as it is where it is stored.
template <class T, class W>
__global__ void __launch_bounds__(kThreads) norm_kernel(NormArgs a) {
  __shared__ float shared[33];
  let_next_start();
  wait_for_previous();
  const int64_t r = blockIdx.x;
  const T* x = a.x.row<const T>(r);
  T* y = a.y.row<T>(r);
  if (a.residual.data) {
    const T* residual = a.residual.row<const T>(r);
    T* sum = a.sum.row<T>(r);
    for (int64_t i = threadIdx.x; i < a.len; i += kThreads)
      sum[i] = from_float<T>(to_float(x[i]) + to_float(residual[i]));
    x = sum;  // each thread reads what it wrote
  }
  const float n = static_cast<float>(a.len);
  float mean = 0;
  if (a.layer) {
    for (int64_t i = threadIdx.x; i < a.len; i += kThreads) mean += to_float(x[i]);
    mean = block_sum(mean, shared) / n;
  }
  float square = 0;
  for (int64_t i = threadIdx.x; i < a.len; i += kThreads) {
    const float d = to_float(x[i]) - mean;
    square += d * d;
  }
  const float scale = 1.0f / sqrtf(block_sum(square, shared) / n + a.eps);
  const W* weight = static_cast<const W*>(a.weight);
  const W* bias = static_cast<const W*>(a.bias);
  for (int64_t i = threadIdx.x; i < a.len; i += kThreads) {
    const float xhat = (to_float(x[i]) - mean) * scale;
    float v = xhat * (weight ? (a.layer ? 0.0f : a.offset) + to_float(weight[i]) : 1.0f);
    if (bias) v += to_float(bias[i]);
    y[i] = from_float<T>(v);
  }
}

// kPacks packs of 16 bytes of a row for each thread, at the most; all rows begin at 16-byte boundaries, as do
// weight and bias.
template <class T, class W, int kPacks>
__global__ void __launch_bounds__(kThreads) norm_packs_kernel(NormArgs a) {
  constexpr int kPer = 16 / static_cast<int>(sizeof(T));
  using P = Pack<T, kPer>;
  constexpr int kPerWeights =
      16 / static_cast<int>(sizeof(W)) < kPer ? 16 / static_cast<int>(sizeof(W)) : kPer;
  using Weights = Pack<W, kPerWeights>;
  __shared__ float shared[33];
  let_next_start();
  const int64_t r = blockIdx.x;
  const int packs = static_cast<int>(a.len) / kPer, first = static_cast<int>(threadIdx.x);
  Weights weights[kPacks][kPer / kPerWeights] = {}, biases[kPacks][kPer / kPerWeights] = {};
  const auto load_weights = [&] {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int at = first + i * kThreads;
      if (at >= packs) break;
#pragma unroll
      for (int k = 0; k < kPer; k += kPerWeights) {
        if (a.weight)
          weights[i][k / kPerWeights] =
              *reinterpret_cast<const Weights*>(static_cast<const W*>(a.weight) + at * kPer + k);
        if (a.bias)
          biases[i][k / kPerWeights] =
              *reinterpret_cast<const Weights*>(static_cast<const W*>(a.bias) + at * kPer + k);
      }
    }
  };
  if (a.params) load_weights();
  wait_for_previous();
  if (!a.params) load_weights();
  const P* x = reinterpret_cast<const P*>(a.x.row<const T>(r));
  P held[kPacks] = {};
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    if (first + i * kThreads < packs) held[i] = x[first + i * kThreads];
  }
  if (a.residual.data) {
    const P* residual = reinterpret_cast<const P*>(a.residual.row<const T>(r));
    P* sum = reinterpret_cast<P*>(a.sum.row<T>(r));
    P other[kPacks] = {};
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (first + i * kThreads < packs) other[i] = residual[first + i * kThreads];
    }
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (first + i * kThreads >= packs) break;
#pragma unroll
      for (int k = 0; k < kPer; ++k)
        held[i].x[k] = from_float<T>(to_float(held[i].x[k]) + to_float(other[i].x[k]));
      sum[first + i * kThreads] = held[i];
    }
  }
  const auto total = [&](auto&& term) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      if (first + i * kThreads >= packs) break;
#pragma unroll
      for (int k = 0; k < kPer; ++k) sum += term(to_float(held[i].x[k]));
    }
    return block_sum(sum, shared);
  };
  const float n = static_cast<float>(a.len);
  const float mean = a.layer ? total([](float v) { return v; }) / n : 0.0f;
  const float scale = 1.0f / sqrtf(total([&](float v) { return (v - mean) * (v - mean); }) / n + a.eps);
  P* y = reinterpret_cast<P*>(a.y.row<T>(r));
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int at = first + i * kThreads;
    if (at >= packs) break;
    P result;
#pragma unroll
    for (int k = 0; k < kPer; k += kPerWeights) {
#pragma unroll
      for (int j = 0; j < kPerWeights; ++j) {
        float v = (to_float(held[i].x[k + j]) - mean) * scale;
        if (a.weight) v *= (a.layer ? 0.0f : a.offset) + to_float(weights[i][k / kPerWeights].x[j]);
        if (a.bias) v += to_float(biases[i][k / kPerWeights].x[j]);
        result.x[k + j] = from_float<T>(v);
      }
    }
    y[at] = result;
  }
}

template <class T>
bool packs(const NormArgs& a) {
  constexpr int64_t kSize = sizeof(T), kPer = 16 / kSize;
  return a.len % kPer == 0 && a.len <= int64_t{8} * kPer * kThreads && aligned_16(a.weight) &&
         aligned_16(a.bias) && rows_aligned_16(a.x, kSize) && rows_aligned_16(a.residual, kSize) &&
         rows_aligned_16(a.y, kSize) && rows_aligned_16(a.sum, kSize);
}

template <class T, class W>
void launch_norm(const LaunchConfig& config, const NormArgs& a) {
  constexpr int64_t kOne = 16 / static_cast<int>(sizeof(T)) * int64_t{kThreads};
  if (!packs<T>(a))
    launch(config, norm_kernel<T, W>, a);
  else if (a.len <= kOne)
    launch(config, norm_packs_kernel<T, W, 1>, a);
  else if (a.len <= 2 * kOne)
    launch(config, norm_packs_kernel<T, W, 2>, a);
  else if (a.len <= 4 * kOne)
    launch(config, norm_packs_kernel<T, W, 4>, a);
  else
    launch(config, norm_packs_kernel<T, W, 8>, a);
}

struct NormState {
  bool residual = false, layer = false, params = false;
  DType dtype = DType::kF32, weight_dtype = DType::kF32;
  float eps = 0, offset = 0;
};

void run_norm(const NormState& s, const KernelCall& call) {
  NormArgs a;
  a.len = call.in[0].shape[static_cast<size_t>(call.in[0].ndim - 1)];
  a.x = DeviceRows(call.in[0], 1);
  a.y = DeviceRows(call.out[0], 1);
  if (s.residual) {
    a.residual = DeviceRows(call.in[1], 1);
    a.sum = DeviceRows(call.out[1], 1);
  }
  const size_t w = s.residual ? 2 : 1;
  a.weight = call.in[w].data;
  if (s.layer) a.bias = call.in[w + 1].data;
  a.eps = s.eps, a.offset = s.offset, a.layer = s.layer, a.params = s.params;
  const LaunchConfig config{dim3(static_cast<unsigned>(a.x.rows)), dim3(kThreads), stream_of(call), 0, true};
  dispatch_act(s.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    dispatch_act(s.weight_dtype, [&](auto w) {
      using W = typename decltype(w)::type;
      if constexpr (std::is_same_v<T, W> || std::is_same_v<T, float> || std::is_same_v<W, float>)
        launch_norm<T, W>(config, a);
    });
  });
}

std::unique_ptr<Kernel> make(const KernelSpec& spec, std::string* why, bool residual, bool layer) {
  const SpecCheck check(spec);
  check.arity(size_t{2} + residual + layer, residual ? 2 : 1);
  const OperandSpec& x = check.input(0, "x [M, H]", 1, 1, true);
  check.that(check.static_dim(x, "x", x.shape.size() - 1) > 0, "rows that are not empty",
             shape_text(x.shape));
  if (residual) check.shape(check.input(1, "residual [M, H]", 1, 1, true), "residual", x.shape);
  NormState state{residual, layer, true, x.dtype, x.dtype};
  for (size_t i = residual ? 2 : 1; i < spec.in.size(); ++i) {
    const OperandSpec* w = check.optional_input(i, "weight or bias [H]", 1, 1);
    if (!w) continue;
    check.shape(*w, "weight or bias", {x.shape.back()});
    if (w->dtype != x.dtype) state.weight_dtype = w->dtype;
    state.params = state.params && w->constant;
  }
  for (size_t i = 0; i < spec.out.size(); ++i)
    check.shape(check.output(i, "a result [M, H]", 1, 1, true), "a result", x.shape);
  state.eps = static_cast<float>(check.finite("eps"));
  if (!layer) state.offset = static_cast<float>(check.finite("offset"));
  for (const auto* list : {&spec.in, &spec.out}) {
    for (const OperandSpec& o : *list) {
      if (!o.present || o.dtype == x.dtype ||
          (list == &spec.in && o.shape.size() == 1 && is_float(o.dtype) &&
           (o.dtype == DType::kF32 || x.dtype == DType::kF32)))
        continue;
      *why = "it takes operands of one float dtype, and weights of that or, where one of them is, float32";
      return nullptr;
    }
  }
  for (size_t i = residual ? 2 : 1; i < spec.in.size(); ++i) {
    if (spec.in[i].present && spec.in[i].dtype != state.weight_dtype) {
      *why = "weight and bias have different dtypes";
      return nullptr;
    }
  }
  if (!is_float(x.dtype)) {
    *why = "it takes floats";
    return nullptr;
  }
  return make_function_kernel(spec.op + ".plain", state, run_norm);
}

}  // namespace

std::unique_ptr<Kernel> make_rms_norm(const KernelSpec& spec, std::string* why) {
  return make(spec, why, false, false);
}
std::unique_ptr<Kernel> make_add_rms_norm(const KernelSpec& spec, std::string* why) {
  return make(spec, why, true, false);
}
std::unique_ptr<Kernel> make_layer_norm(const KernelSpec& spec, std::string* why) {
  return make(spec, why, false, true);
}
std::unique_ptr<Kernel> make_add_layer_norm(const KernelSpec& spec, std::string* why) {
  return make(spec, why, true, true);
}

}  // namespace autodeploy::cuda
