// What launches know of the current device.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// Multiprocessors of the current device.
inline int num_multiprocessors() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  return simt::num_processors;
#else
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess || count < 1)
    return 1;
  return count;
#endif
}

}  // namespace autodeploy::cuda
