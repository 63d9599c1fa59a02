// AVX-512 VNNI: one register holds 4 columns of 16 rows, and a broadcast of 4 activations multiplies them
// all.
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
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#endif

namespace autodeploy {
namespace {

// Bytes that a thread reads ahead of its weights; enough for main memory's latency at full bandwidth.
constexpr int64_t kPrefetchAhead = 4096;

void quantize(const float* x, int64_t blocks, QuantBlock* out) {
  for (int64_t b = 0; b < blocks; ++b, x += kBlockCols, ++out) {
    const __m512 lo = _mm512_loadu_ps(x), hi = _mm512_loadu_ps(x + 16);
    const float amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo), _mm512_abs_ps(hi)));
    const bool nan = _mm512_cmp_ps_mask(lo, hi, _CMP_UNORD_Q) != 0;
    const bool tiny = amax < 1e-30f;  // its reciprocal would overflow
    const __m512 inverse = _mm512_set1_ps(tiny ? 0.0f : 127.0f / amax);
    const __m512i qlo = _mm512_cvtps_epi32(_mm512_mul_ps(lo, inverse)),
                  qhi = _mm512_cvtps_epi32(_mm512_mul_ps(hi, inverse));
    const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(qlo, qhi));
    _mm_store_si128(reinterpret_cast<__m128i*>(out->q), _mm512_cvtsepi32_epi8(qlo));
    _mm_store_si128(reinterpret_cast<__m128i*>(out->q + 16), _mm512_cvtsepi32_epi8(qhi));
    out->finish(nan ? std::numeric_limits<float>::quiet_NaN() : tiny ? 0.0f : amax / 127.0f, sum);
  }
}

inline __m512i load_plane(const uint8_t* p) { return _mm512_loadu_si512(p); }
inline __m512 load_scales(const uint8_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512i four(const QuantBlock* x, int j) {
  int32_t bits;
  std::memcpy(&bits, x->q + 4 * j, 4);
  return _mm512_set1_epi32(bits);
}

// The eight planes of a block, columns 4j..4j+3 in plane j, as unsigned bytes.
template <Format F>
inline void unpack_planes(const uint8_t* quants, __m512i (&w)[8]) {
  if constexpr (F == Format::kQ8_0) {
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) w[j] = load_plane(quants + j * kPlane);
  } else {
    constexpr bool kFifth = F == Format::kQ5_0 || F == Format::kQ5_1;
    const __m512i low = _mm512_set1_epi8(0xf);
    const uint8_t* nibbles = quants + (kFifth ? kPlane : 0);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i v = load_plane(nibbles + j * kPlane);
      w[j] = _mm512_and_si512(v, low);
      w[j + 4] = _mm512_and_si512(_mm512_srli_epi16(v, 4), low);
    }
    if constexpr (kFifth) {
      const __m512i sixteen = _mm512_set1_epi8(16);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        uint64_t mask;
        std::memcpy(&mask, quants + 8 * j, 8);
        w[j] = _mm512_mask_add_epi8(w[j], mask, w[j], sixteen);
      }
    }
  }
}

// A block's products start here (see kMagicBits).
template <int kZero>
inline __m512i start(const QuantBlock* x) {
  if constexpr (kZero == 0) return _mm512_set1_epi32(kMagicBits);
  if constexpr (kZero == 8) return _mm512_set1_epi32(x->start8);
  if constexpr (kZero == 16)
    return _mm512_sub_epi32(_mm512_slli_epi32(_mm512_set1_epi32(x->start8), 1),
                            _mm512_set1_epi32(kMagicBits));
  return _mm512_set1_epi32(x->start128);
}
// sum + (acc - kMagic) * dw * d with offset = -kMagic * dw.
inline __m512 add_scaled(__m512 sum, __m512i acc, __m512 dw, __m512 offset, float d) {
  return _mm512_fmadd_ps(_mm512_fmadd_ps(_mm512_castsi512_ps(acc), dw, offset), _mm512_set1_ps(d), sum);
}

inline __mmask16 wanted(int64_t rows) {
  return rows >= kGroupRows ? 0xffff : static_cast<__mmask16>((1u << rows) - 1);
}

inline void store_rows(float* y, __m512 sum, const float* bias, __mmask16 mask) {
  if (bias) sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(mask, bias));
  _mm512_mask_storeu_ps(y, mask, sum);
}

template <Format F, int MT>
void direct_groups(const Int8Rows& rows, const uint8_t* group, const Int8Tile& tile) {
  constexpr int64_t kScale = packed_scale_bytes(F), kQuant = packed_quant_bytes(F),
                    kLines = (kScale + kQuant + 63) / 64;
  const int64_t nb = rows.blocks;
  const QuantBlock* x[MT];
#pragma GCC unroll 8
  for (int m = 0; m < MT; ++m) x[m] = tile.x[m];
  for (int64_t row = 0; row < rows.rows; row += kGroupRows, group += nb * (kScale + kQuant)) {
    const uint8_t* scales = group;
    const uint8_t* quants = group + nb * kScale;
    const uint8_t* ahead = group + kPrefetchAhead;
    __m512 sum[MT];
#pragma GCC unroll 8
    for (int m = 0; m < MT; ++m) sum[m] = _mm512_setzero_ps();
    for (int64_t b = 0; b < nb; ++b, scales += kScale, quants += kQuant, ahead += kScale + kQuant) {
#pragma GCC unroll 9
      for (int l = 0; l < kLines; ++l)
        _mm_prefetch(reinterpret_cast<const char*>(ahead + 64 * l), _MM_HINT_T0);
      __m512i w[8];
      unpack_planes<F>(quants, w);
      const __m512 dw = load_scales(scales), offset = _mm512_mul_ps(dw, _mm512_set1_ps(-kMagic));
      __m512i acc[MT];
#pragma GCC unroll 8
      for (int m = 0; m < MT; ++m) acc[m] = start<quant_zero(F)>(x[m] + b);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 8
        for (int m = 0; m < MT; ++m) acc[m] = _mm512_dpbusd_epi32(acc[m], w[j], four(x[m] + b, j));
      }
#pragma GCC unroll 8
      for (int m = 0; m < MT; ++m) sum[m] = add_scaled(sum[m], acc[m], dw, offset, x[m][b].d);
      if constexpr (has_minimum(F)) {
        const __m512 mw = load_scales(scales + 2 * kGroupRows);
#pragma GCC unroll 8
        for (int m = 0; m < MT; ++m) sum[m] = _mm512_fmadd_ps(mw, _mm512_set1_ps(x[m][b].dsum), sum[m]);
      }
    }
    const __mmask16 mask = wanted(rows.rows - row);
#pragma GCC unroll 8
    for (int m = 0; m < MT; ++m)
      store_rows(tile.y[m] + row, sum[m], rows.bias ? rows.bias + row : nullptr, mask);
  }
}

// A panel: kPanelGroups x { planes [blocks][8][64], scales f32 [blocks][16], minima f32 [blocks][16] }.
constexpr int kPanelGroups = 2, kPanelTokens = 6, kDirectTokens = 8;
constexpr int64_t kPanelBlock = 8 * kPlane + 2 * kGroupRows * 4;
int64_t panel_bytes(int64_t blocks) { return kPanelGroups * blocks * kPanelBlock; }

template <Format F>
void unpack_groups(const Int8Rows& rows, const uint8_t* group, uint8_t* panel) {
  constexpr int64_t kScale = packed_scale_bytes(F), kQuant = packed_quant_bytes(F);
  const int64_t nb = rows.blocks;
  for (int64_t row = 0; row < rows.rows;
       row += kGroupRows, group += nb * (kScale + kQuant), panel += nb * kPanelBlock) {
    float* scales = reinterpret_cast<float*>(panel + nb * 8 * kPlane);
    for (int64_t b = 0; b < nb; ++b) {
      __m512i w[8];
      unpack_planes<F>(group + nb * kScale + b * kQuant, w);
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) _mm512_store_si512(panel + (b * 8 + j) * kPlane, w[j]);
      _mm512_store_ps(scales + b * kGroupRows, load_scales(group + b * kScale));
      if constexpr (has_minimum(F)) {
        _mm512_store_ps(scales + (nb + b) * kGroupRows, load_scales(group + b * kScale + 2 * kGroupRows));
      }
    }
  }
}

template <Format F, int NT, int MT>
void panel_tile(const Int8Rows& rows, const uint8_t* panel, const Int8Tile& tile) {
  const int64_t nb = rows.blocks, group_bytes = nb * kPanelBlock;
  const QuantBlock* x[MT];
#pragma GCC unroll 8
  for (int m = 0; m < MT; ++m) x[m] = tile.x[m];
  __m512 sum[MT][NT];
#pragma GCC unroll 8
  for (int m = 0; m < MT; ++m) {
#pragma GCC unroll 2
    for (int g = 0; g < NT; ++g) sum[m][g] = _mm512_setzero_ps();
  }
  const uint8_t* planes = panel;
  const float* scales = reinterpret_cast<const float*>(panel + nb * 8 * kPlane);
  for (int64_t b = 0; b < nb; ++b, planes += 8 * kPlane, scales += kGroupRows) {
    __m512i acc[MT][NT];
#pragma GCC unroll 8
    for (int m = 0; m < MT; ++m) {
      const __m512i s = start<quant_zero(F)>(x[m] + b);
#pragma GCC unroll 2
      for (int g = 0; g < NT; ++g) acc[m][g] = s;
    }
#pragma GCC unroll 8
    for (int j = 0; j < 8; ++j) {
      __m512i w[NT];
#pragma GCC unroll 2
      for (int g = 0; g < NT; ++g) w[g] = _mm512_load_si512(planes + g * group_bytes + j * kPlane);
#pragma GCC unroll 8
      for (int m = 0; m < MT; ++m) {
        const __m512i v = four(x[m] + b, j);
#pragma GCC unroll 2
        for (int g = 0; g < NT; ++g) acc[m][g] = _mm512_dpbusd_epi32(acc[m][g], w[g], v);
      }
    }
#pragma GCC unroll 2
    for (int g = 0; g < NT; ++g) {
      const float* group_scales =
          reinterpret_cast<const float*>(reinterpret_cast<const uint8_t*>(scales) + g * group_bytes);
      const __m512 dw = _mm512_load_ps(group_scales), offset = _mm512_mul_ps(dw, _mm512_set1_ps(-kMagic));
#pragma GCC unroll 8
      for (int m = 0; m < MT; ++m) sum[m][g] = add_scaled(sum[m][g], acc[m][g], dw, offset, x[m][b].d);
      if constexpr (has_minimum(F)) {
        const __m512 mw = _mm512_load_ps(group_scales + nb * kGroupRows);
#pragma GCC unroll 8
        for (int m = 0; m < MT; ++m) sum[m][g] = _mm512_fmadd_ps(mw, _mm512_set1_ps(x[m][b].dsum), sum[m][g]);
      }
    }
  }
#pragma GCC unroll 2
  for (int g = 0; g < NT; ++g) {
    const __mmask16 mask = wanted(rows.rows - g * kGroupRows);
#pragma GCC unroll 8
    for (int m = 0; m < MT; ++m) {
      store_rows(tile.y[m] + g * kGroupRows, sum[m][g], rows.bias ? rows.bias + g * kGroupRows : nullptr,
                 mask);
    }
  }
}

#include "kernels/cpu/linear_int8_tables.inc"

}  // namespace

const Int8Kernels kInt8Avx512Vnni = {quantize,     kDirectTokens, direct, kPanelGroups,
                                     kPanelTokens, panel_bytes,   unpack, panel};

}  // namespace autodeploy

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
