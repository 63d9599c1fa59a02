// AVX-VNNI: AVX2 with products of unsigned and signed bytes added up in 32 bits.
#include "kernels/cpu/linear_int8.h"

#if defined(__x86_64__)
#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/intrinsics.h"
#include "kernels/cpu/packed_layout.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avxvnni,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avxvnni,avx2,fma,f16c")
#endif

namespace autodeploy {
namespace {

constexpr int64_t kPrefetchAhead = 4096;

template <Format F>
struct Sums {
  static constexpr int kZero = quant_zero(F);
  __m256i wide;

  void start() { wide = _mm256_setzero_si256(); }
  void add(__m256i u, __m256i x, int) { wide = _mm256_dpbusd_avx_epi32(wide, u, x); }
  __m256i total() const { return wide; }
};

#include "kernels/cpu/linear_int8_avx2.inc"

}  // namespace

const Int8Kernels kInt8AvxVnni = {quantize,     kDirectTokens, direct, kPanelGroups,
                                  kPanelTokens, panel_bytes,   unpack, panel};

}  // namespace autodeploy

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
