// What kernels on tensor cores are made of: products of 16 x 16 by 16 x 8 matrices, loads of their fragments
// from shared memory, and copies into shared memory that a thread does not wait for. All take whole warps,
// except the copies.
#pragma once

#include "kernels/cuda/cache_hints.h"
#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

#if defined(__CUDACC__) || defined(AUTODEPLOY_SIMT_EMULATION)

// d += a b in float32; T is bf16 or f16. With g = lane / 4 and t = lane % 4, and two neighbouring elements in
// each register (the lower one in the lower half), a lane holds
//   a (16 rows, 16 columns): [0] row g, columns 2t, 2t+1; [1] row g+8; [2] row g, columns 2t+8, 2t+9; [3] row
//   g+8; b (16 rows, 8 columns):  [0] rows 2t, 2t+1 of column g; [1] rows 2t+8, 2t+9; d (16 rows, 8 columns):
//   [0], [1] row g, columns 2t, 2t+1; [2], [3] row g+8.
template <class T>
AD_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
#ifdef AUTODEPLOY_SIMT_EMULATION
  struct Fragments {
    uint32_t a[4], b[2];
  } mine;
  std::memcpy(mine.a, a, sizeof(mine.a));
  std::memcpy(mine.b, b, sizeof(mine.b));
  const uint8_t* slots = simt::exchange(0xffffffffu, &mine, sizeof(mine));
  const auto fragments = [&](int lane) {
    return reinterpret_cast<const Fragments*>(slots + lane * simt::kExchangeBytes);
  };
  const auto unpack = [](uint32_t pair, float* x) {
    T e[2];
    std::memcpy(static_cast<void*>(e), &pair, sizeof(pair));
    x[0] = to_float(e[0]), x[1] = to_float(e[1]);
  };
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  float rows[2][16], columns[2][16];
  for (int k = 0; k < 16; k += 2) {
    const int lane = k % 8 / 2, high = k / 8;
    for (int i = 0; i < 2; ++i) {
      unpack(fragments(g * 4 + lane)->a[high * 2 + i], rows[i] + k);
      unpack(fragments((2 * t + i) * 4 + lane)->b[high], columns[i] + k);
    }
  }
  for (int i = 0; i < 4; ++i) {
    float sum = 0;
    for (int k = 0; k < 16; ++k) sum += rows[i / 2][k] * columns[i % 2][k];
    d[i] += sum;
  }
#else
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#ifdef AUTODEPLOY_SIMT_EMULATION
// The row of 16 bytes that each lane points to, of all lanes.
inline const uint8_t* exchange_rows(const void* shared_row) {
  uint8_t row[16];
  std::memcpy(row, shared_row, sizeof(row));
  return simt::exchange(0xffffffffu, row, sizeof(row));
}
#endif

// Loads four matrices of 8 x 8 elements of 16 bits; lane 8m + r points to row r of matrix m in shared memory
// (8 elements, 16-byte aligned). Of matrix m a lane gets in r[m] the elements of row lane / 4 in columns 2
// (lane % 4) and the next.
AD_DEVICE void load_matrix_x4(uint32_t (&r)[4], const void* shared_row) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  const uint8_t* slots = exchange_rows(shared_row);
  const int row = simt::lane() / 4, pair = simt::lane() % 4;
  for (int m = 0; m < 4; ++m) std::memcpy(&r[m], slots + (m * 8 + row) * simt::kExchangeBytes + pair * 4, 4);
#else
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
#endif
}

// The same with every matrix transposed: the elements of column lane / 4 in rows 2 (lane % 4) and the next.
AD_DEVICE void load_matrix_x4_transposed(uint32_t (&r)[4], const void* shared_row) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  const uint8_t* slots = exchange_rows(shared_row);
  const int column = simt::lane() / 4, pair = simt::lane() % 4;
  for (int m = 0; m < 4; ++m) {
    uint16_t e[2];
    for (int i = 0; i < 2; ++i)
      std::memcpy(&e[i], slots + (m * 8 + pair * 2 + i) * simt::kExchangeBytes + column * 2, 2);
    std::memcpy(&r[m], e, 4);
  }
#else
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
#endif
}

// Begins to copy 16 bytes from global to shared memory, both 16-byte aligned; where not valid, writes zeros
// and reads nothing (`global` must be some address of device memory all the same).
AD_DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::copy_async(shared, valid ? global : nullptr, 16);
#else
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(at), "l"(global), "r"(bytes)
               : "memory");
#endif
}

// The same for what is read once (cache_hints.h). Only for kernels whose copies ptxas addresses without an
// offset in a uniform register: of 13.0, cuobjdump shows copies with both as "LDGSTS [R+UR0], desc[UR1]", and
// an H100 refuses them as illegal instructions.
AD_DEVICE void copy_async_16(void* shared, const void* global, bool valid, ReadOnce once) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  (void)once;
  copy_async_16(shared, global, valid);
#else
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;\n" ::"r"(at),
               "l"(global), "r"(bytes), "l"(once.policy)
               : "memory");
#endif
}

// Ends a group of this thread's copies; a group may be empty.
AD_DEVICE void commit_copies() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::commit_copies();
#else
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until all of this thread's groups but the latest kPending are done. Other threads see the copies
// after a barrier that follows.
template <int kPending>
AD_DEVICE void wait_copies() {
#ifdef AUTODEPLOY_SIMT_EMULATION
  simt::wait_copies(kPending);
#else
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// Two neighbours of a fragment, rounded to nearest even.
template <class T>
AD_DEVICE uint32_t pack_pair(float low, float high) {
  uint32_t bits;
  if constexpr (std::is_same_v<T, bf16>) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  } else {
    const __half2 pair = __floats2half2_rn(low, high);
    memcpy(&bits, &pair, sizeof(bits));
  }
  return bits;
}

// What pack_pair() has rounded off, rounded itself: a product with both keeps twice the digits of one factor.
template <class T>
AD_DEVICE uint32_t pack_rest(float low, float high, uint32_t packed) {
  T pair[2];
  memcpy(static_cast<void*>(pair), &packed, sizeof(packed));
  return pack_pair<T>(low - to_float(pair[0]), high - to_float(pair[1]));
}

// 2^x to about 2 units in the last place; 0 for minus infinity.
AD_DEVICE float exp2_fast(float x) {
#ifdef AUTODEPLOY_SIMT_EMULATION
  return exp2f(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

#endif

}  // namespace autodeploy::cuda
