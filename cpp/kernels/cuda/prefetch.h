// Hints that bring memory that is read once into the second-level cache.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// Starts to bring `bytes` (a multiple of 16) from `global` (16-byte aligned) on into the second-level cache.
// One thread is enough for any size, and nothing waits for it.
AD_DEVICE void prefetch_l2(const void* global, uint32_t bytes) {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (bytes == 0) return;
  uint64_t once;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(once));
  asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(global), "r"(bytes),
               "l"(once)
               : "memory");
#else
  (void)global, (void)bytes;
#endif
}

}  // namespace autodeploy::cuda
