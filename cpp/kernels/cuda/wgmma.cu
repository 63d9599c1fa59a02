#include "kernels/cuda/wgmma.h"

#ifndef AUTODEPLOY_SIMT_EMULATION
#include <cuda.h>
#endif

namespace autodeploy::cuda {

#ifdef AUTODEPLOY_SIMT_EMULATION

bool has_wgmma() { return simt::has_warpgroups; }

const char* make_tensor_map(DType dtype, const BoxedMatrix& m, TensorMap* map) {
  (void)dtype;
  bool taken = reinterpret_cast<uintptr_t>(m.data) % 16 == 0 && m.stride_bytes[1] >= m.shape[0] * 2;
  for (size_t d = 0; d < 4; ++d)
    taken = taken && m.shape[d] > 0 && m.box[d] <= 256 && (d == 0 || m.stride_bytes[d] % 16 == 0);
  if (!taken) return "the emulated device takes no such matrix";
  map->data = static_cast<const uint8_t*>(m.data);
  map->shape = m.shape, map->stride = m.stride_bytes, map->box = m.box;
  return nullptr;
}

#else

namespace {

__global__ void probe() {}

using Encode = decltype(&cuTensorMapEncodeTiled);

// nullptr where the driver has none.
Encode encoder() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                         &found) != cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      (void)cudaGetLastError();
      return Encode{nullptr};
    }
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

}  // namespace

bool has_wgmma() {
  int device = 0, major = 0, minor = 0;
  cudaFuncAttributes code{};
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess ||
      cudaFuncGetAttributes(&code, probe) != cudaSuccess) {
    (void)cudaGetLastError();
    return false;
  }
  // Code of another architecture, translated by the driver, has a lower version of PTX.
  return major == 9 && minor == 0 && code.binaryVersion == 90 && code.ptxVersion >= 90 &&
         encoder() != nullptr;
}

const char* make_tensor_map(DType dtype, const BoxedMatrix& m, TensorMap* map) {
  static_assert(sizeof(TensorMap) == sizeof(CUtensorMap) && alignof(TensorMap) >= 64);
  const Encode encode = encoder();
  if (!encode) return "the driver has no cuTensorMapEncodeTiled";
  cuuint64_t shape[4], stride[3];
  cuuint32_t box[4], step[4];
  for (size_t d = 0; d < 4; ++d) {
    shape[d] = static_cast<cuuint64_t>(m.shape[d]), box[d] = static_cast<cuuint32_t>(m.box[d]), step[d] = 1;
    if (d > 0) stride[d - 1] = static_cast<cuuint64_t>(m.stride_bytes[d]);
  }
  const CUresult result = encode(
      reinterpret_cast<CUtensorMap*>(map),
      dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 4,
      const_cast<void*>(m.data), shape, stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "cuTensorMapEncodeTiled did not take a matrix";
}

#endif

}  // namespace autodeploy::cuda
