// Element types of values and formats of stored weights.
#pragma once

#include <cstdint>
#include <string_view>

namespace autodeploy {

// Types of values at run time. `act` of a Program is bound to one of them at load.
enum class DType : uint8_t { kF32, kF16, kBF16, kI64, kBool };

constexpr int64_t dtype_size(DType t) {
  switch (t) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI64:
      return 8;
    case DType::kBool:
      return 1;
  }
  return 0;
}
std::string_view dtype_name(DType t);

// Formats of weight tensors as checkpoints store them. The Q formats are GGUF's: blocks of 32 along the last
// dimension.
enum class Format : uint8_t {
  kF64,
  kF32,
  kF16,
  kBF16,
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool,
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1
};

struct FormatInfo {
  std::string_view name;  // as in weights.json
  int32_t block_len;      // elements per block (1 for plain formats)
  int32_t block_bytes;    // bytes per block
};
const FormatInfo& format_info(Format f);
// Throws Error(kInvalidArtifact) on an unknown name.
Format format_from_name(std::string_view name);
constexpr bool is_quantized(Format f) { return f >= Format::kQ8_0; }
// Bytes of one row of `cols` elements; cols must be a multiple of the block length.
int64_t format_row_bytes(Format f, int64_t cols);

}  // namespace autodeploy
