// embedding: rows of a table by id. An id outside the table, which only a program can have computed, reads as
// NaN rather than as foreign memory.
#include "kernels/cuda/elements.h"

namespace autodeploy::cuda {
namespace {

struct EmbeddingArgs {
  DeviceRows ids, y;
  const void* table = nullptr;
  int64_t table_stride = 0, vocab = 0, width = 0;
  bool packs = false;
};

constexpr int kThreads = 128;

template <class W, class Y>
AD_DEVICE Y converted(W v) {
  if constexpr (std::is_same_v<W, Y>)
    return v;
  else
    return from_float<Y>(to_float(v));
}

template <class W, class Y>
__global__ void __launch_bounds__(kThreads) embedding_kernel(EmbeddingArgs a) {
  wait_for_previous();
  let_next_start();
  const int64_t r = blockIdx.x;
  const int64_t id = *a.ids.row<const int64_t>(r);
  Y* y = a.y.row<Y>(r);
  if (id < 0 || id >= a.vocab) {
    for (int64_t i = threadIdx.x; i < a.width; i += kThreads)
      y[i] = from_float<Y>(__int_as_float(0x7fc00000));
    return;
  }
  const W* x = static_cast<const W*>(a.table) + id * a.table_stride;
  if constexpr (std::is_same_v<W, Y>) {
    if (a.packs) {
      using P = Pack<W, static_cast<int>(16 / sizeof(W))>;
      const int64_t n = a.width * static_cast<int64_t>(sizeof(W)) / 16;
      const P* from = reinterpret_cast<const P*>(x);
      P* to = reinterpret_cast<P*>(y);
      for (int64_t i = threadIdx.x; i < n; i += kThreads) to[i] = from[i];
      return;
    }
  }
  for (int64_t i = threadIdx.x; i < a.width; i += kThreads) y[i] = converted<W, Y>(x[i]);
}

struct EmbeddingState {
  DType table = DType::kF32, result = DType::kF32;
};

void run_embedding(const EmbeddingState& s, const KernelCall& call) {
  const TensorView &table = call.in[1], &y = call.out[0];
  EmbeddingArgs a;
  a.ids = DeviceRows(call.in[0], 0);
  a.y = DeviceRows(y, 1);
  a.table = table.data;
  a.table_stride = table.stride[0];
  a.vocab = table.shape[0];
  a.width = table.shape[1];
  const int64_t size = dtype_size(s.result);
  a.packs = s.table == s.result && moves_in_packs(DeviceRows(table, 1), a.width, size, 16) &&
            moves_in_packs(a.y, a.width, size, 16);
  const LaunchConfig config{dim3(static_cast<unsigned>(a.y.rows)), dim3(kThreads), stream_of(call), 0, true};
  dispatch_act(s.table, [&](auto w) {
    dispatch_act(s.result, [&](auto t) {
      launch(config, embedding_kernel<typename decltype(w)::type, typename decltype(t)::type>, a);
    });
  });
}

}  // namespace

std::unique_ptr<Kernel> make_embedding(const KernelSpec& spec, std::string* why) {
  const SpecCheck check(spec);
  check.arity(2, 1);
  const OperandSpec& ids = check.input(0, "ids [M]", 0, 0, true);
  check.that(ids.dtype == DType::kI64, "ids of dtype i64", std::string(dtype_name(ids.dtype)));
  const OperandSpec& table = check.input(1, "weight [V, H]", 2, 1);
  check.static_dim(table, "weight", 1);
  std::vector<Dim> shape = ids.shape;
  shape.push_back(table.shape[1]);
  check.shape(check.output(0, "the result [M, H]", 1, 1, true), "the result", shape);
  if (!is_float(table.dtype) || !is_float(spec.out[0].dtype)) {
    *why = "it takes tables of floats";
    return nullptr;
  }
  return make_function_kernel("embedding.plain", EmbeddingState{table.dtype, spec.out[0].dtype},
                              run_embedding);
}

}  // namespace autodeploy::cuda
