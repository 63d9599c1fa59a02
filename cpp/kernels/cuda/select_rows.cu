// select_rows: the rows of a step whose logits are wanted.
#include "kernels/cpu/row_op_checks.h"
#include "kernels/cuda/elements.h"

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 128;

struct SelectArgs {
  const void* x = nullptr;
  void* y = nullptr;
  const int32_t* rows = nullptr;
  int64_t x_stride = 0, y_stride = 0, width = 0;  // in elements of T
};

template <class T>
__global__ void __launch_bounds__(kThreads) select_kernel(SelectArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t r = blockIdx.x;
  const T* x = static_cast<const T*>(a.x) + a.rows[r] * a.x_stride;
  T* y = static_cast<T*>(a.y) + r * a.y_stride;
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) y[i] = x[i];
}

struct NoState {};

void run_select_rows(const NoState&, const KernelCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  SelectArgs a{x.data, y.data, call.device->rows, x.stride[0], y.stride[0], y.shape[1]};
  const LaunchConfig config{dim3(static_cast<unsigned>(y.shape[0])), dim3(kThreads), stream_of(call), 0,
                            true};
  const int64_t size = dtype_size(x.dtype);
  if (moves_in_packs(DeviceRows(x, 1), a.width, size, 16) &&
      moves_in_packs(DeviceRows(y, 1), a.width, size, 16)) {
    a.x_stride = a.x_stride * size / 16, a.y_stride = a.y_stride * size / 16, a.width = a.width * size / 16;
    launch(config, select_kernel<Pack<uint32_t, 4>>, a);
    return;
  }
  dispatch_width(x.dtype, [&](auto t) { launch(config, select_kernel<typename decltype(t)::type>, a); });
}

}  // namespace

std::unique_ptr<Kernel> make_select_rows(const KernelSpec& spec, std::string*) {
  check_select_rows(spec);
  return make_function_kernel("select_rows.plain", NoState{}, run_select_rows);
}

}  // namespace autodeploy::cuda
