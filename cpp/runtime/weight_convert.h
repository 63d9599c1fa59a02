// Rows of stored weights from one format to another.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace autodeploy {

// n elements from `src` in any format to `dst` in a plain one. Blocks are dequantized as GGUF defines them
// (the product and the sum each rounded to float32); to bool means not zero; float to integer truncates.
void convert_row(Format from, const uint8_t* src, Format to, uint8_t* dst, int64_t n);

}  // namespace autodeploy
