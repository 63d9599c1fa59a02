// arange and full: values that need no operand.
#include <cmath>

#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

struct ArangeState {
  double start, step;
};
struct FullState {
  double value;
};

void run_arange(const ArangeState& s, const KernelCall& call) {
  const TensorView& y = call.out[0];
  const int64_t n = y.numel();
  if (y.dtype == DType::kI64) {
    const int64_t start = static_cast<int64_t>(s.start), step = static_cast<int64_t>(s.step);
    for (int64_t i = 0; i < n; ++i) y.as<int64_t>()[i] = start + step * i;
  } else {
    for (int64_t i = 0; i < n; ++i)
      y.as<float>()[i] = static_cast<float>(s.start + s.step * static_cast<double>(i));
  }
}

void run_full(const FullState& s, const KernelCall& call) {
  const TensorView& y = call.out[0];
  dispatch_dtype(y.dtype, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    T value;
    if constexpr (std::is_same_v<T, uint8_t>)
      value = s.value != 0;
    else
      value = static_cast<T>(s.value);
    T* out = y.as<T>();
    call.pool->parallel_for(y.numel(), 65536, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) out[i] = value;
    });
  });
}

bool is_small_integer(double v) { return std::trunc(v) == v && std::abs(v) <= 0x1p53; }

}  // namespace

std::unique_ptr<Kernel> make_arange(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(0, 1);
  const OperandSpec& y = check.output(0, "y", 1, 0);
  const ArangeState state{check.finite("start"), check.finite("step")};
  check.that(y.dtype != DType::kBool, "numbers", "bool");
  // Together with the largest size of a dim this keeps every element within 64 bits.
  check.that(y.dtype != DType::kI64 || (is_small_integer(state.start) && is_small_integer(state.step) &&
                                        std::abs(state.step) < 1024),
             "a whole start within 2^53 and a whole step below 1024",
             std::to_string(state.start) + " and " + std::to_string(state.step));
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<ArangeState>>("arange", state, run_arange);
}

std::unique_ptr<Kernel> make_full(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(0, 1);
  const OperandSpec& y = check.output(0, "y", 0, 0, true);
  const double value = spec.attrs.number("value");
  check.that(y.dtype != DType::kI64 || is_small_integer(value), "a whole value within 2^53",
             std::to_string(value));
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<FullState>>("full", FullState{value}, run_full);
}

}  // namespace autodeploy
