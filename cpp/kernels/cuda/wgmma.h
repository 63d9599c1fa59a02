// What kernels for Hopper's matrix units are made of: boxes of a matrix that the copy engine brings to shared
// memory, barriers that count their bytes, and products of such boxes by a warpgroup (four warps, the first
// of them a multiple of four). PTX ISA 9.0, "Tensor copies", "mbarrier", "Asynchronous warpgroup level matrix
// instructions"; compute capability 9.0 (sm_90a) alone: elsewhere kernels that use it must not be launched,
// has_wgmma() tells.
#pragma once

#include <array>

#include "kernels/cuda/cache_hints.h"
#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// Whether the current device has these instructions and the library holds code for them; false where the
// driver has no tensor maps.
bool has_wgmma();

// How many clusters of so many blocks of a kernel run at once; 0 where none can.
template <class... Params>
int max_clusters(void (*kernel)(Params...), int threads, size_t shared, int cluster, int processors) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  (void)kernel, (void)threads, (void)shared;
  return processors / cluster;
#else
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(processors / cluster * cluster));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster), attribute.val.clusterDim.y = 1,
  attribute.val.clusterDim.z = 1;
  config.attrs = &attribute, config.numAttrs = 1;
  int most = 0;
  if (cudaOccupancyMaxActiveClusters(&most, kernel, &config) == cudaSuccess) return most;
  (void)cudaGetLastError();
  return 0;
#endif
}

// ---- boxes ----

constexpr int kBoxCols = 64;  // elements of 16 bits of a row of a box: 128 bytes
constexpr int kBoxAlignment = 1024;

// How the copy engine finds boxes in a matrix of 16-bit elements in device memory: up to four dims, the first
// one contiguous, and of each how many elements a box has. A row of a box (its first dim) takes 128 bytes of
// shared memory; what lies beyond the matrix is read as zeros.
struct TensorMap {
#ifdef AUTODEPLOY_SIMT_EMULATION
  const uint8_t* data = nullptr;
  std::array<int64_t, 4> shape{}, stride{};  // strides in bytes
  std::array<int32_t, 4> box{};
#else
  alignas(64) uint64_t bits[16];
#endif
};
struct BoxedMatrix {
  const void* data = nullptr;                          // 16-byte aligned
  std::array<int64_t, 4> shape{1, 1, 1, 1};            // elements
  std::array<int64_t, 4> stride_bytes{2, 16, 16, 16};  // multiples of 16, but for the first
  std::array<int32_t, 4> box{kBoxCols, 1, 1, 1};       // each at most 256
};
// nullptr, or what the driver did not take. May be called while a graph is recorded.
const char* make_tensor_map(DType dtype, const BoxedMatrix& matrix, TensorMap* map);

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)

#if defined(AUTODEPLOY_SIMT_EMULATION) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AD_HAS_WGMMA 1
#else
#define AD_HAS_WGMMA 0
#endif

#ifndef AUTODEPLOY_SIMT_EMULATION
AD_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// ---- barriers in shared memory ----

// A phase ends when all arrivals and all bytes that were announced have come. Phases are told apart by
// parity: the first one has 0.
#ifdef AUTODEPLOY_SIMT_EMULATION
using SharedBarrier = simt::SharedBarrier;
#else
struct SharedBarrier {
  uint64_t state;
};
#endif

// By one thread, followed by publish_barriers() and a block barrier.
AD_DEVICE void init_barrier(SharedBarrier* b, uint32_t arrivals) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::init(b, arrivals);
#elif AD_HAS_WGMMA
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(shared_address(b)), "r"(arrivals)
               : "memory");
#endif
}
AD_DEVICE void publish_barriers() {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && AD_HAS_WGMMA
  asm volatile("fence.mbarrier_init.release.cluster;\n" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
#endif
}
AD_DEVICE void arrive_at(SharedBarrier* b) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::arrive(b);
#elif AD_HAS_WGMMA
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(shared_address(b)) : "memory");
#endif
}
// Arrives, and announces bytes of boxes.
AD_DEVICE void arrive_for_bytes(SharedBarrier* b, uint32_t bytes) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::announce(b, bytes);
  simt::arrive(b);
#elif AD_HAS_WGMMA
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
#endif
}
// Until the phase of that parity has ended.
AD_DEVICE void wait_barrier(SharedBarrier* b, uint32_t parity) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::wait(b, parity);
#elif AD_HAS_WGMMA
  uint32_t done = 0;
  while (!done)
    asm volatile("{\n.reg .pred p;\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(done)
                 : "r"(shared_address(b)), "r"(parity)
                 : "memory");
#endif
}

// Barrier `id` (1 to 15) of `threads` threads of the block, whole warps.
AD_DEVICE void sync_some(int id, int threads) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::sync_some(id, threads);
#else
  asm volatile("bar.sync %0, %1;\n" ::"r"(id), "r"(threads) : "memory");
#endif
}

// ---- clusters (LaunchConfig::cluster) ----

AD_DEVICE int cluster_rank() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  return simt::cluster_rank();
#else
  uint32_t rank = 0;
#if AD_HAS_WGMMA
  asm volatile("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
#endif
  return static_cast<int>(rank);
#endif
}
// Of all threads of the cluster that have not ended; what they wrote to shared memory before is seen after.
AD_DEVICE void sync_cluster() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::sync_cluster();
#elif AD_HAS_WGMMA
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n" ::
                   : "memory");
#endif
}
// Reads 16 bytes at the same place in the shared memory of another block of the cluster.
AD_DEVICE float4 load_of_peer(const float4* shared, int rank) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  return *static_cast<const float4*>(simt::of_peer(shared, rank));
#else
  float4 v = {0, 0, 0, 0};
#if AD_HAS_WGMMA
  uint32_t at;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;\n" : "=r"(at) : "r"(shared_address(shared)), "r"(rank));
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];\n"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(at)
               : "memory");
#endif
  return v;
#endif
}

// ---- copies ----

// Brings a map of a kernel's params to where the copy engine reads it.
AD_DEVICE void prefetch_map(const TensorMap* map) {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && AD_HAS_WGMMA
  asm volatile("prefetch.tensormap [%0];\n" ::"l"(map) : "memory");
#else
  (void)map;
#endif
}
// Begins to copy the box at these coordinates (elements); its bytes, zeros beyond the matrix among them, are
// counted by the barrier. `shared` is aligned to kBoxAlignment. Piece p (16 bytes) of row r of the box comes
// to lie at piece p ^ (r % 8) of its 128 bytes.
AD_DEVICE void copy_box(void* shared, const TensorMap* map, int4 at, SharedBarrier* b) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::copy_box(shared, map->data, map->shape, map->stride, map->box, {at.x, at.y, at.z, at.w}, b);
#elif AD_HAS_WGMMA
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];\n" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(b)), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w)
      : "memory");
#endif
}
// The same for what is read once.
AD_DEVICE void copy_box(void* shared, const TensorMap* map, int4 at, SharedBarrier* b, ReadOnce once) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  (void)once;
  copy_box(shared, map, at, b);
#elif AD_HAS_WGMMA
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, "
      "{%3, %4, %5, %6}], [%2], %7;\n" ::"r"(shared_address(shared)),
      "l"(map), "r"(shared_address(b)), "r"(at.x), "r"(at.y), "r"(at.z), "r"(at.w), "l"(once.policy)
      : "memory");
#endif
}

// ---- products ----

// Before the first product after registers of its sums were written otherwise.
AD_DEVICE void begin_products() {
#if !defined(AUTODEPLOY_SIMT_EMULATION) && AD_HAS_WGMMA
  asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory");
#endif
}
// Until all products of this warpgroup are done.
AD_DEVICE void finish_products() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  __syncwarp();  // lanes of a warp come here together
#elif AD_HAS_WGMMA
  asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory");
  asm volatile("wgmma.wait_group.sync.aligned 0;\n" ::: "memory");
#endif
}

#if !defined(AUTODEPLOY_SIMT_EMULATION) && AD_HAS_WGMMA
// Describes rows of 128 bytes, swizzled as copy_box() leaves them: groups of 8 rows 1024 bytes apart.
AD_DEVICE uint64_t box_descriptor(const void* shared) {
  return (uint64_t{shared_address(shared)} & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{64} << 32 |
         uint64_t{1} << 62;
}

// clang-format off
#define AD_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define AD_F16(d, i) AD_F4(d, i), AD_F4(d, i + 4), AD_F4(d, i + 8), AD_F4(d, i + 12)
#define AD_R8 "{%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, 1, 1, 1, 0, 0;\n"
#define AD_R16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, 1, 1, 1, 0, 0;\n"
#define AD_R32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, %32, %33, 1, 1, 1, 0, 0;\n"
#define AD_WGMMA(type, n, regs, ...) \
  asm volatile("wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " " regs : __VA_ARGS__ : "l"(a), "l"(b))
#define AD_WGMMA_ANY(type)                                                                       \
  if constexpr (kCols == 16) AD_WGMMA(type, 16, AD_R8, AD_F4(d, 0), AD_F4(d, 4));                \
  if constexpr (kCols == 32) AD_WGMMA(type, 32, AD_R16, AD_F16(d, 0));                           \
  if constexpr (kCols == 64) AD_WGMMA(type, 64, AD_R32, AD_F16(d, 0), AD_F16(d, 16))
// clang-format on
#endif

// d += a b^T over 16 elements of the inner dimension, from element 16 * step on: a is a box of 64 rows, b one
// of kCols rows (16, 32 or 64). Not done before finish_products(); all four warps take part. With g =
// lane / 4 and t = lane % 4, warp w of the group holds in d[4j .. 4j+3] rows 16w + g (twice) and 16w + g + 8
// (twice) of columns 8j + 2t and 8j + 2t + 1.
template <class T, int kCols>
AD_DEVICE void multiply_boxes(float (&d)[kCols / 2], const void* a_box, const void* b_box, int step) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  static_assert(kCols == 16 || kCols == 32 || kCols == 64);
#ifdef AUTODEPLOY_SIMT_EMULATION
  const auto element = [&](const void* box, int row, int k) {
    const int byte = (step * 16 + k) * 2;
    T e;
    std::memcpy(static_cast<void*>(&e),
                static_cast<const uint8_t*>(box) + row * 128 + ((byte / 16) ^ (row % 8)) * 16 + byte % 16,
                sizeof(e));
    return to_float(e);
  };
  const int g = simt::lane() / 4, t = simt::lane() % 4,
            warp = static_cast<int>(simt::current().thread_idx.x) / 32 % 4;
  float a[2][16];
  for (int half = 0; half < 2; ++half) {
    for (int k = 0; k < 16; ++k) a[half][k] = element(a_box, warp * 16 + g + half * 8, k);
  }
  for (int j = 0; j < kCols / 8; ++j) {
    for (int i = 0; i < 2; ++i) {
      float low = 0, high = 0;
      for (int k = 0; k < 16; ++k) {
        const float b = element(b_box, j * 8 + 2 * t + i, k);
        low += a[0][k] * b, high += a[1][k] * b;
      }
      d[j * 4 + i] += low, d[j * 4 + 2 + i] += high;
    }
  }
#elif AD_HAS_WGMMA
  const uint64_t a = box_descriptor(a_box) + static_cast<uint64_t>(step * 2),
                 b = box_descriptor(b_box) + static_cast<uint64_t>(step * 2);
  if constexpr (std::is_same_v<T, bf16>) {
    AD_WGMMA_ANY("bf16");
  } else {
    AD_WGMMA_ANY("f16");
  }
#endif
}

#endif

}  // namespace autodeploy::cuda
