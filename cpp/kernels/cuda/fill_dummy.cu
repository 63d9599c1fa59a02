#include "kernels/cuda/fill_dummy.h"

#include <algorithm>

namespace autodeploy::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 14;  // of a grid; threads go on with the blocks beyond

template <class T>
AD_DEVICE T as_type(float v) {
  if constexpr (std::is_same_v<T, int64_t>) {
    return static_cast<int64_t>(v);
  } else if constexpr (std::is_same_v<T, uint8_t>) {
    return static_cast<uint8_t>(v != 0.0f);
  } else {
    return from_float<T>(v);
  }
}

// A thread makes kDummyBlock elements in a row from one draw.
template <class T>
__global__ void __launch_bounds__(kThreads)
    fill_dummy_kernel(DummyFill fill, T* param, int64_t first, int64_t end) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(T));
  constexpr int64_t kBlock = kDummyBlock;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t b = first / kBlock + static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       b * kBlock < end; b += step) {
    const DummyBytes bytes = dummy_bytes(fill, static_cast<uint64_t>(b));
    T values[kBlock];
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
      values[i] = as_type<T>(dummy_value(fill, bytes.word[i / 4] >> (i % 4 * 8) & 0xffu));
    T* out = param + b * kBlock;
    if (b * kBlock >= first && (b + 1) * kBlock <= end) {
#pragma unroll
      for (int i = 0; i < kBlock; i += kVector) {
        Pack<T, kVector> pack;
#pragma unroll
        for (int j = 0; j < kVector; ++j) pack.x[j] = values[i + j];
        *reinterpret_cast<Pack<T, kVector>*>(out + i) = pack;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kBlock; ++i) {
        if (b * kBlock + i >= first && b * kBlock + i < end) out[i] = values[i];
      }
    }
  }
}

}  // namespace

void fill_dummy(Stream stream, const DummyFill& fill, void* param, DType type, int64_t first, int64_t n) {
  if (n <= 0) return;
  const int64_t draws = (first + n + kDummyBlock - 1) / kDummyBlock - first / kDummyBlock;
  LaunchConfig config{};
  config.grid = dim3(static_cast<unsigned>(std::min(kMaxBlocks, (draws + kThreads - 1) / kThreads)));
  config.block = dim3(kThreads);
  config.stream = stream;
  dispatch_any(type, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(config, &fill_dummy_kernel<T>, fill, static_cast<T*>(param), first, first + n);
  });
}

}  // namespace autodeploy::cuda
