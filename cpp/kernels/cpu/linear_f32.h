// Products of float32 activations with weights of any format in float32: plain weights, and the exact mode of
// quantized ones.
//
// y = sum over chunks of kChunkCols columns, in order, of the chunk's sum; within a chunk one product after
// the other. Every tile shape keeps this order, so a token's result does not depend on how many tokens ride
// along, on tiles or on threads.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "kernels/cpu/isa.h"

namespace autodeploy {

constexpr int64_t kChunkCols = 128;
constexpr int64_t kMaxBlockTokens = 512;

// Weight rows of a call: whole groups (packed_layout.h), `rows` of them wanted; a row's bias, if any, at the
// row's index.
struct F32Rows {
  Format format;
  int64_t cols;
  int64_t rows;
  const float* bias;
};

struct F32Kernels {
  int tile_groups;  // groups that one call of multiply takes at most
  int64_t scratch_bytes;
  // y[t][r] for r < rows.rows <= 16 * tile_groups and t < tokens <= kMaxBlockTokens; x[t] are rows of cols
  // floats.
  void (*multiply)(const F32Rows& rows, const uint8_t* groups, const float* const* x, float* const* y,
                   int64_t tokens, float* scratch);
};

F32Kernels f32_kernels(Isa isa);

}  // namespace autodeploy
