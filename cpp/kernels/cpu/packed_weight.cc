#include "kernels/cpu/packed_weight.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/error.h"
#include "kernels/cpu/half.h"
#include "kernels/cpu/packed_layout.h"

namespace autodeploy {
namespace {

constexpr bool has_fifth_bits(Format f) { return f == Format::kQ5_0 || f == Format::kQ5_1; }

// Where the parts of a stored block and of a group lie.
struct BlockLayout {
  explicit BlockLayout(const PackedSegment& s)
      : format(s.format),
        blocks(s.cols / kBlockCols),
        stored(format_info(s.format).block_bytes),
        scale(packed_scale_bytes(s.format)),
        quant(packed_quant_bytes(s.format)) {}
  uint8_t* scales(uint8_t* group, int64_t block) const { return group + block * scale; }
  uint8_t* quants(uint8_t* group, int64_t block) const { return group + blocks * scale + block * quant; }
  // The 32 fifth bits of a stored block.
  uint32_t fifth_bits(const uint8_t* src) const {
    uint32_t bits;
    std::memcpy(&bits, src + (has_minimum(format) ? 4 : 2), 4);
    return bits;
  }

  Format format;
  int64_t blocks, stored, scale, quant;
};

// Scales and quants, but for fifth bits, of one block of one row.
void pack_block(const BlockLayout& at, const uint8_t* src, int64_t lane, uint8_t* scales, uint8_t* quants) {
  std::memcpy(scales + 2 * lane, src, 2);
  src += 2;
  if (has_minimum(at.format)) {
    std::memcpy(scales + 2 * (kGroupRows + lane), src, 2);
    src += 2;
  }
  if (at.format == Format::kQ8_0) {
    for (int j = 0; j < 8; ++j) {
      uint32_t four;
      std::memcpy(&four, src + 4 * j, 4);
      four ^= 0x80808080u;
      std::memcpy(quants + j * kPlane + 4 * lane, &four, 4);
    }
    return;
  }
  if (has_fifth_bits(at.format)) {
    src += 4;
    quants += kPlane;
  }
  for (int j = 0; j < 4; ++j) std::memcpy(quants + j * kPlane + 4 * lane, src + 4 * j, 4);
}

// Adjacent rows share bytes of the masks of fifth bits, and may come from different threads.
void set_fifth_bits(uint8_t* masks, int64_t lane, uint32_t bits) {
  const int shift = static_cast<int>(lane % 2) * 4;
  for (int j = 0; j < 8; ++j) {
    std::atomic_ref<uint8_t> shared(masks[8 * j + lane / 2]);
    shared.fetch_and(static_cast<uint8_t>(~(0xf << shift)), std::memory_order_relaxed);
    shared.fetch_or(static_cast<uint8_t>((bits >> (4 * j) & 0xf) << shift), std::memory_order_relaxed);
  }
}

// One row; src is null for padding.
void pack_blocks(const BlockLayout& at, const uint8_t* src, int64_t lane, uint8_t* group) {
  static constexpr uint8_t kZero[34] = {};
  for (int64_t b = 0; b < at.blocks; ++b) {
    const uint8_t* from = src ? src + b * at.stored : kZero;
    pack_block(at, from, lane, at.scales(group, b), at.quants(group, b));
    if (has_fifth_bits(at.format)) set_fifth_bits(at.quants(group, b), lane, at.fifth_bits(from));
  }
}

// All 16 rows at once: writes run forward.
void pack_group_blocks(const BlockLayout& at, const uint8_t* src, uint8_t* group) {
  const int64_t row_bytes = at.blocks * at.stored;
  for (int64_t b = 0; b < at.blocks; ++b) {
    uint64_t masks[8] = {};
    for (int64_t lane = 0; lane < kGroupRows; ++lane) {
      const uint8_t* from = src + lane * row_bytes + b * at.stored;
      pack_block(at, from, lane, at.scales(group, b), at.quants(group, b));
      if (!has_fifth_bits(at.format)) continue;
      const uint64_t bits = at.fifth_bits(from);
      for (int j = 0; j < 8; ++j) masks[j] |= (bits >> (4 * j) & 0xf) << (4 * lane);
    }
    if (has_fifth_bits(at.format)) std::memcpy(at.quants(group, b), masks, sizeof masks);
  }
}

// Checkpoints need not align their elements.
template <class T>
T load_element(const uint8_t* src, int64_t i) {
  T value;
  std::memcpy(&value, src + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

template <class T>
void pack_plain(const uint8_t* src, int64_t cols, int64_t lane, uint8_t* group) {
  T* to = reinterpret_cast<T*>(group) + lane;
  for (int64_t k = 0; k < cols; ++k) to[k * kGroupRows] = src ? load_element<T>(src, k) : T(0);
}

template <class T>
void pack_plain_group(const uint8_t* src, int64_t cols, uint8_t* group) {
  T* to = reinterpret_cast<T*>(group);
  for (int64_t k0 = 0; k0 < cols; k0 += 16) {
    const int64_t k1 = std::min(cols, k0 + 16);
    for (int64_t lane = 0; lane < kGroupRows; ++lane) {
      for (int64_t k = k0; k < k1; ++k) to[k * kGroupRows + lane] = load_element<T>(src, lane * cols + k);
    }
  }
}

void pack_row(const PackedSegment& s, const uint8_t* src, int64_t lane, uint8_t* group) {
  if (is_quantized(s.format)) return pack_blocks(BlockLayout(s), src, lane, group);
  s.format == Format::kF32 ? pack_plain<uint32_t>(src, s.cols, lane, group)
                           : pack_plain<uint16_t>(src, s.cols, lane, group);
}

void pack_group(const PackedSegment& s, const uint8_t* src, uint8_t* group) {
  if (is_quantized(s.format)) return pack_group_blocks(BlockLayout(s), src, group);
  s.format == Format::kF32 ? pack_plain_group<uint32_t>(src, s.cols, group)
                           : pack_plain_group<uint16_t>(src, s.cols, group);
}

}  // namespace

PackedSegment plan_packed_segment(Format format, int64_t rows, int64_t cols, int64_t group_rows) {
  AD_CHECK(is_quantized(format) || plain_bytes(format), ErrorKind::kUnsupported,
           "[weight] expected one of f32 f16 bf16 q8_0 q4_0 q4_1 q5_0 q5_1 for a multiplied weight, found ",
           format_info(format).name, "; cast it in the weight program");
  AD_CHECK(rows >= 0 && cols >= 0 && group_rows > 0 && rows % group_rows == 0, ErrorKind::kInvalidArtifact,
           "[weight] expected rows in whole parts of ", group_rows, ", found [", rows, ", ", cols, "]");
  const int64_t row_bytes = format_row_bytes(format, cols);  // checks the block length
  AD_CHECK(row_bytes == 0 || rows < (int64_t{1} << 46) / row_bytes, ErrorKind::kInvalidArtifact, "[weight] [",
           rows, ", ", cols, "] is too large");
  PackedSegment s;
  s.format = format;
  s.rows = rows;
  s.cols = cols;
  s.group_rows = group_rows;
  s.layout = kPackedLayout;
  s.bytes = rows / group_rows * groups_per_part(group_rows) * packed_group_bytes(format, cols);
  return s;
}

void pack_rows(const PackedSegment& s, int64_t row_begin, int64_t num_rows, const void* src, uint8_t* dst) {
  AD_ICHECK(row_begin >= 0 && num_rows >= 0 && row_begin + num_rows <= s.rows, "rows lie inside the segment");
  const int64_t row_bytes = format_row_bytes(s.format, s.cols),
                group_bytes = packed_group_bytes(s.format, s.cols);
  const uint8_t* from = static_cast<const uint8_t*>(src);
  for (int64_t row = row_begin; row < row_begin + num_rows;) {
    const PackedRow at = locate_row(s, row);
    const int64_t left_in_part = s.group_rows - row % s.group_rows;
    uint8_t* group = dst + at.group * group_bytes;
    if (at.lane == 0 && std::min(left_in_part, row_begin + num_rows - row) >= kGroupRows) {
      pack_group(s, from, group);
      row += kGroupRows;
      from += kGroupRows * row_bytes;
      continue;
    }
    pack_row(s, from, at.lane, group);
    if (left_in_part == 1) {
      for (int64_t lane = at.lane + 1; lane < kGroupRows; ++lane) pack_row(s, nullptr, lane, group);
    }
    ++row;
    from += row_bytes;
  }
}

int64_t packed_row_granule() { return kGroupRows; }

void unpack_row(const PackedSegment& s, int64_t row, float* dst) {
  const PackedRow at = locate_row(s, row);
  const uint8_t* group = s.data + at.group * packed_group_bytes(s.format, s.cols);
  if (s.format == Format::kF32) {
    const float* src = reinterpret_cast<const float*>(group) + at.lane;
    for (int64_t k = 0; k < s.cols; ++k) dst[k] = src[k * kGroupRows];
    return;
  }
  if (!is_quantized(s.format)) {
    const uint16_t* src = reinterpret_cast<const uint16_t*>(group) + at.lane;
    const bool bf16 = s.format == Format::kBF16;
    for (int64_t k = 0; k < s.cols; ++k)
      dst[k] = bf16 ? bf16_to_float(src[k * kGroupRows]) : half_to_float(src[k * kGroupRows]);
    return;
  }
  const int64_t nb = s.cols / kBlockCols, scale_bytes = packed_scale_bytes(s.format),
                quant_bytes = packed_quant_bytes(s.format);
  const bool minimum = has_minimum(s.format), wide = s.format == Format::kQ8_0;
  const bool fifth = s.format == Format::kQ5_0 || s.format == Format::kQ5_1;
  const int zero = quant_zero(s.format);
  for (int64_t b = 0; b < nb; ++b, dst += kBlockCols) {
    const uint8_t* scales = group + b * scale_bytes;
    const uint8_t* quants = group + nb * scale_bytes + b * quant_bytes;
    uint16_t bits[2] = {0, 0};
    std::memcpy(&bits[0], scales + 2 * at.lane, 2);
    if (minimum) std::memcpy(&bits[1], scales + 2 * (kGroupRows + at.lane), 2);
    const float d = half_to_float(bits[0]), m = half_to_float(bits[1]);
    const uint8_t* masks = quants;
    if (fifth) quants += kPlane;
    for (int k = 0; k < kBlockCols; ++k) {
      const int plane = k / 4 % (wide ? 8 : 4);
      int u = quants[plane * kPlane + 4 * at.lane + k % 4];
      if (!wide) u = k < 16 ? u & 0xf : u >> 4;
      if (fifth) {
        const int64_t bit = 4 * at.lane + k % 4;
        u |= (masks[8 * (k / 4) + bit / 8] >> (bit % 8) & 1) << 4;
      }
      const float value = d * static_cast<float>(u - zero);
      dst[k] = minimum ? value + m : value;
    }
  }
}

}  // namespace autodeploy
