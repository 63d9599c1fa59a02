// cumsum along a dim; floats are summed in double, as in torch.
#include "kernels/generic/op_checks.h"
#include "kernels/generic/strided.h"

namespace autodeploy {
namespace {

struct CumsumState {
  int64_t dim;
};

template <class In, class Out, class Sum>
void run_typed(const CumsumState& s, const KernelCall& call) {
  const AxisLines x(call.in[0], s.dim), y(call.out[0], s.dim);
  call.pool->parallel_for(x.count(), grain_of(x.len() * 4), [&](int64_t begin, int64_t end, int) {
    for (int64_t line = begin; line < end; ++line) {
      const In* in = call.in[0].as<const In>() + x.offset(line);
      Out* out = call.out[0].as<Out>() + y.offset(line);
      Sum sum = 0;
      for (int64_t i = 0; i < x.len(); ++i) {
        sum += static_cast<Sum>(in[i * x.stride()]);
        out[i * y.stride()] = static_cast<Out>(sum);
      }
    }
  });
}

void run_cumsum(const CumsumState& s, const KernelCall& call) {
  const DType from = call.in[0].dtype;
  if (from == DType::kF32)
    run_typed<float, float, double>(s, call);
  else if (from == DType::kI64)
    run_typed<int64_t, int64_t, uint64_t>(s, call);  // integers wrap
  else
    run_typed<uint8_t, int64_t, uint64_t>(s, call);
}

}  // namespace

std::unique_ptr<Kernel> make_cumsum(const KernelSpec& spec, std::string* why) {
  const CumsumState state{check_cumsum(spec)};
  if (!serves_plain(spec, why)) return nullptr;
  return std::make_unique<StatedKernel<CumsumState>>("cumsum", state, run_cumsum);
}

}  // namespace autodeploy
