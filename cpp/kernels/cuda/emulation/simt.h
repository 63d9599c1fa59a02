// Runs kernels on the host, one block (or cluster) after another, a fiber for each thread: for tests where
// there is no GPU. Emulates what our kernels use of CUDA: block and warp barriers, shuffles and votes,
// atomics, shared memory, streams and graphs (recorded closures). Threads of a block run in an order of their
// own between barriers, so that code which forgets one gives wrong results; memory of other blocks is as
// after their end. Copies of boxes are done at once. Not emulated: waiting for blocks of other clusters.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/error.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __launch_bounds__
#undef __forceinline__
#undef __align__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __shared__ static thread_local
#define __constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __grid_constant__
#define __align__(n) alignas(n)

namespace autodeploy::cuda::simt {

// Whether kernels find the warpgroups' products of Hopper (kernels/cuda/wgmma.h): true until a test says that
// they are for a device without them. Read when a kernel is made.
inline bool has_warpgroups = true;
// Multiprocessors that kernels find: not a divisor of much, so that shares are uneven.
inline int num_processors = 3;

constexpr size_t kMaxShared = 227 * 1024;
constexpr int kMaxThreads = 1024;

// A queue of work that runs at once, or is recorded.
struct Stream {
  std::vector<std::function<void()>>* recording = nullptr;
};

template <class F>
void enqueue(Stream* stream, F&& work) {
  if (stream && stream->recording)
    stream->recording->emplace_back(std::forward<F>(work));
  else
    work();
}

// `cluster`: neighbouring blocks along x that run together. They must not use __shared__ variables, which all
// blocks have in common here: dynamic shared memory alone.
void run_grid(const dim3& grid, const dim3& block, size_t shared, unsigned cluster,
              const std::function<void()>& body);

// ---- of the running thread ----

struct AsyncCopy {
  void* to = nullptr;
  const void* from = nullptr;  // nullptr: zeros
  size_t bytes = 0;
  int group = 0;
};
struct Thread {
  uint3 thread_idx{}, block_idx{};
  dim3 block_dim, grid_dim;
  std::vector<AsyncCopy> copies{};  // those under way
  int copy_group = 0;
};
Thread& current();
uint8_t* dynamic_shared();
int lane();

void sync_block();
void sync_cluster();
int cluster_rank();
// The same place in the shared memory of another block of the cluster.
const void* of_peer(const void* shared, int rank);
// Sums an int over the block.
int sync_block_count(int predicate);

// Copies beside the thread: done when they are waited for and no earlier; until then the target holds NaNs.
void copy_async(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_copies(int pending_groups);

// Barrier `id` of so many threads of the block.
void sync_some(int id, int threads);

// A barrier in shared memory that counts arrivals and bytes (wgmma.h).
struct SharedBarrier {
  uint32_t expected, arrived;
  int64_t bytes;  // announced and not come yet
  uint64_t phase;
};
void init(SharedBarrier* b, uint32_t arrivals);
void arrive(SharedBarrier* b);
void announce(SharedBarrier* b, uint32_t bytes);
void wait(SharedBarrier* b, uint32_t parity);
using Coordinates = std::array<int32_t, 4>;
void copy_box(void* to, const uint8_t* from, const std::array<int64_t, 4>& shape,
              const std::array<int64_t, 4>& stride, const Coordinates& box, const Coordinates& at,
              SharedBarrier* b);

constexpr int kExchangeBytes = 64;
// Gives each lane of `mask` the values of all: a pointer to 32 slots of kExchangeBytes, valid until this
// lane's next exchange.
const uint8_t* exchange(uint32_t mask, const void* value, size_t bytes);

template <class T>
T from_lane(uint32_t mask, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= kExchangeBytes);
  const uint8_t* slots = exchange(mask, &value, sizeof(T));
  if (source < 0 || source >= 32 || !(mask >> source & 1u)) return value;
  T result;
  std::memcpy(&result, slots + source * kExchangeBytes, sizeof(T));
  return result;
}

}  // namespace autodeploy::cuda::simt

#define threadIdx (::autodeploy::cuda::simt::current().thread_idx)
#define blockIdx (::autodeploy::cuda::simt::current().block_idx)
#define blockDim (::autodeploy::cuda::simt::current().block_dim)
#define gridDim (::autodeploy::cuda::simt::current().grid_dim)

namespace autodeploy::cuda {

using std::max;
using std::min;

inline void __syncthreads() { simt::sync_block(); }
inline int __syncthreads_or(int p) { return simt::sync_block_count(p != 0) != 0; }
inline int __syncthreads_and(int p) { return simt::sync_block_count(p == 0) == 0; }
inline int __syncthreads_count(int p) { return simt::sync_block_count(p != 0); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) {
  const uint32_t none = 0;
  simt::exchange(mask, &none, sizeof(none));
}

template <class T>
T __shfl_sync(uint32_t mask, T v, int source, int width = 32) {
  const int lane = simt::lane();
  return simt::from_lane(mask, v, lane / width * width + (source % width + width) % width);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T v, int bits, int width = 32) {
  const int lane = simt::lane(), source = lane ^ bits;
  return simt::from_lane(mask, v, source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32) {
  const int lane = simt::lane(), source = lane + static_cast<int>(delta);
  return simt::from_lane(mask, v, source / width == lane / width ? source : lane);
}
template <class T>
T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32) {
  const int lane = simt::lane(), source = lane - static_cast<int>(delta);
  return simt::from_lane(mask, v, source >= lane / width * width ? source : lane);
}
inline uint32_t __ballot_sync(uint32_t mask, int p) {
  const uint32_t bit = p != 0;
  const uint8_t* slots = simt::exchange(mask, &bit, sizeof(bit));
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) {
    uint32_t b = 0;
    if (mask >> i & 1u) std::memcpy(&b, slots + i * simt::kExchangeBytes, sizeof(b));
    result |= b << i;
  }
  return result;
}
inline int __any_sync(uint32_t mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(uint32_t mask, int p) { return __ballot_sync(mask, p) == mask; }

// Blocks run one after another and threads switch at barriers alone, so every operation is atomic.
template <class T>
T atomicAdd(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = static_cast<T>(old + v);
  return old;
}
template <class T>
T atomicMax(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  if (v > old) *p = v;
  return old;
}
template <class T>
T atomicMin(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  if (v < old) *p = v;
  return old;
}
template <class T>
T atomicExch(T* p, std::type_identity_t<T> v) {
  return std::exchange(*p, v);
}
template <class T>
T atomicOr(T* p, std::type_identity_t<T> v) {
  const T old = *p;
  *p = old | v;
  return old;
}
template <class T>
T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  const T old = *p;
  if (old == expected) *p = v;
  return old;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __clz(uint32_t x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(uint32_t x) { return __builtin_ffs(static_cast<int>(x)); }
template <class To, class From>
To simt_bits(From x) {
  static_assert(sizeof(To) == sizeof(From));
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}
inline uint32_t __float_as_uint(float x) { return simt_bits<uint32_t>(x); }
inline int32_t __float_as_int(float x) { return simt_bits<int32_t>(x); }
inline float __uint_as_float(uint32_t x) { return simt_bits<float>(x); }
inline float __int_as_float(int32_t x) { return simt_bits<float>(x); }

}  // namespace autodeploy::cuda
