// known_length: how long the sequence of each token was known to be when the token was computed.
#include "kernels/cuda/spec.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128;

struct KnownArgs {
  const int64_t* at = nullptr;
  int64_t* y = nullptr;
  const int32_t *token_seq = nullptr, *lengths = nullptr;
  int64_t at_stride = 0, y_stride = 0, tokens = 0;
};

__global__ void __launch_bounds__(kThreads) known_length_kernel(KnownArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (t >= a.tokens) return;
  const int64_t known = a.lengths[a.token_seq[t]], now = a.at[t * a.at_stride] + 1;
  a.y[t * a.y_stride] = known > now ? known : now;
}

struct NoState {};

void run_known_length(const NoState&, const KernelCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  const DeviceStep& step = *call.device;
  const KnownArgs a{
      x.as<const int64_t>(), y.as<int64_t>(), step.token_seq, step.prompt_len ? step.prompt_len : step.kv_len,
      x.stride[0],           y.stride[0],     y.shape[0]};
  launch({dim3(blocks_for(a.tokens, kThreads)), dim3(kThreads), stream_of(call), 0, true},
         known_length_kernel, a);
}

}  // namespace

std::unique_ptr<Kernel> make_known_length(const KernelSpec& spec, std::string*) {
  const SpecCheck check(spec);
  check.arity(1, 1);
  const OperandSpec& x = check.input(0, "at [T]", 1, 0);
  check.that(x.shape[0] == Dim{0, 1, 0}, "positions [T]", shape_text(x.shape));
  check.that(x.dtype == DType::kI64, "positions of i64", std::string(dtype_name(x.dtype)));
  check.shape(check.output(0, "the result [T]", 1, 0), "the result", {Dim{0, 1, 0}});
  check.that(spec.out[0].dtype == DType::kI64, "a result of i64", std::string(dtype_name(spec.out[0].dtype)));
  return make_function_kernel("known_length.plain", NoState{}, run_known_length);
}

}  // namespace autodeploy::cuda
