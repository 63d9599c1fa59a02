#include "runtime/weight_convert.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels/cpu/half.h"

namespace autodeploy {
namespace {

template <class T>
T load(const uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// 32 values of one block.
void dequantize_block(Format f, const uint8_t* p, float* out) {
  const bool minimum = f == Format::kQ4_1 || f == Format::kQ5_1,
             fifth = f == Format::kQ5_0 || f == Format::kQ5_1;
  const float d = half_to_float(load<uint16_t>(p)), m = minimum ? half_to_float(load<uint16_t>(p + 2)) : 0.0f;
  p += minimum ? 4 : 2;
  if (f == Format::kQ8_0) {
    for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(static_cast<int8_t>(p[i]));
    return;
  }
  const uint32_t high = fifth ? load<uint32_t>(p) : 0;
  if (fifth) p += 4;
  const int zero = minimum ? 0 : fifth ? 16 : 8;
  for (int i = 0; i < 32; ++i) {
    const int nibble = i < 16 ? p[i] & 0xf : p[i - 16] >> 4;
    const int q = nibble | static_cast<int>(high >> i & 1) << 4;
    out[i] = d * static_cast<float>(q - zero) + m;
  }
}

template <class T, class F>
void each(const uint8_t* src, int64_t n, F&& f) {
  for (int64_t i = 0; i < n; ++i) f(i, load<T>(src + i * static_cast<int64_t>(sizeof(T))));
}

// Calls f(i, value) with a double or an int64_t.
template <class F>
void each_value(Format from, const uint8_t* src, int64_t n, F&& f) {
  switch (from) {
    case Format::kF64:
      return each<double>(src, n, f);
    case Format::kF32:
      return each<float>(src, n, [&](int64_t i, float v) { f(i, static_cast<double>(v)); });
    case Format::kF16:
      return each<uint16_t>(src, n,
                            [&](int64_t i, uint16_t v) { f(i, static_cast<double>(half_to_float(v))); });
    case Format::kBF16:
      return each<uint16_t>(src, n,
                            [&](int64_t i, uint16_t v) { f(i, static_cast<double>(bf16_to_float(v))); });
    case Format::kI64:
      return each<int64_t>(src, n, f);
    case Format::kI32:
      return each<int32_t>(src, n, [&](int64_t i, int32_t v) { f(i, int64_t{v}); });
    case Format::kI16:
      return each<int16_t>(src, n, [&](int64_t i, int16_t v) { f(i, int64_t{v}); });
    case Format::kI8:
      return each<int8_t>(src, n, [&](int64_t i, int8_t v) { f(i, int64_t{v}); });
    case Format::kU8:
    case Format::kBool:
      return each<uint8_t>(src, n, [&](int64_t i, uint8_t v) { f(i, int64_t{v}); });
    default: {
      float block[32];
      for (int64_t b = 0; b < n / 32; ++b, src += format_info(from).block_bytes) {
        dequantize_block(from, src, block);
        for (int64_t i = 0; i < 32; ++i) f(32 * b + i, static_cast<double>(block[i]));
      }
    }
  }
}

constexpr int64_t kPiece = 512;  // elements, a multiple of every block

bool is_short_float(Format f) { return f == Format::kF32 || f == Format::kF16 || f == Format::kBF16; }

// Loops without a switch in them, for the formats that large weights have.
void to_floats(Format from, const uint8_t* src, int64_t n, float* out) {
  if (from == Format::kF32) {
    std::memcpy(out, src, static_cast<size_t>(n) * sizeof(float));
  } else if (from == Format::kF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = half_to_float(load<uint16_t>(src + 2 * i));
  } else if (from == Format::kBF16) {
    for (int64_t i = 0; i < n; ++i) out[i] = bf16_to_float(load<uint16_t>(src + 2 * i));
  } else {
    for (int64_t i = 0; i < n; i += 32, src += format_info(from).block_bytes)
      dequantize_block(from, src, out + i);
  }
}

void from_floats(Format to, const float* x, int64_t n, uint8_t* dst) {
  const auto each_half = [&](auto convert) {
    for (int64_t i = 0; i < n; ++i) {
      const uint16_t v = convert(x[i]);
      std::memcpy(dst + 2 * i, &v, sizeof v);
    }
  };
  if (to == Format::kF32) {
    std::memcpy(dst, x, static_cast<size_t>(n) * sizeof(float));
  } else if (to == Format::kF16) {
    each_half([](float v) { return float_to_half(v); });
  } else {
    each_half([](float v) { return float_to_bf16(v); });
  }
}

template <class T>
void put(uint8_t* dst, int64_t i, T v) {
  std::memcpy(dst + i * static_cast<int64_t>(sizeof(T)), &v, sizeof v);
}

}  // namespace

void convert_row(Format from, const uint8_t* src, Format to, uint8_t* dst, int64_t n) {
  if (from == to) {
    std::memcpy(dst, src, static_cast<size_t>(format_row_bytes(from, n)));
    return;
  }
  if (is_short_float(to) && (is_short_float(from) || is_quantized(from))) {
    const FormatInfo &source = format_info(from), &target = format_info(to);
    std::array<float, kPiece> piece;
    for (int64_t i = 0; i < n; i += kPiece) {
      const int64_t count = std::min(kPiece, n - i);
      to_floats(from, src + i / source.block_len * source.block_bytes, count, piece.data());
      from_floats(to, piece.data(), count, dst + i * target.block_bytes);
    }
    return;
  }
  each_value(from, src, n, [&](int64_t i, auto v) {
    switch (to) {
      case Format::kF64:
        return put(dst, i, static_cast<double>(v));
      case Format::kF32:
        return put(dst, i, static_cast<float>(v));
      case Format::kF16:
        return put(dst, i, float_to_half(static_cast<float>(v)));
      case Format::kBF16:
        return put(dst, i, float_to_bf16(static_cast<float>(v)));
      case Format::kI64:
        return put(dst, i, static_cast<int64_t>(v));
      case Format::kI32:
        return put(dst, i, static_cast<int32_t>(static_cast<int64_t>(v)));
      case Format::kI16:
        return put(dst, i, static_cast<int16_t>(static_cast<int64_t>(v)));
      case Format::kI8:
        return put(dst, i, static_cast<int8_t>(static_cast<int64_t>(v)));
      case Format::kU8:
        return put(dst, i, static_cast<uint8_t>(static_cast<int64_t>(v)));
      case Format::kBool:
        return put(dst, i, static_cast<uint8_t>(v != 0));
      default:
        return;
    }
  });
}

}  // namespace autodeploy
