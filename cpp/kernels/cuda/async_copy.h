// Copies from global to shared memory that run beside the thread (cp.async), and hints that bring memory into
// the second-level cache.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// 16 bytes, both addresses aligned to that; zeros where !valid, and then nothing is read from `global`, which
// must be an address of the same array all the same.
AD_DEVICE void copy_16_async(void* shared, const void* global, bool valid = true) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  if (valid)
    std::memcpy(shared, global, 16);
  else
    std::memset(shared, 0, 16);
#else
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
#endif
}
// Ends a group of this thread's copies; a group may be empty.
AD_DEVICE void commit_copies() {
#ifndef AUTODEPLOY_SIMT_EMULATION
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the last kPending groups of this thread are under way. The others' bytes are visible to
// this thread; to other threads after a barrier.
template <int kPending>
AD_DEVICE void wait_copies() {
#ifndef AUTODEPLOY_SIMT_EMULATION
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Starts to bring `bytes` (a multiple of 16) from `global` (16-byte aligned) on into the second-level cache.
// A hint: one thread is enough for any size, and nothing waits for it.
AD_DEVICE void prefetch_l2(const void* global, uint32_t bytes) {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  if (bytes > 0)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
#else
  (void)global, (void)bytes;
#endif
}

}  // namespace autodeploy::cuda
