// Plain C++: the reference of the other sets, and what processors without AVX2 run.
#include "kernels/cpu/linear_int8.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kernels/cpu/half.h"
#include "kernels/cpu/packed_layout.h"

namespace autodeploy {
namespace {

constexpr int kDirectTokens = 4, kPanelGroups = 1, kPanelTokens = 4;

void quantize(const float* x, int64_t blocks, QuantBlock* out) {
  for (int64_t b = 0; b < blocks; ++b, x += kBlockCols, ++out) {
    float amax = 0.0f;
    bool nan = false;
    for (int i = 0; i < kBlockCols; ++i) {
      amax = std::max(amax, std::fabs(x[i]));
      nan |= x[i] != x[i];
    }
    const bool tiny = amax < 1e-30f;  // its reciprocal would overflow
    const float inverse = tiny ? 0.0f : 127.0f / amax;
    int sum = 0;
    for (int i = 0; i < kBlockCols; ++i) {
      const float v = x[i] * inverse;
      const int q =
          std::fabs(v) < 127.5f ? static_cast<int>(std::nearbyintf(v)) : 0;  // inf and NaN live in d
      out->q[i] = static_cast<int8_t>(q);
      sum += q;
    }
    out->finish(nan ? std::numeric_limits<float>::quiet_NaN() : tiny ? 0.0f : amax / 127.0f, sum);
  }
}

// One block as bytes [8][16][4].
template <Format F>
inline void unpack_planes(const uint8_t* quants, uint8_t* planes) {
  if constexpr (F == Format::kQ8_0) {
    std::memcpy(planes, quants, 8 * kPlane);
  } else {
    constexpr bool kFifth = F == Format::kQ5_0 || F == Format::kQ5_1;
    const uint8_t* nibbles = quants + (kFifth ? kPlane : 0);
    for (int i = 0; i < 4 * kPlane; ++i) {
      planes[i] = nibbles[i] & 0xf;
      planes[4 * kPlane + i] = nibbles[i] >> 4;
    }
    if constexpr (kFifth) {
      for (int j = 0; j < 8; ++j) {
        uint64_t mask;
        std::memcpy(&mask, quants + 8 * j, 8);
        for (int i = 0; i < kPlane; ++i) planes[j * kPlane + i] |= static_cast<uint8_t>((mask >> i & 1) << 4);
      }
    }
  }
}

inline void widen_scales(const uint8_t* src, float* dst) {
  uint16_t bits[kGroupRows];
  std::memcpy(bits, src, sizeof bits);
  for (int r = 0; r < kGroupRows; ++r) dst[r] = half_to_float(bits[r]);
}

// A panel: planes [blocks][8][64], scales f32 [blocks][16], minima f32 [blocks][16].
constexpr int64_t kPanelBlock = 8 * kPlane + 2 * kGroupRows * 4;
int64_t panel_bytes(int64_t blocks) { return blocks * kPanelBlock; }

template <Format F>
inline void block_product(const uint8_t* planes, const float* dw, const float* mw, const QuantBlock& x,
                          float* sum) {
  int32_t acc[kGroupRows];
  for (int r = 0; r < kGroupRows; ++r) acc[r] = x.start(quant_zero(F)) - kMagicBits;
  for (int j = 0; j < 8; ++j) {
    for (int r = 0; r < kGroupRows; ++r) {
      const uint8_t* w = planes + j * kPlane + 4 * r;
      const int8_t* q = x.q + 4 * j;
      acc[r] += w[0] * q[0] + w[1] * q[1] + w[2] * q[2] + w[3] * q[3];
    }
  }
  for (int r = 0; r < kGroupRows; ++r) sum[r] += static_cast<float>(acc[r]) * dw[r] * x.d;
  if constexpr (has_minimum(F)) {
    for (int r = 0; r < kGroupRows; ++r) sum[r] += mw[r] * x.dsum;
  }
}

inline void store_rows(float* y, const float* sum, const float* bias, int64_t rows) {
  for (int64_t r = 0; r < std::min(rows, kGroupRows); ++r) y[r] = bias ? sum[r] + bias[r] : sum[r];
}

template <Format F, int MT>
void direct_groups(const Int8Rows& rows, const uint8_t* group, const Int8Tile& tile) {
  constexpr int64_t kScale = packed_scale_bytes(F), kQuant = packed_quant_bytes(F);
  const int64_t nb = rows.blocks;
  for (int64_t row = 0; row < rows.rows; row += kGroupRows, group += nb * (kScale + kQuant)) {
    float sum[MT][kGroupRows] = {};
    for (int64_t b = 0; b < nb; ++b) {
      uint8_t planes[8 * kPlane];
      float dw[kGroupRows], mw[kGroupRows] = {};
      unpack_planes<F>(group + nb * kScale + b * kQuant, planes);
      widen_scales(group + b * kScale, dw);
      if constexpr (has_minimum(F)) widen_scales(group + b * kScale + 2 * kGroupRows, mw);
      for (int m = 0; m < MT; ++m) block_product<F>(planes, dw, mw, tile.x[m][b], sum[m]);
    }
    for (int m = 0; m < MT; ++m)
      store_rows(tile.y[m] + row, sum[m], rows.bias ? rows.bias + row : nullptr, rows.rows - row);
  }
}

template <Format F>
void unpack_groups(const Int8Rows& rows, const uint8_t* group, uint8_t* panel) {
  constexpr int64_t kScale = packed_scale_bytes(F), kQuant = packed_quant_bytes(F);
  const int64_t nb = rows.blocks;
  float* scales = reinterpret_cast<float*>(panel + nb * 8 * kPlane);
  for (int64_t b = 0; b < nb; ++b) {
    unpack_planes<F>(group + nb * kScale + b * kQuant, panel + b * 8 * kPlane);
    widen_scales(group + b * kScale, scales + b * kGroupRows);
    if constexpr (has_minimum(F))
      widen_scales(group + b * kScale + 2 * kGroupRows, scales + (nb + b) * kGroupRows);
  }
}

template <Format F, int NT, int MT>
void panel_tile(const Int8Rows& rows, const uint8_t* panel, const Int8Tile& tile) {
  static_assert(NT == 1);
  const int64_t nb = rows.blocks;
  const float* scales = reinterpret_cast<const float*>(panel + nb * 8 * kPlane);
  float sum[MT][kGroupRows] = {};
  for (int64_t b = 0; b < nb; ++b) {
    const float* dw = scales + b * kGroupRows;
    for (int m = 0; m < MT; ++m)
      block_product<F>(panel + b * 8 * kPlane, dw, dw + nb * kGroupRows, tile.x[m][b], sum[m]);
  }
  for (int m = 0; m < MT; ++m) store_rows(tile.y[m], sum[m], rows.bias, rows.rows);
}

#include "kernels/cpu/linear_int8_tables.inc"

}  // namespace

const Int8Kernels kInt8Portable = {quantize,     kDirectTokens, direct, kPanelGroups,
                                   kPanelTokens, panel_bytes,   unpack, panel};

}  // namespace autodeploy
