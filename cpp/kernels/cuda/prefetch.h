// Hints that bring memory into the second-level cache.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// Starts to bring `bytes` (a multiple of 16) from `global` (16-byte aligned) on into the second-level cache.
// One thread is enough for any size, and nothing waits for it.
AD_DEVICE void prefetch_l2(const void* global, uint32_t bytes) {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#else
  (void)global, (void)bytes;
#endif
}

}  // namespace autodeploy::cuda
