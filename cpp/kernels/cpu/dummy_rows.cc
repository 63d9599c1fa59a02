#include "kernels/cpu/dummy_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "kernels/cpu/half.h"

namespace autodeploy {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kChunk = kLanes * kDummyBlock;  // elements made at once

// Bytes of kLanes blocks in a row: dummy_bytes in a form that becomes vector instructions.
void make_bytes(const DummyFill& fill, uint64_t block, uint8_t* out) {
  uint32_t c0[kLanes], c1[kLanes], c2[kLanes], c3[kLanes], k0 = fill.seed[0], k1 = fill.seed[1];
  for (int i = 0; i < kLanes; ++i) {
    const uint64_t at = block + static_cast<uint64_t>(i);
    c0[i] = static_cast<uint32_t>(at), c1[i] = static_cast<uint32_t>(at >> 32);
    c2[i] = fill.stream[0], c3[i] = fill.stream[1];
  }
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kLanes; ++i) {
      const uint64_t a = uint64_t{0xD2511F53} * c0[i], b = uint64_t{0xCD9E8D57} * c2[i];
      c0[i] = static_cast<uint32_t>(b >> 32) ^ c1[i] ^ k0;
      c1[i] = static_cast<uint32_t>(b);
      c2[i] = static_cast<uint32_t>(a >> 32) ^ c3[i] ^ k1;
      c3[i] = static_cast<uint32_t>(a);
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  for (int i = 0; i < kLanes; ++i) {
    for (uint32_t word : {c0[i], c1[i], c2[i], c3[i]}) {
      for (int j = 0; j < 4; ++j) *out++ = static_cast<uint8_t>(word >> (8 * j));
    }
  }
}

template <class T>
void put(uint8_t* dst, int64_t i, T v) {
  std::memcpy(dst + i * static_cast<int64_t>(sizeof(T)), &v, sizeof v);
}

// 32 elements from their bytes.
void write_block(const DummyFill& fill, Format format, const uint8_t* bytes, uint8_t* dst) {
  const uint16_t d = float_to_half(fill.step);
  put(dst, 0, d);
  dst += 2;
  if (format == Format::kQ8_0) {
    for (int i = 0; i < 32; ++i) dst[i] = static_cast<uint8_t>(bytes[i] ^ 0x80u);  // less 128
    return;
  }
  if (format == Format::kQ4_1 || format == Format::kQ5_1) {
    put(dst, 0, float_to_half(-fill.step * static_cast<float>(fill.zero)));
    dst += 2;
  }
  if (format == Format::kQ5_0 || format == Format::kQ5_1) {
    uint32_t high = 0;
    for (int i = 0; i < 32; ++i) high |= static_cast<uint32_t>(bytes[i] >> 7) << i;
    put(dst, 0, high);
    dst += 4;
  }
  for (int i = 0; i < 16; ++i) {
    const auto low = [&](int j) { return static_cast<unsigned>(bytes[j] >> fill.shift & 0xf); };
    dst[i] = static_cast<uint8_t>(low(i) | low(i + 16) << 4);
  }
}

// n elements from their bytes, in a plain format.
void write_plain(const DummyFill& fill, Format format, const uint8_t* bytes, int64_t n, uint8_t* dst) {
  std::array<float, kChunk> values;
  for (int64_t i = 0; i < n; ++i) values[static_cast<size_t>(i)] = dummy_value(fill, bytes[i]);
  const auto each = [&](auto convert) {
    for (int64_t i = 0; i < n; ++i) put(dst, i, convert(values[static_cast<size_t>(i)]));
  };
  switch (format) {
    case Format::kF64:
      return each([](float v) { return static_cast<double>(v); });
    case Format::kF16:
      return each(float_to_half);
    case Format::kBF16:
      return each([](float v) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(v) >> 16); });  // exact
    case Format::kI64:
      return each([](float v) { return static_cast<int64_t>(v); });
    case Format::kI32:
      return each([](float v) { return static_cast<int32_t>(v); });
    case Format::kI16:
      return each([](float v) { return static_cast<int16_t>(v); });
    case Format::kI8:
      return each([](float v) { return static_cast<int8_t>(v); });
    case Format::kU8:
      return each([](float v) { return static_cast<uint8_t>(v); });
    case Format::kBool:
      return each([](float v) { return static_cast<uint8_t>(v != 0); });
    default:
      return each([](float v) { return v; });
  }
}

}  // namespace

void write_dummy(const DummyFill& fill, Format format, int64_t first, int64_t n, uint8_t* dst) {
  alignas(64) std::array<uint8_t, kChunk> bytes;
  const FormatInfo& info = format_info(format);
  while (n > 0) {
    const int64_t skip = first % kDummyBlock,
                  count = std::min(n, kChunk - skip) / info.block_len * info.block_len;
    make_bytes(fill, static_cast<uint64_t>(first / kDummyBlock), bytes.data());
    if (is_quantized(format)) {
      for (int64_t i = 0; i < count; i += info.block_len)
        write_block(fill, format, bytes.data() + skip + i, dst + i / info.block_len * info.block_bytes);
    } else {
      write_plain(fill, format, bytes.data() + skip, count, dst);
    }
    first += count;
    n -= count;
    dst += count / info.block_len * info.block_bytes;
  }
}

}  // namespace autodeploy
