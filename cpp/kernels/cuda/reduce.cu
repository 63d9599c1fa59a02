// reduce: sum, mean, max, min, prod, any, all, argmax, argmin over some dims. Floats are added in float32, by
// trees whose form depends on shapes alone; NaN wins in max and min.
#include <string_view>

#include "kernels/cuda/elements.h"
#include "kernels/cuda/order.h"
#include "kernels/generic/op_checks.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256;

struct ReduceArgs {
  DeviceRows kept, gone;  // where results, and what goes into each, lie in the operand
  void* y = nullptr;
  DType x_dtype = DType::kF32, y_dtype = DType::kF32;
  int width = 1;        // results of a block; kThreads / width threads work on each
  bool across = false;  // neighbouring threads have neighbouring results, else neighbouring elements
};

// A reduction: the accumulator's start, a step that sees an element and its number, two accumulators joined,
// and the result.
template <class T>
struct Sum {
  using In = T;
  using Out = std::conditional_t<std::is_same_v<T, float>, float, int64_t>;
  using Acc = std::conditional_t<std::is_same_v<T, float>, float, uint64_t>;  // integers wrap
  AD_DEVICE static Acc start() { return 0; }
  AD_DEVICE static void step(Acc& a, T x, int64_t) { a += static_cast<Acc>(x); }
  AD_DEVICE static void join(Acc& a, const Acc& b) { a += b; }
  AD_DEVICE static Out result(const Acc& a, int64_t) { return static_cast<Out>(a); }
};
struct Mean : Sum<float> {
  AD_DEVICE static float result(const float& a, int64_t n) { return a / static_cast<float>(n); }
};
template <class T>
struct Prod : Sum<T> {
  using typename Sum<T>::Acc;
  AD_DEVICE static Acc start() { return 1; }
  AD_DEVICE static void step(Acc& a, T x, int64_t) { a *= static_cast<Acc>(x); }
  AD_DEVICE static void join(Acc& a, const Acc& b) { a *= b; }
};
template <class T, bool kMax>
struct Extreme {
  using In = T;
  using Out = T;
  struct Acc {
    T value;
    int64_t at;  // the first of equal ones; -1 for none
  };
  AD_DEVICE static Acc start() { return {T{}, -1}; }
  AD_DEVICE static void step(Acc& a, T x, int64_t i) {
    if (a.at < 0 || (!is_nan(a.value) && (is_nan(x) || (kMax ? x > a.value : x < a.value)))) a = {x, i};
  }
  AD_DEVICE static void join(Acc& a, const Acc& b) {
    if (b.at < 0) return;
    const bool better = a.at < 0 || (is_nan(b.value) && !is_nan(a.value)) ||
                        (!is_nan(a.value) && (kMax ? b.value > a.value : b.value < a.value));
    const bool alike = b.value == a.value || (is_nan(a.value) && is_nan(b.value));
    if (better || (alike && b.at < a.at)) a = b;
  }
  AD_DEVICE static T result(const Acc& a, int64_t) { return a.value; }
};
template <class T, bool kMax>
struct ArgExtreme : Extreme<T, kMax> {
  using Out = int64_t;
  AD_DEVICE static int64_t result(const typename Extreme<T, kMax>::Acc& a, int64_t) { return a.at; }
};
template <class T, bool kAll>
struct Logic {
  using In = T;
  using Out = uint8_t;
  using Acc = uint32_t;
  AD_DEVICE static Acc start() { return kAll; }
  AD_DEVICE static void step(Acc& a, T x, int64_t) { join(a, x != 0); }
  AD_DEVICE static void join(Acc& a, const Acc& b) { a = kAll ? a & b : a | b; }
  AD_DEVICE static Out result(const Acc& a, int64_t) { return static_cast<Out>(a); }
};

template <class R>
__global__ void __launch_bounds__(kThreads) reduce_kernel(ReduceArgs a) {
  using Acc = typename R::Acc;
  using In = typename R::In;
  __shared__ Acc shared[kThreads];
  wait_for_previous();
  let_next_start();
  const int tid = static_cast<int>(threadIdx.x), lanes = kThreads / a.width;
  const int column = a.across ? tid % a.width : tid / lanes, lane = a.across ? tid / a.width : tid % lanes;
  const int64_t r = int64_t{blockIdx.x} * a.width + column;
  Acc acc = R::start();
  if (r < a.kept.rows) {
    const int64_t base = a.kept.offset(r);
    for (int64_t i = lane; i < a.gone.rows; i += lanes)
      R::step(acc, load_as<In>(a.kept.data, a.x_dtype, base + a.gone.offset(i)), i);
  }
  shared[lane * a.width + column] = acc;
  for (int half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) {
      R::join(acc, shared[(lane + half) * a.width + column]);
      shared[lane * a.width + column] = acc;
    }
  }
  if (lane == 0 && r < a.kept.rows) store_as<typename R::Out>(a.y, a.y_dtype, r, R::result(acc, a.gone.rows));
}

struct ReduceState {
  std::array<bool, kMaxDims> reduced{};
  void (*launch)(const LaunchConfig&, const ReduceArgs&) = nullptr;
};
using LaunchFn = void (*)(const LaunchConfig&, const ReduceArgs&);

template <class R>
void launch_typed(const LaunchConfig& config, const ReduceArgs& a) {
  launch(config, reduce_kernel<R>, a);
}

// nullptr where the kind has no meaning for the type.
template <class T>
LaunchFn choose(std::string_view kind) {
  if (kind == "sum") return launch_typed<Sum<T>>;
  if (kind == "prod") return launch_typed<Prod<T>>;
  if (kind == "max") return launch_typed<Extreme<T, true>>;
  if (kind == "min") return launch_typed<Extreme<T, false>>;
  if (kind == "argmax") return launch_typed<ArgExtreme<T, true>>;
  if (kind == "argmin") return launch_typed<ArgExtreme<T, false>>;
  if (kind == "any") return launch_typed<Logic<T, false>>;
  if (kind == "all") return launch_typed<Logic<T, true>>;
  if constexpr (std::is_same_v<T, float>) {
    if (kind == "mean") return launch_typed<Mean>;
  }
  return nullptr;
}

void run_reduce(const ReduceState& s, const KernelCall& call) {
  const TensorView& x = call.in[0];
  TensorView kept = x, gone = x;
  kept.ndim = gone.ndim = 0;
  for (int d = 0; d < x.ndim; ++d) {
    const size_t from = static_cast<size_t>(d);
    TensorView& part = s.reduced[from] ? gone : kept;
    const size_t to = static_cast<size_t>(part.ndim++);
    part.shape[to] = x.shape[from], part.stride[to] = x.stride[from];
  }
  ReduceArgs a;
  a.kept = DeviceRows(kept, 0), a.gone = DeviceRows(gone, 0);
  a.y = call.out[0].data;
  a.x_dtype = x.dtype, a.y_dtype = call.out[0].dtype;
  const auto step = [](const DeviceRows& r) { return r.dims ? r.stride[r.dims - 1] : 0; };
  const int64_t n = a.gone.rows;
  a.across = step(a.kept) < step(a.gone) || n == 1;
  if (n <= 8)
    a.width = kThreads;
  else if (a.across)
    a.width = n <= 64 ? 64 : 32;
  else
    a.width = n <= 64 ? 32 : n <= 1024 ? 8 : 1;
  if (n <= 8) a.across = true;
  s.launch({dim3(blocks_for(a.kept.rows, a.width)), dim3(kThreads), stream_of(call), 0, true}, a);
}

}  // namespace

std::unique_ptr<Kernel> make_reduce(const KernelSpec& spec, std::string*) {
  const SpecCheck check(spec);
  ReduceState state;
  state.reduced = check_reduce(spec);
  const std::string& kind = spec.attrs.string("kind");
  dispatch_class(spec.in[0].dtype, [&](auto t) { state.launch = choose<typename decltype(t)::type>(kind); });
  check.that(state.launch != nullptr, "a kind of reduction for " + std::string(dtype_name(spec.in[0].dtype)),
             "\"" + kind + "\"");
  return make_function_kernel("reduce.plain", state, run_reduce);
}

}  // namespace autodeploy::cuda
