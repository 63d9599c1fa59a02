// A recurrence over an outer-product memory, shared by linear_attention and mlstm: token by token, or in
// chunks as products of matrices.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/scan_form.h"
#include "kernels/kernel.h"

namespace autodeploy {

inline constexpr int64_t kMemoryColumns = 64;  // of a tile: whole vectors on every instruction set
inline constexpr int64_t kMemoryChunk =
    64;  // tokens of a chunk, counted from a sequence's first token of the step
inline constexpr int64_t kLeastOfMemoryChunk = 8;  // fewer are taken one by one

// Columns of one head of one sequence: `tokens` steps over a state of [width, columns] floats. Strides are in
// floats.
struct MatrixMemoryTile {
  int64_t tokens = 0, width = 0, columns = 0;
  const float *q = nullptr, *k = nullptr, *v = nullptr;
  const float *keep = nullptr, *add = nullptr, *weight = nullptr;  // [tokens]; add and weight may be null (1)
  float* y = nullptr;
  int64_t q_stride = 0, k_stride = 0, v_stride = 0, y_stride = 0;  // per token
  float scale = 1.0f;
  float* state = nullptr;
  int64_t state_stride = 0;  // per row

  MatrixMemoryTile columns_from(int64_t first, int64_t count) const {
    MatrixMemoryTile t = *this;
    t.columns = count, t.v += first, t.y += first, t.state += first;
    return t;
  }
  MatrixMemoryTile tokens_from(int64_t first, int64_t count) const {
    MatrixMemoryTile t = *this;
    t.tokens = count, t.q += first * q_stride, t.k += first * k_stride, t.v += first * v_stride;
    t.y += first * y_stride, t.keep += first;
    if (add) t.add += first;
    if (weight) t.weight += first;
    return t;
  }
};

struct MatrixMemoryCode {
  void (*tokens)(const MatrixMemoryTile&);
  void (*chunk)(const MatrixMemoryTile&, float* scratch);  // of at most kMemoryChunk tokens
};

// Floats of scratch that a thread needs for chunks.
inline int64_t matrix_memory_scratch(int64_t width, int64_t columns) {
  return kMemoryChunk * (kMemoryChunk + width + columns + 2);
}

// Runs tile_of(seq, head), which covers all columns and tokens of a sequence, for all of them. Short
// sequences are spread over columns too. `scratch` holds matrix_memory_scratch() floats for every thread, or
// is null: no chunks.
template <typename TileOf>
void run_matrix_memory(const KernelCall& call, int64_t heads, int64_t columns, const MatrixMemoryCode& code,
                       float* scratch, const TileOf& tile_of) {
  const int64_t tiles = (columns + kMemoryColumns - 1) / kMemoryColumns, num_seqs = call.batch->num_seqs;
  const auto has_chunks = [&](int64_t seq) {
    return scratch && call.batch->query_start[seq + 1] - call.batch->query_start[seq] >= kLeastOfMemoryChunk;
  };
  bool any_chunks = false, any_short = false;
  for (int64_t i = 0; i < num_seqs; ++i) (has_chunks(i) ? any_chunks : any_short) = true;
  if (any_short) {
    call.pool->parallel_for(num_seqs * heads * tiles, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t seq = i / tiles / heads, first = i % tiles * kMemoryColumns;
        if (has_chunks(seq)) continue;
        const int64_t count = std::min(kMemoryColumns, columns - first);
        code.tokens(tile_of(seq, i / tiles % heads).columns_from(first, count));
      }
    });
  }
  if (any_chunks) {
    call.pool->parallel_for(num_seqs * heads, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) {
        if (!has_chunks(i / heads)) continue;
        const MatrixMemoryTile all = tile_of(i / heads, i % heads);
        for (int64_t t = 0; t < all.tokens; t += kMemoryChunk) {
          const MatrixMemoryTile part = all.tokens_from(t, std::min(kMemoryChunk, all.tokens - t));
          if (part.tokens >= kLeastOfMemoryChunk) {
            code.chunk(part, scratch + thread * matrix_memory_scratch(all.width, columns));
          } else {
            code.tokens(part);
          }
        }
      }
    });
  }
}

}  // namespace autodeploy
