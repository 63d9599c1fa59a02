// A recurrence over an outer-product memory of one head, shared by linear_attention and mlstm.
#pragma once

#include <cstdint>

namespace autodeploy {

inline constexpr int64_t kMemoryColumns = 64;  // of a tile: whole vectors on every instruction set

// Columns of one head of one sequence: `tokens` steps over a state of [width, columns] floats.
struct MatrixMemoryTile {
  int64_t tokens = 0, width = 0, columns = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  const float *keep = nullptr, *add = nullptr, *weight = nullptr;  // [tokens]; add and weight may be null (1)
  float* y = nullptr;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, y_stride = 0;  // per token
  float scale = 1.0f;
  float* state = nullptr;
  int64_t state_stride = 0;  // per row
};

}  // namespace autodeploy
