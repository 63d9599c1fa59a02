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
constexpr float kTiny = 1e-30f;  // blocks below are zero: their reciprocal would overflow

void quantize_one(const float* x, QuantBlock* out) {
  const __m512 lo = _mm512_loadu_ps(x), hi = _mm512_loadu_ps(x + 16);
  const float amax = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo), _mm512_abs_ps(hi)));
  const bool nan = _mm512_cmp_ps_mask(lo, hi, _CMP_UNORD_Q) != 0;
  const bool tiny = amax < kTiny;
  const __m512 inverse = _mm512_set1_ps(tiny ? 0.0f : 127.0f / amax);
  const __m512i qlo = _mm512_cvtps_epi32(_mm512_mul_ps(lo, inverse)),
                qhi = _mm512_cvtps_epi32(_mm512_mul_ps(hi, inverse));
  const int sum = _mm512_reduce_add_epi32(_mm512_add_epi32(qlo, qhi));
  _mm_store_si128(reinterpret_cast<__m128i*>(out->q), _mm512_cvtsepi32_epi8(qlo));
  _mm_store_si128(reinterpret_cast<__m128i*>(out->q + 16), _mm512_cvtsepi32_epi8(qhi));
  out->finish(nan ? std::numeric_limits<float>::quiet_NaN() : tiny ? 0.0f : amax / 127.0f, sum);
}

// Function objects: GCC gives lambdas no target of their own.
struct Larger {
  __m512 operator()(__m512 a, __m512 b) const { return _mm512_max_ps(a, b); }
};
struct IntegerSum {
  __m512 operator()(__m512 a, __m512 b) const {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b)));
  }
};

// From four vectors to one whose i-th 128 bits hold four partial results of the i-th vector.
template <class Op>
inline __m512 join_four(const __m512 (&v)[4], Op op) {
  const __m512 ab = op(_mm512_shuffle_f32x4(v[0], v[1], 0x44), _mm512_shuffle_f32x4(v[0], v[1], 0xee));
  const __m512 cd = op(_mm512_shuffle_f32x4(v[2], v[3], 0x44), _mm512_shuffle_f32x4(v[2], v[3], 0xee));
  return op(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
}
// All four lanes of each 128 bits become op of them.
template <class Op>
inline __m512 join_lanes(__m512 v, Op op) {
  v = op(v, _mm512_permute_ps(v, 0x4e));
  return op(v, _mm512_permute_ps(v, 0xb1));
}

// Four blocks at once: the steps across lanes are shared.
void quantize_four(const float* x, QuantBlock* out) {
  __m512 lo[4], hi[4], top[4], sums[4];
  __mmask16 unordered = 0;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    lo[i] = _mm512_loadu_ps(x + 32 * i);
    hi[i] = _mm512_loadu_ps(x + 32 * i + 16);
    top[i] = _mm512_max_ps(_mm512_abs_ps(lo[i]), _mm512_abs_ps(hi[i]));
    unordered = static_cast<__mmask16>(unordered | _mm512_cmp_ps_mask(lo[i], hi[i], _CMP_UNORD_Q));
  }
  if (unordered) {
    for (int i = 0; i < 4; ++i) quantize_one(x + 32 * i, out + i);
    return;
  }
  const __m512 amax = join_lanes(join_four(top, Larger{}), Larger{});
  const __mmask16 usual = _mm512_cmp_ps_mask(amax, _mm512_set1_ps(kTiny), _CMP_NLT_UQ);
  const __m512 inverse = _mm512_maskz_div_ps(usual, _mm512_set1_ps(127.0f), amax);
  const __m512 d = _mm512_maskz_div_ps(usual, amax, _mm512_set1_ps(127.0f));
  __m512i q[4];  // block i as [16-bit lanes of lo and hi, by 128 bits in turn]
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 scale = _mm512_permutexvar_ps(_mm512_set1_epi32(4 * i), inverse);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(lo[i], scale)),
                  b = _mm512_cvtps_epi32(_mm512_mul_ps(hi[i], scale));
    sums[i] = _mm512_castsi512_ps(_mm512_add_epi32(a, b));
    q[i] = _mm512_packs_epi32(a, b);
  }
  // Each 128 bits of packs_epi16(q0, q1) are lo0 hi0 lo1 hi1, four columns each: put a block's columns
  // together.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
#pragma GCC unroll 2
  for (int i = 0; i < 4; i += 2) {
    const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(q[i], q[i + 1]));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[i].q), _mm512_castsi512_si256(bytes));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[i + 1].q), _mm512_extracti64x4_epi64(bytes, 1));
  }
  const __m512i sum = _mm512_castps_si512(join_lanes(join_four(sums, IntegerSum{}), IntegerSum{}));
  const __m512i magic = _mm512_set1_epi32(kMagicBits);
  __m512 rest = d;  // per block: d, dsum, start128, start8
  rest = _mm512_mask_mov_ps(rest, 0x2222, _mm512_mul_ps(d, _mm512_cvtepi32_ps(sum)));
  rest = _mm512_mask_mov_ps(rest, 0x4444,
                            _mm512_castsi512_ps(_mm512_sub_epi32(magic, _mm512_slli_epi32(sum, 7))));
  rest = _mm512_mask_mov_ps(rest, 0x8888,
                            _mm512_castsi512_ps(_mm512_sub_epi32(magic, _mm512_slli_epi32(sum, 3))));
  _mm_store_ps(&out[0].d, _mm512_castps512_ps128(rest));
  _mm_store_ps(&out[1].d, _mm512_extractf32x4_ps(rest, 1));
  _mm_store_ps(&out[2].d, _mm512_extractf32x4_ps(rest, 2));
  _mm_store_ps(&out[3].d, _mm512_extractf32x4_ps(rest, 3));
}

void quantize(const float* x, int64_t blocks, QuantBlock* out) {
  int64_t b = 0;
  for (; b + 4 <= blocks; b += 4) quantize_four(x + b * kBlockCols, out + b);
  for (; b < blocks; ++b) quantize_one(x + b * kBlockCols, out + b);
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
