#include "kernels/cpu/linear_multiply.h"

#include <algorithm>

#include "kernels/cpu/packed_layout.h"

namespace autodeploy {

const Int8Kernels& int8_kernels(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::kPortable:
      return kInt8Portable;
    case Isa::kAvx2:
    case Isa::kAvx512:
      return kInt8Avx2;
    case Isa::kAvxVnni:
      return kInt8AvxVnni;
    case Isa::kAvx512Vnni:
      return kInt8Avx512Vnni;
  }
#endif
  static_cast<void>(isa);
  return kInt8Portable;
}

int64_t Multiplier::scratch_bytes(int64_t cols) const {
  const int64_t panel = exact_ ? 0 : int8_.panel_bytes(cols / kBlockCols);
  return (std::max(panel, f32_.scratch_bytes) + 63) / 64 * 64;
}

int64_t Multiplier::granule(Format f, int64_t tokens) const {
  if (!integer(f)) return f32_.tile_groups;
  return tokens <= int8_.direct_tokens ? 1 : int8_.panel_groups;
}

int64_t Multiplier::token_block(Format f, int64_t cols) const {
  constexpr int64_t kCacheBytes = 768 << 10;
  const int64_t row_bytes = integer(f) ? cols * 3 / 2 : cols * 4;
  return std::clamp(kCacheBytes / row_bytes / 24 * 24, int64_t{24}, kMaxTokens);
}

void Multiplier::multiply(const PackedSegment& s, int64_t part, int64_t begin, int64_t end, const float* bias,
                          const TokenBlock& block, uint8_t* scratch) const {
  const int64_t group_bytes = packed_group_bytes(s.format, s.cols);
  const uint8_t* groups = s.data + part * groups_per_part(s.group_rows) * group_bytes;
  if (integer(s.format)) return multiply_integer(s, groups, begin, end, s.group_rows, bias, block, scratch);
  float* y[kMaxTokens];
  for (int64_t g = begin; g < end; g += f32_.tile_groups) {
    const int64_t row = g * kGroupRows,
                  last_row = std::min(s.group_rows, std::min(end, g + f32_.tile_groups) * kGroupRows);
    for (int64_t t = 0; t < block.tokens; ++t) y[t] = block.y[t] + row;
    const F32Rows rows{s.format, s.cols, last_row - row, bias ? bias + row : nullptr};
    f32_.multiply(rows, groups + g * group_bytes, block.x, y, block.tokens,
                  reinterpret_cast<float*>(scratch));
  }
}

void Multiplier::multiply_integer(const PackedSegment& s, const uint8_t* groups, int64_t begin, int64_t end,
                                  int64_t num_rows, const float* bias, const TokenBlock& block,
                                  uint8_t* scratch) const {
  const int64_t group_bytes = packed_group_bytes(s.format, s.cols), blocks = s.cols / kBlockCols;
  const bool direct = block.tokens <= int8_.direct_tokens;
  const int64_t step = direct ? end - begin : int8_.panel_groups,
                tile_tokens = direct ? int8_.direct_tokens : int8_.panel_tokens;
  for (int64_t g = begin; g < end; g += step) {
    const int64_t row = g * kGroupRows, last_row = std::min(num_rows, std::min(end, g + step) * kGroupRows);
    const Int8Rows rows{s.format, blocks, last_row - row, bias ? bias + row : nullptr};
    if (!direct) int8_.unpack(rows, groups + g * group_bytes, scratch);
    for (int64_t t = 0; t < block.tokens; t += tile_tokens) {
      Int8Tile tile;
      const int n = static_cast<int>(std::min(tile_tokens, block.tokens - t));
      for (int i = 0; i < n; ++i) {
        tile.x[i] = block.quantized[t + i];
        tile.y[i] = block.y[t + i] + row;
      }
      direct ? int8_.direct(rows, groups + g * group_bytes, tile, n) : int8_.panel(rows, scratch, tile, n);
    }
  }
}

}  // namespace autodeploy
