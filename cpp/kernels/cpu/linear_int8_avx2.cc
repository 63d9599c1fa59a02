// AVX2: products of unsigned and signed bytes in pairs of 16 bits, added up in 16 bits as far as that is
// exact.
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
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace autodeploy {
namespace {

constexpr int64_t kPrefetchAhead = 4096;

template <Format F>
struct Sums {
  static constexpr int kZero = quant_zero(F);
  // A pair is at most 2 * 15 * 127 = 3810 (4 bits) or 7874 (5 bits): eight and four of them fit 16 bits.
  static constexpr int kExact = F == Format::kQ4_0 || F == Format::kQ4_1 ? 8 : 4;
  __m256i pairs, wide;

  void start() { pairs = wide = _mm256_setzero_si256(); }
  void add(__m256i w, __m256i x, int j) {
    pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(w, x));
    if (kExact == 4 && j == 3) {
      wide = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
      pairs = _mm256_setzero_si256();
    }
  }
  __m256i total() const {
    const __m256i last = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
    return kExact == 4 ? _mm256_add_epi32(wide, last) : last;
  }
};

template <>
struct Sums<Format::kQ8_0> {
  static constexpr int kZero = 0;
  __m256i wide;

  void start() { wide = _mm256_setzero_si256(); }
  // |w| * (x with w's sign) for signed w = u - 128: a pair is at most 2 * 128 * 127.
  void add(__m256i u, __m256i x, int) {
    const __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(INT8_MIN));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    wide = _mm256_add_epi32(wide, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
  __m256i total() const { return wide; }
};

#include "kernels/cpu/linear_int8_avx2.inc"

}  // namespace

const Int8Kernels kInt8Avx2 = {quantize,     kDirectTokens, direct, kPanelGroups,
                               kPanelTokens, panel_bytes,   unpack, panel};

}  // namespace autodeploy

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
