// How a packed segment lies in memory. Private to kernels/cpu.
//
// Rows are interleaved in groups of 16 (the lanes of one AVX-512 register, of two AVX ones, of four 128-bit
// ones), so that one vector load gives the same columns of many rows and no kernel ever adds across lanes.
// The last group of each `group_rows` rows is padded with zeros.
//
//   plain formats (f32, f16, bf16), one group:   element [cols][16]
//   block formats, one group of nb = cols / 32:  f16 scales [nb][16], or scales and minima [nb][2][16], then
//   quants [nb][...]
//     q8_0        [8][16][4]  byte = q + 128;  [j][row][i] is column 4j + i of the block
//     q4_0, q4_1  [4][16][4]  low half: column 4j + i, high half: column 16 + 4j + i
//     q5_0, q5_1  [8] 64-bit masks, bit 4*row + i of mask j = fifth bit of column 4j + i; then as q4
//
// A quant's value is scale * (u - zero) [+ minimum] with the unsigned u and the format's zero: 128, 8, 0, 16,
// 0.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cpu/packed_weight.h"

namespace autodeploy {

constexpr int kPackedLayout = 1;
constexpr int64_t kGroupRows = 16;
constexpr int64_t kBlockCols = 32;
constexpr int64_t kPlane = 64;  // bytes of one [16][4] plane of quants

constexpr int64_t packed_quant_bytes(Format f) {  // per block of a group
  switch (f) {
    case Format::kQ8_0:
      return 8 * kPlane;
    case Format::kQ4_0:
    case Format::kQ4_1:
      return 4 * kPlane;
    case Format::kQ5_0:
    case Format::kQ5_1:
      return 5 * kPlane;
    default:
      return 0;
  }
}
constexpr bool has_minimum(Format f) { return f == Format::kQ4_1 || f == Format::kQ5_1; }
constexpr int quant_zero(Format f) {
  return f == Format::kQ8_0 ? 128 : f == Format::kQ4_0 ? 8 : f == Format::kQ5_0 ? 16 : 0;
}
constexpr int64_t packed_scale_bytes(Format f) {
  return 2 * kGroupRows * (has_minimum(f) ? 2 : 1);
}  // per block of a group
constexpr int64_t plain_bytes(Format f) {  // per element, 0 for formats that are not multiplied
  return f == Format::kF32 ? 4 : f == Format::kF16 || f == Format::kBF16 ? 2 : 0;
}
constexpr int64_t packed_group_bytes(Format f, int64_t cols) {
  return is_quantized(f) ? cols / kBlockCols * (packed_scale_bytes(f) + packed_quant_bytes(f))
                         : kGroupRows * cols * plain_bytes(f);
}

constexpr int64_t groups_per_part(int64_t group_rows) { return (group_rows + kGroupRows - 1) / kGroupRows; }

struct PackedRow {
  int64_t group;  // index of the interleaved group
  int64_t lane;   // 0..15
};
inline PackedRow locate_row(const PackedSegment& s, int64_t row) {
  const int64_t part = row / s.group_rows, inner = row % s.group_rows;
  return {part * groups_per_part(s.group_rows) + inner / kGroupRows, inner % kGroupRows};
}

}  // namespace autodeploy
