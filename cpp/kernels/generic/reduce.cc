// reduce: sum, mean, max, min, prod, any, all, argmax, argmin over some dims. Floats are summed in double;
// NaN wins in max and min.
#include <algorithm>
#include <limits>
#include <string_view>

#include "kernels/generic/op_checks.h"
#include "kernels/generic/order.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

constexpr int64_t kBlock = 64;  // results computed side by side

struct ReduceState {
  std::array<bool, kMaxDims> reduced{};
  void (*run)(const ReduceState&, const KernelCall&) = nullptr;
};

// The dims of the operand in two groups, each joined where they lie in one stride.
struct Group {
  int ndim = 0;
  int64_t count = 1;
  std::array<int64_t, kMaxDims> shape{}, stride{};

  void add(int64_t size, int64_t step) {
    count *= size;
    if (size == 1) return;
    const size_t last = static_cast<size_t>(ndim - 1);
    if (ndim > 0 && stride[last] == step * size) {
      shape[last] *= size;
      stride[last] = step;
    } else {
      shape[static_cast<size_t>(ndim)] = size;
      stride[static_cast<size_t>(ndim++)] = step;
    }
  }
  // A group always has a last dim.
  void close() {
    if (ndim == 0) shape[0] = 1, stride[0] = 0, ndim = 1;
  }
  int64_t inner() const { return shape[static_cast<size_t>(ndim - 1)]; }
  int64_t step() const { return stride[static_cast<size_t>(ndim - 1)]; }
  // Position of the `index`-th combination of all dims but the last.
  int64_t offset(int64_t index) const {
    int64_t at = 0;
    for (int d = ndim - 1; d-- > 0;) {
      const size_t k = static_cast<size_t>(d);
      at += index % shape[k] * stride[k];
      index /= shape[k];
    }
    return at;
  }
};

// A reduction: the accumulator's start, a step that sees an element and its number, and the result.
template <class T>
struct Sum {
  using In = T;
  using Out = std::conditional_t<std::is_same_v<T, float>, float, int64_t>;
  using Acc = std::conditional_t<std::is_same_v<T, float>, double, uint64_t>;  // integers wrap
  static constexpr Acc start() { return 0; }
  static void step(Acc& a, T x, int64_t) { a += static_cast<Acc>(x); }
  static Out result(const Acc& a, int64_t) { return static_cast<Out>(a); }
};
struct Mean : Sum<float> {
  static float result(const double& a, int64_t n) { return static_cast<float>(a / static_cast<double>(n)); }
};
template <class T>
struct Prod : Sum<T> {
  using typename Sum<T>::Acc;
  static constexpr Acc start() { return 1; }
  static void step(Acc& a, T x, int64_t) { a *= static_cast<Acc>(x); }
};
template <class T, bool kMax>
struct Extreme {
  using In = T;
  using Out = T;
  struct Acc {
    T value{};
    int64_t at = -1;
  };
  static Acc start() { return {}; }
  static void step(Acc& a, T x, int64_t i) {
    if (a.at < 0 || (!is_nan(a.value) && (is_nan(x) || (kMax ? x > a.value : x < a.value)))) a = {x, i};
  }
  static T result(const Acc& a, int64_t) { return a.value; }
};
template <class T, bool kMax>
struct ArgExtreme : Extreme<T, kMax> {
  using Out = int64_t;
  static int64_t result(const typename Extreme<T, kMax>::Acc& a, int64_t) { return a.at; }
};
template <class T, bool kAll>
struct Logic {
  using In = T;
  using Out = uint8_t;
  using Acc = uint8_t;
  static Acc start() { return kAll; }
  static void step(Acc& a, T x, int64_t) {
    if (kAll)
      a = a && x != 0;
    else
      a = a || x != 0;
  }
  static Out result(const Acc& a, int64_t) { return a; }
};

// Results stand row-major in the order of the kept dims. A block of neighbours along the last kept dim is
// reduced together, so that the operand is read along whichever of the two dims is the denser.
template <class R>
void run_typed(const ReduceState& s, const KernelCall& call) {
  const TensorView& x = call.in[0];
  const auto* in = x.as<const typename R::In>();
  auto* out = call.out[0].as<typename R::Out>();
  Group kept, gone;
  for (int d = 0; d < x.ndim; ++d) {
    const size_t k = static_cast<size_t>(d);
    (s.reduced[k] ? gone : kept).add(x.shape[k], x.stride[k]);
  }
  kept.close();
  gone.close();
  if (kept.count == 0) return;
  const int64_t width = kept.step() < gone.step() || gone.inner() == 1 ? std::min(kBlock, kept.inner()) : 1;
  const int64_t blocks = (kept.inner() + width - 1) / width, outer = kept.count / kept.inner(),
                lines = gone.count / std::max<int64_t>(1, gone.inner());
  call.pool->parallel_for(outer * blocks, grain_of(gone.count * width), [&](int64_t begin, int64_t end, int) {
    typename R::Acc acc[kBlock];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % blocks * width, n = std::min(width, kept.inner() - first);
      const auto* base = in + kept.offset(item / blocks) + first * kept.step();
      for (int64_t j = 0; j < n; ++j) acc[j] = R::start();
      int64_t i = 0;
      for (int64_t line = 0; line < lines; ++line) {
        const auto* p = base + gone.offset(line);
        for (int64_t e = 0; e < gone.inner(); ++e, ++i, p += gone.step()) {
          for (int64_t j = 0; j < n; ++j) R::step(acc[j], p[j * kept.step()], i);
        }
      }
      for (int64_t j = 0; j < n; ++j)
        out[item / blocks * kept.inner() + first + j] = R::result(acc[j], gone.count);
    }
  });
}

void run_reduce(const ReduceState& s, const KernelCall& call) { s.run(s, call); }

using RunFn = void (*)(const ReduceState&, const KernelCall&);

// nullptr where the kind has no meaning for the type.
template <class T>
RunFn choose(std::string_view kind) {
  if (kind == "sum") return run_typed<Sum<T>>;
  if (kind == "prod") return run_typed<Prod<T>>;
  if (kind == "max") return run_typed<Extreme<T, true>>;
  if (kind == "min") return run_typed<Extreme<T, false>>;
  if (kind == "argmax") return run_typed<ArgExtreme<T, true>>;
  if (kind == "argmin") return run_typed<ArgExtreme<T, false>>;
  if (kind == "any") return run_typed<Logic<T, false>>;
  if (kind == "all") return run_typed<Logic<T, true>>;
  if constexpr (std::is_same_v<T, float>) {
    if (kind == "mean") return run_typed<Mean>;
  }
  return nullptr;
}

}  // namespace

std::unique_ptr<Kernel> make_reduce(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  ReduceState state;
  state.reduced = check_reduce(spec);
  const std::string& kind = spec.attrs.string("kind");
  const OperandSpec& x = spec.in[0];
  if (!serves_plain(spec, why)) return nullptr;
  dispatch_dtype(x.dtype, [&](auto* t) { state.run = choose<std::remove_pointer_t<decltype(t)>>(kind); });
  check.that(state.run != nullptr, "a kind of reduction for " + std::string(dtype_name(x.dtype)),
             "\"" + kind + "\"");
  return std::make_unique<StatedKernel<ReduceState>>("reduce", state, run_reduce);
}

}  // namespace autodeploy
