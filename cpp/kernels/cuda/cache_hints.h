// How memory that is read once passes the second-level cache.
#pragma once

#include <cstdint>

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)

// As weights are in a decode step: the cache drops it before all else, so that small things which every layer
// reads stay there. Else they would come from memory, behind all that was asked for before.
struct ReadOnce {
  uint64_t policy = 0;
};
AD_DEVICE ReadOnce read_once() {
  ReadOnce once;
#ifndef AUTODEPLOY_SIMT_EMULATION
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(once.policy));
#endif
  return once;
}

// Starts to bring `bytes` (a multiple of 16) from `global` (16-byte aligned), which are read once, into the
// cache. One thread is enough for any size, and nothing waits for it.
AD_DEVICE void prefetch_l2(const void* global, uint32_t bytes) {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (bytes == 0) return;
  asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(global), "r"(bytes),
               "l"(read_once().policy)
               : "memory");
#else
  (void)global, (void)bytes;
#endif
}

#endif

}  // namespace autodeploy::cuda
