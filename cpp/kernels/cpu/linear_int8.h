// Integer products of block-quantized weights with activations quantized in blocks of 32: the fast mode of
// linear and expert_linear.
//
// A block's product is  (sum u*q - zero * sum q) * d_w * d_x + m_w * (d_x * sum q) : the sums are exact
// integers, and the two float32 terms are added block by block in order of the columns. Every kernel of one
// instruction set does the same float operations for one output element, so a token's result does not depend
// on how many tokens ride along, on tiles or on threads.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cpu/isa.h"

namespace autodeploy {

// The bits of 1.5 * 2^23: added to an integer below 2^22 they make the float 1.5 * 2^23 + integer. Its
// product with a scale s, less 1.5 * 2^23 * s, is rounded once, since s has the 11 bits of a float16: one
// fused operation both converts and scales a sum.
constexpr int32_t kMagicBits = 0x4b400000;
constexpr float kMagic = 0x1.8p23f;

// 32 activations x = d * q.
struct alignas(16) QuantBlock {
  int8_t q[32];      // in [-127, 127]
  float d;           // largest magnitude / 127; NaN when one of the activations is
  float dsum;        // d * sum of q
  int32_t start128;  // kMagicBits - 128 * sum of q: where the sums of a format with zero 128 start
  int32_t start8;    // kMagicBits - 8 * sum of q

  void finish(float scale, int32_t sum) {
    d = scale;
    dsum = scale * static_cast<float>(sum);
    start128 = from_magic(128, sum);
    start8 = from_magic(8, sum);
  }
  int32_t start(int zero) const {
    if (zero == 16) return static_cast<int32_t>(2 * static_cast<uint32_t>(start8) - uint32_t{kMagicBits});
    return zero == 128 ? start128 : zero == 8 ? start8 : kMagicBits;
  }
  // Modulo 2^32: the sum of a block with infinities is any number, and its scale makes the product NaN.
  static int32_t from_magic(uint32_t zero, int32_t sum) {
    return static_cast<int32_t>(uint32_t{kMagicBits} - zero * static_cast<uint32_t>(sum));
  }
};
static_assert(sizeof(QuantBlock) == 48);

constexpr int kMaxTile = 8;

// Tokens that are multiplied together, and where their outputs of the first row go.
struct Int8Tile {
  const QuantBlock* x[kMaxTile];
  float* y[kMaxTile];
};

// The weight rows of a call: whole groups (packed_layout.h), `rows` of them wanted; a row's bias, if any, at
// the row's index.
struct Int8Rows {
  Format format;
  int64_t blocks;  // of 32 columns
  int64_t rows;
  const float* bias;
};

struct Int8Kernels {
  // blocks: of 32 activations.
  void (*quantize)(const float* x, int64_t blocks, QuantBlock* out);

  // y[t][r] for t < tokens <= direct_tokens, straight from the packed weight.
  int direct_tokens;
  void (*direct)(const Int8Rows& rows, const uint8_t* groups, const Int8Tile& tile, int tokens);

  // For many tokens: up to panel_groups groups are unpacked once (panel_bytes of scratch), then multiplied
  // with tile after tile of up to panel_tokens.
  int panel_groups, panel_tokens;
  int64_t (*panel_bytes)(int64_t blocks);
  void (*unpack)(const Int8Rows& rows, const uint8_t* groups, uint8_t* panel);
  void (*panel)(const Int8Rows& rows, const uint8_t* panel, const Int8Tile& tile, int tokens);
};

const Int8Kernels& int8_kernels(Isa isa);

// One per instruction set.
extern const Int8Kernels kInt8Portable;
#if defined(__x86_64__)
extern const Int8Kernels kInt8Avx2, kInt8AvxVnni, kInt8Avx512Vnni;
#endif

}  // namespace autodeploy
