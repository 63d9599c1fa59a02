// What the sources of kernels see of the device: CUDA, or its emulation on the host (emulation/simt.h), which
// runs the same sources for tests where there is no GPU. Sources include this and no header of CUDA.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/dtype.h"
#include "core/error.h"

#ifdef AUTODEPLOY_SIMT_EMULATION
#include "kernels/cuda/emulation/simt.h"
#else
#include <cuda_runtime.h>
#endif

#define AD_DEVICE __device__ __forceinline__

namespace autodeploy::cuda {

// ---- launching ----

#ifdef AUTODEPLOY_SIMT_EMULATION
using Stream = simt::Stream*;
// Declares `type* name`, the block's dynamic shared memory, 128-byte aligned.
#define AD_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::autodeploy::cuda::simt::dynamic_shared())
#else
using Stream = cudaStream_t;
#define AD_DYNAMIC_SHARED(type, name)                         \
  extern __shared__ __align__(128) uint8_t ad_shared_bytes[]; \
  type* name = reinterpret_cast<type*>(ad_shared_bytes)
#endif

struct LaunchConfig {
  dim3 grid, block;
  Stream stream;
  size_t shared = 0;  // bytes of dynamic shared memory; above 48 KiB after allow_shared()
  // The kernel may start before the one before it has finished: it calls wait_for_previous() before it
  // touches any memory that an earlier kernel of the step reads or writes (params are free).
  bool overlap = false;
  // Neighbouring blocks along x that run together and see each other's shared memory (compute
  // capability 9.0): 1 to 8, a divisor of grid.x.
  unsigned cluster = 1;
};

// The first launch of this thread that failed since the last call, or nullptr.
const char* take_launch_error();
void note_launch_error(const char* what);

// Nothing is launched for an empty grid. Errors are kept for take_launch_error().
template <class... Params, class... Args>
void launch(const LaunchConfig& c, void (*kernel)(Params...), Args... args) {
  if (c.grid.x == 0 || c.grid.y == 0 || c.grid.z == 0) return;
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::enqueue(c.stream, [=] {
    simt::run_grid(c.grid, c.block, c.shared, c.cluster, [=] { kernel(static_cast<Params>(args)...); });
  });
#else
  cudaLaunchConfig_t config = {};
  config.gridDim = c.grid;
  config.blockDim = c.block;
  config.dynamicSmemBytes = c.shared;
  config.stream = c.stream;
  cudaLaunchAttribute attributes[3] = {};
  config.attrs = attributes;
  // As much shared memory as there is: as many blocks as fit, and no change between kernels, for which a
  // multiprocessor would have to be empty.
  cudaLaunchAttribute& carveout = attributes[config.numAttrs++];
  carveout.id = cudaLaunchAttributePreferredSharedMemoryCarveout;
  carveout.val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
  if (c.overlap) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  if (c.cluster > 1) {
    cudaLaunchAttribute& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = c.cluster, a.val.clusterDim.y = 1, a.val.clusterDim.z = 1;
  }
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...);
  if (error != cudaSuccess) note_launch_error(cudaGetErrorString(error));
#endif
}

// For kernels that need more than 48 KiB of dynamic shared memory: once, when the kernel object is made.
// False where the device has less.
template <class... Params>
bool allow_shared(void (*kernel)(Params...), size_t bytes) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  (void)kernel;
  return bytes <= simt::kMaxShared;
#else
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)) ==
      cudaSuccess)
    return true;
  (void)cudaGetLastError();
  return false;
#endif
}

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)
// Waits until the kernels before this one have finished and their results are visible (LaunchConfig::overlap;
// returns at once otherwise).
AD_DEVICE void wait_for_previous() {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// The next kernel may start now, up to its own wait_for_previous().
AD_DEVICE void let_next_start() {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#endif

// ---- memory that belongs to a kernel ----

// A small table in the device's memory: uploaded when a kernel is made, freed with it. Throws
// Error(kOutOfMemory) where memory is short, else Error(kInternal) with CUDA's words.
class DeviceConstant {
 public:
  DeviceConstant() = default;
  DeviceConstant(const void* data, size_t bytes, const char* what) {
    if (bytes == 0) return;
#ifdef AUTODEPLOY_SIMT_EMULATION
    data_ = std::malloc(bytes);
    AD_CHECK(data_, ErrorKind::kOutOfMemory, "[cuda] expected ", bytes, " bytes of memory for ", what,
             ", found less");
    std::memcpy(data_, data, bytes);
#else
    const auto check = [&](cudaError_t error) {
      AD_CHECK(error == cudaSuccess,
               error == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kInternal,
               "[cuda] expected ", bytes, " bytes of the GPU's memory for ", what,
               ", found: ", cudaGetErrorString(error));
    };
    check(cudaMalloc(&data_, bytes));
    const cudaError_t copied = cudaMemcpy(data_, data, bytes, cudaMemcpyHostToDevice);
    if (copied != cudaSuccess) free_data();
    check(copied);
#endif
  }
  ~DeviceConstant() { free_data(); }
  DeviceConstant(DeviceConstant&& o) noexcept : data_(std::exchange(o.data_, nullptr)) {}
  DeviceConstant& operator=(DeviceConstant&& o) noexcept {
    std::swap(data_, o.data_);
    return *this;
  }
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data_);
  }
  // For kernels that leave the table as they found it, such as counters that return to zero.
  template <class T>
  T* scratch() const {
    return static_cast<T*>(data_);
  }

 private:
  void free_data() {
    if (!data_) return;
#ifdef AUTODEPLOY_SIMT_EMULATION
    std::free(data_);
#else
    (void)cudaFree(data_);
#endif
    data_ = nullptr;
  }
  void* data_ = nullptr;
};

// ---- element types ----

using bf16 = __nv_bfloat16;
using f16 = __half;

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)
AD_DEVICE float to_float(float x) { return x; }
AD_DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
AD_DEVICE float to_float(f16 x) { return __half2float(x); }

// Rounds to nearest even.
template <class T>
AD_DEVICE T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16_rn(x);
  } else if constexpr (std::is_same_v<T, f16>) {
    return __float2half_rn(x);
  } else {
    return x;
  }
}

#endif

template <class T>
struct TypeTag {
  using type = T;
};

// f(TypeTag<float | bf16 | f16>) for an activation type.
template <class F>
void dispatch_act(DType t, F&& f) {
  if (t == DType::kBF16)
    f(TypeTag<bf16>{});
  else if (t == DType::kF16)
    f(TypeTag<f16>{});
  else
    f(TypeTag<float>{});
}
// The same with int64_t and uint8_t (bool).
template <class F>
void dispatch_any(DType t, F&& f) {
  if (t == DType::kI64)
    f(TypeTag<int64_t>{});
  else if (t == DType::kBool)
    f(TypeTag<uint8_t>{});
  else
    dispatch_act(t, f);
}

// kBytes of T, moved in one instruction: 16, 8, 4 or 2 bytes, aligned to that.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T x[kCount];
};

// ---- warps and blocks ----

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)

constexpr int kWarpSize = 32;

AD_DEVICE float warp_sum(float v) {
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
AD_DEVICE float warp_max(float v) {
#pragma unroll
  for (int d = kWarpSize / 2; d > 0; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
  return v;
}

// Sum over a block of whole warps, at most 1024 threads; every thread gets it. `shared` has 33 floats, and
// may be used again after the call.
AD_DEVICE float block_sum(float v, float* shared) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize,
            warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const int warps = (static_cast<int>(blockDim.x) + kWarpSize - 1) / kWarpSize;
  v = warp_sum(v);
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  if (warp == 0) {
    v = warp_sum(lane < warps ? shared[lane] : 0.0f);
    if (lane == 0) shared[32] = v;
  }
  __syncthreads();
  v = shared[32];
  __syncthreads();
  return v;
}

#endif

}  // namespace autodeploy::cuda
