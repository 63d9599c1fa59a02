#include "core/dtype.h"

#include <array>

#include "core/error.h"

namespace autodeploy {
namespace {

constexpr std::array<FormatInfo, 15> kFormats = {{
    {"f64", 1, 8},
    {"f32", 1, 4},
    {"f16", 1, 2},
    {"bf16", 1, 2},
    {"i64", 1, 8},
    {"i32", 1, 4},
    {"i16", 1, 2},
    {"i8", 1, 1},
    {"u8", 1, 1},
    {"bool", 1, 1},
    {"q8_0", 32, 34},  // f16 scale, 32 x int8
    {"q4_0", 32, 18},  // f16 scale, 32 x 4 bits
    {"q4_1", 32, 20},  // f16 scale, f16 minimum, 32 x 4 bits
    {"q5_0", 32, 22},  // f16 scale, 32 high bits, 32 x 4 bits
    {"q5_1", 32, 24},  // f16 scale, f16 minimum, 32 high bits, 32 x 4 bits
}};

}  // namespace

std::string_view dtype_name(DType t) {
  switch (t) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kI64:
      return "i64";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

const FormatInfo& format_info(Format f) { return kFormats.at(static_cast<size_t>(f)); }

Format format_from_name(std::string_view name) {
  for (size_t i = 0; i < kFormats.size(); ++i) {
    if (kFormats[i].name == name) return static_cast<Format>(i);
  }
  std::string known;
  for (const FormatInfo& f : kFormats) known += detail::concat(known.empty() ? "" : " ", f.name);
  throw Error(ErrorKind::kInvalidArtifact,
              detail::concat("[format] expected one of ", known, ", found '", name.substr(0, 40), "'"));
}

int64_t format_row_bytes(Format f, int64_t cols) {
  const FormatInfo& info = format_info(f);
  AD_CHECK(cols >= 0 && cols % info.block_len == 0, ErrorKind::kInvalidArtifact,
           "[format] expected rows of a multiple of ", info.block_len, " elements for ", info.name,
           ", found ", cols);
  return cols / info.block_len * info.block_bytes;
}

}  // namespace autodeploy
