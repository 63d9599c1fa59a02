// Multiplies rows of activations with a packed weight: the common part of linear and expert_linear.
#pragma once

#include <cstdint>

#include "core/thread_pool.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear_f32.h"
#include "kernels/cpu/linear_int8.h"
#include "kernels/cpu/packed_weight.h"

namespace autodeploy {

// Row pointers of a block of tokens. x for float32 products, quantized rows for integer ones.
struct TokenBlock {
  const float* const* x;
  const QuantBlock* const* quantized;
  float* const* y;  // row 0 of the weight's rows that are asked for
  int64_t tokens;
};

class Multiplier {
 public:
  static constexpr int64_t kMaxTokens = kMaxBlockTokens;  // of a TokenBlock

  Multiplier(Isa isa, bool exact) : int8_(int8_kernels(isa)), f32_(f32_kernels(isa)), exact_(exact) {}

  bool integer(Format f) const { return is_quantized(f) && !exact_; }
  // Scratch of one thread for rows of up to `cols` columns.
  int64_t scratch_bytes(int64_t cols) const;
  // Groups that are worked on together for that many tokens: ranges given to multiply() should start at
  // multiples of it.
  int64_t granule(Format f, int64_t tokens) const;
  // Tokens that a thread should take at once, so that their rows stay in its cache.
  int64_t token_block(Format f, int64_t cols) const;
  // Groups [begin, end) of one part of a segment; `rows`: number of the part's rows; y points at the part's
  // row 0; bias at its row 0 or null.
  void multiply(const PackedSegment& segment, int64_t part, int64_t begin, int64_t end, const float* bias,
                const TokenBlock& block, uint8_t* scratch) const;
  void quantize(const float* x, int64_t cols, QuantBlock* out) const { int8_.quantize(x, cols / 32, out); }

 private:
  void multiply_integer(const PackedSegment& s, const uint8_t* groups, int64_t begin, int64_t end,
                        int64_t rows, const float* bias, const TokenBlock& block, uint8_t* scratch) const;
  const Int8Kernels& int8_;
  F32Kernels f32_;
  bool exact_;
};

}  // namespace autodeploy
