// rope: rotary position embedding (Su et al. 2021, arXiv:2104.09864) of the first channels of every head; the
// rest pass. The result may be x: a thread reads what it turns before it writes.
#include "kernels/cpu/row_op_checks.h"
#include "kernels/cuda/elements.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128;

struct RopeTable {
  const void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t token_stride = 0, head_stride = 0;
};
struct RopeArgs {
  const void* x = nullptr;
  void* y = nullptr;
  RopeTable cos, sin;
  int64_t x_token = 0, x_head = 0, y_token = 0, y_head = 0;
  int64_t items = 0;                  // heads of all tokens, times the units of a head
  int heads = 0, half = 0, rest = 0;  // rest: channels that pass
  int units = 0;                      // work of a head: packs of pairs, then packs of passing channels
  bool interleaved = false;
};

// kPack neighbouring floats in one load; C is the table's dtype, or AnyFloat.
template <class C, int kPack>
AD_DEVICE void load_table(const RopeTable& t, int64_t at, float (&out)[kPack]) {
  if constexpr (std::is_same_v<C, AnyFloat>) {
#pragma unroll
    for (int v = 0; v < kPack; ++v) out[v] = load_float(t.data, t.dtype, at + v);
  } else {
    const auto p = *reinterpret_cast<const Pack<C, kPack>*>(static_cast<const C*>(t.data) + at);
#pragma unroll
    for (int v = 0; v < kPack; ++v) out[v] = to_float(p.x[v]);
  }
}

// Products and sums are rounded as the plain formula has them.
AD_DEVICE float turned(float a, float c, float b, float s) {
  return __fadd_rn(__fmul_rn(a, c), __fmul_rn(b, s));
}

template <class T, class C, int kPack>
__global__ void __launch_bounds__(kThreads) rope_kernel(RopeArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t item = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (item >= a.items) return;
  const int64_t head_of_all = item / a.units;
  const int unit = static_cast<int>(item - head_of_all * a.units);
  const int64_t t = head_of_all / a.heads, h = head_of_all - t * a.heads;
  const T* x = static_cast<const T*>(a.x) + t * a.x_token + h * a.x_head;
  T* y = static_cast<T*>(a.y) + t * a.y_token + h * a.y_head;
  using P = Pack<T, kPack>;
  const int pairs = a.half / kPack;
  if (unit >= pairs) {
    const int at = 2 * a.half + (unit - pairs) * kPack;
    *reinterpret_cast<P*>(y + at) = *reinterpret_cast<const P*>(x + at);
    return;
  }
  const int i = unit * kPack;
  float c[kPack], s[kPack];
  load_table<C, kPack>(a.cos, t * a.cos.token_stride + h * a.cos.head_stride + i, c);
  load_table<C, kPack>(a.sin, t * a.sin.token_stride + h * a.sin.head_stride + i, s);
  if (a.interleaved) {
    const P low = *reinterpret_cast<const P*>(x + 2 * i),
            high = *reinterpret_cast<const P*>(x + 2 * i + kPack);
    T in[2 * kPack], out[2 * kPack];
#pragma unroll
    for (int v = 0; v < kPack; ++v) in[v] = low.x[v], in[kPack + v] = high.x[v];
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      const float u = to_float(in[2 * v]), w = to_float(in[2 * v + 1]);
      out[2 * v] = from_float<T>(turned(u, c[v], -w, s[v]));
      out[2 * v + 1] = from_float<T>(turned(w, c[v], u, s[v]));
    }
    P first, second;
#pragma unroll
    for (int v = 0; v < kPack; ++v) first.x[v] = out[v], second.x[v] = out[kPack + v];
    *reinterpret_cast<P*>(y + 2 * i) = first;
    *reinterpret_cast<P*>(y + 2 * i + kPack) = second;
  } else {
    const P low = *reinterpret_cast<const P*>(x + i), high = *reinterpret_cast<const P*>(x + a.half + i);
    P first, second;
#pragma unroll
    for (int v = 0; v < kPack; ++v) {
      const float u = to_float(low.x[v]), w = to_float(high.x[v]);
      first.x[v] = from_float<T>(turned(u, c[v], -w, s[v]));
      second.x[v] = from_float<T>(turned(w, c[v], u, s[v]));
    }
    *reinterpret_cast<P*>(y + i) = first;
    *reinterpret_cast<P*>(y + a.half + i) = second;
  }
}

struct RopeState {
  DType dtype = DType::kF32, table = DType::kF32;
  bool same_tables = false;  // cos and sin of one dtype
  bool interleaved = false;
  int half = 0;
};

RopeTable table_of(const TensorView& v) {
  return {v.data, v.dtype, v.stride[0], v.ndim == 3 ? v.stride[1] : 0};
}
bool table_in_packs(const RopeTable& t, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) == 0 &&
         t.token_stride * dtype_size(t.dtype) % bytes == 0 &&
         t.head_stride * dtype_size(t.dtype) % bytes == 0;
}

template <int kPack>
void launch_rope(const RopeState& s, const KernelCall& call, RopeArgs a) {
  a.units = (a.half + a.rest) / kPack;
  a.items = call.in[0].shape[0] * a.heads * a.units;
  const LaunchConfig config{dim3(blocks_for(a.items, kThreads)), dim3(kThreads), stream_of(call), 0, true};
  dispatch_act(s.dtype, [&](auto t) {
    using T = typename decltype(t)::type;
    if (s.same_tables && s.table == s.dtype)
      launch(config, rope_kernel<T, T, kPack>, a);
    else if (s.same_tables && s.table == DType::kF32)
      launch(config, rope_kernel<T, float, kPack>, a);
    else
      launch(config, rope_kernel<T, AnyFloat, kPack>, a);
  });
}

void run_rope(const RopeState& s, const KernelCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  RopeArgs a;
  a.x = x.data, a.y = y.data;
  a.cos = table_of(call.in[1]), a.sin = table_of(call.in[2]);
  a.x_token = x.stride[0], a.x_head = x.stride[1], a.y_token = y.stride[0], a.y_head = y.stride[1];
  a.heads = static_cast<int>(x.shape[1]);
  a.half = s.half;
  a.rest = static_cast<int>(x.shape[2]) - 2 * s.half;
  a.interleaved = s.interleaved;
  constexpr int kWide = 4;
  const int64_t size = dtype_size(s.dtype), bytes = kWide * size;
  const int64_t width = x.shape[2];
  if (a.half % kWide == 0 && a.rest % kWide == 0 && moves_in_packs(DeviceRows(x, 1), width, size, bytes) &&
      moves_in_packs(DeviceRows(y, 1), width, size, bytes) &&
      table_in_packs(a.cos, kWide * dtype_size(a.cos.dtype)) &&
      table_in_packs(a.sin, kWide * dtype_size(a.sin.dtype)))
    launch_rope<kWide>(s, call, a);
  else
    launch_rope<1>(s, call, a);
}

}  // namespace

std::unique_ptr<Kernel> make_rope(const KernelSpec& spec, std::string* why) {
  const int64_t half = check_rope(spec);
  const OperandSpec& x = spec.in[0];
  const DType cos = spec.in[1].dtype, sin = spec.in[2].dtype;
  if (!is_float(x.dtype) || !is_float(cos) || !is_float(sin) || spec.out[0].dtype != x.dtype) {
    *why = "it takes floats, and gives x's dtype";
    return nullptr;
  }
  return make_function_kernel(
      "rope.plain",
      RopeState{x.dtype, cos, cos == sin, spec.attrs.boolean("interleaved"), static_cast<int>(half)},
      run_rope);
}

}  // namespace autodeploy::cuda
