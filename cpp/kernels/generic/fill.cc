// arange and full: values that need no operand.
#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

struct FullState {
  double value;
};

void run_arange(const ArangeForm& s, const KernelCall& call) {
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

}  // namespace

std::unique_ptr<Kernel> make_arange(const KernelSpec& spec, std::string* why) {
  const ArangeForm form = check_arange(spec);
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<ArangeForm>>("arange", form, run_arange);
}

std::unique_ptr<Kernel> make_full(const KernelSpec& spec, std::string* why) {
  const FullState state{check_full(spec)};
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<FullState>>("full", state, run_full);
}

}  // namespace autodeploy
