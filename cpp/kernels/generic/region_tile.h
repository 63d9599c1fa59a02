// The loops that a region is made of: one function runs one operation over one tile.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace autodeploy {

// Arguments and results are float, int64_t or uint8_t (0 or 1) arrays of n elements, but an argument that a
// variant calls uniform is a single element. dst may equal an argument of the same width.
using TileFn = void (*)(void* dst, const void* a, const void* b, const void* c, int64_t n);

// clang-format off
#define AD_TILE_F32_UNARY(X)                                                                              \
  X(neg) X(abs) X(exp) X(log) X(log1p) X(expm1) X(sqrt) X(rsqrt) X(reciprocal) X(sin) X(cos) X(tanh)      \
  X(sigmoid) X(silu) X(relu) X(gelu) X(gelu_tanh) X(softplus) X(erf) X(floor) X(ceil) X(round) X(trunc)   \
  X(sign) X(square)
// clang-format on
// silu_mul(a, b) = silu(a) * b, rounded in between: the gate of most MLPs.
#define AD_TILE_F32_BINARY(X) \
  X(add) X(sub) X(mul) X(div) X(pow) X(min) X(max) X(fmod) X(floor_div) X(silu_mul)
#define AD_TILE_COMPARE(X) X(eq) X(ne) X(lt) X(le) X(gt) X(ge)
#define AD_TILE_I64_UNARY(X) X(neg) X(abs) X(sign) X(square) X(relu)
#define AD_TILE_I64_BINARY(X) \
  X(add) X(sub) X(mul) X(pow) X(min) X(max) X(fmod) X(floor_div) X(bit_and) X(bit_or) X(bit_xor)
#define AD_TILE_BOOL_BINARY(X) X(and) X(or) X(xor)
#define AD_TILE_CAST(X) \
  X(f32, f32)           \
  X(i64, i64) X(bool, bool) X(f32, i64) X(f32, bool) X(i64, f32) X(i64, bool) X(bool, f32) X(bool, i64)
#define AD_TILE_WHERE(X) X(f32) X(i64) X(bool)

enum class TileOp : uint8_t {
#define X(name) f32_##name,
  AD_TILE_F32_UNARY(X) AD_TILE_F32_BINARY(X) AD_TILE_COMPARE(X)
#undef X
#define X(name) i64_##name,
      AD_TILE_I64_UNARY(X) AD_TILE_I64_BINARY(X) AD_TILE_COMPARE(X)
#undef X
          bool_not,
#define X(name) bool_##name,
  AD_TILE_BOOL_BINARY(X)
#undef X
#define X(from, to) cast_##from##_##to,
      AD_TILE_CAST(X)
#undef X
#define X(name) where_##name,
          AD_TILE_WHERE(X)
#undef X
              kCount,
};

// Which of two arguments are uniform: (a, b) of a binary operation, (b, c) of where. Operations on uniform
// values alone are run with n = 1.
enum TileVariant : int { kBothVary = 0, kFirstUniform = 1, kSecondUniform = 2 };

struct TileTable {
  TileFn fn[static_cast<int>(TileOp::kCount)][3];
};
const TileTable& tile_table(Isa isa);

}  // namespace autodeploy
