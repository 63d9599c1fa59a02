// known_length: how long the sequence of each token was known to be when the token was computed.
#include "kernels/cpu/row_op_checks.h"
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
  check_known_length(spec);
  return make_function_kernel("known_length.plain", NoState{}, run_known_length);
}

}  // namespace autodeploy::cuda
