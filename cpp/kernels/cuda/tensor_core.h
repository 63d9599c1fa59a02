// Products of small tiles by the tensor cores (mma.sync), and what fills their fragments.
#pragma once

#include "kernels/cuda/device.h"

namespace autodeploy::cuda {

// d[16][8] += a[16][16] b[16][8], elements of T (bf16 or f16), sums in float32; by a whole warp. With g =
// lane / 4 and t = lane % 4, a lane holds pairs of neighbours along the inner dimension,
//   a: (row g, k 2t), (row g + 8, k 2t), (row g, k 2t + 8), (row g + 8, k 2t + 8)    b: (k 2t, column g), (k
//   2t + 8, column g)
// and of the result d: (row g, columns 2t, 2t + 1), (row g + 8, columns 2t, 2t + 1). The order of the inner
// dimension is free as long as a and b agree on it.
template <class T>
AD_DEVICE void mma_16x8x16(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                           uint32_t b1) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
#ifdef AUTODEPLOY_SIMT_EMULATION
  struct Fragment {
    T a[4][2], b[2][2];
  } mine;
  const uint32_t bits[6] = {a0, a1, a2, a3, b0, b1};
  static_assert(sizeof(mine) == sizeof(bits));
  std::memcpy(static_cast<void*>(&mine), bits, sizeof(bits));
  const uint8_t* slots = simt::exchange(0xffffffffu, &mine, sizeof(mine));
  const auto of = [&](int lane) {
    return reinterpret_cast<const Fragment*>(slots + lane * simt::kExchangeBytes);
  };
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g, half = i / 2, column = 2 * t + i % 2;
    for (int k = 0; k < 16; ++k) {
      const Fragment* a = of(row * 4 + k % 8 / 2);
      const Fragment* b = of(column * 4 + k % 8 / 2);
      d[i] += to_float(a->a[k / 8 * 2 + half][k % 2]) * to_float(b->b[k / 8][k % 2]);
    }
  }
#else
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

}  // namespace autodeploy::cuda
