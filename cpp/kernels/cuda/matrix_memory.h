// A recurrence over an outer-product memory, shared by ssd, linear_attention and mlstm: for each head
//   s = keep s + add v (outer) k;  y = weight (q s) + skip v
// token by token, with the rows of s, one for each channel of v, in registers. State [H, channels of v,
// channels of k]. A block takes some rows of a head of a sequence; q, k and the gates of some tokens at a
// time are put into shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/float_view.h"
#include "kernels/cuda/slots.h"
#include "kernels/cuda/spec.h"
#include "kernels/cuda/state_row.h"

namespace autodeploy::cuda {

constexpr int kMemoryThreads = 128;

struct MemoryArgs {
  SlotStep step;
  FloatView q, k, v, y;  // [T, heads, channels]
  SlotComponent state;
  int width = 0, rows = 0;  // channels of k, of v
  int key_group = 1;        // heads that share a head of q and k
};

// What a head does at a token.
struct MemoryGates {
  float keep, add, weight;
};

// A block's work at a time, in shared memory: k, q, v and gates of some tokens.
template <class Row>
struct MemoryTile {
  static constexpr int kTokens = Row::kWidth <= 256 ? 8 : Row::kWidth <= 1024 ? 4 : 2;
  static constexpr int kRows = kMemoryThreads / Row::kLanes;
  static constexpr int kFloats = kTokens * (2 * Row::kWidth + kRows + 3);
};

// gates(token, head) -> MemoryGates; gates.skip(head, row) -> float, constant over tokens.
template <class Row, class Gates>
__global__ void __launch_bounds__(kMemoryThreads) matrix_memory_kernel(MemoryArgs a, Gates gates) {
  AD_DYNAMIC_SHARED(float, shared);
  constexpr int kTokens = MemoryTile<Row>::kTokens, kRows = MemoryTile<Row>::kRows;
  wait_for_previous();
  let_next_start();
  const int thread = static_cast<int>(threadIdx.x);
  const int seq = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.z);
  const int first_row = static_cast<int>(blockIdx.y) * kRows, own = thread / Row::kLanes,
            row = first_row + own;
  const int key_head = head / a.key_group;
  float *keys = shared, *queries = keys + kTokens * Row::kWidth, *values = queries + kTokens * Row::kWidth,
        *marks = values + kTokens * kRows;
  const bool aligned = a.width % 4 == 0, exists = row < a.rows;
  float* state = a.state.of<float>(a.step.slot[seq]) + (int64_t{head} * a.rows + row) * a.width;
  Row s;
  s.clear();
  if (exists && a.step.has_state[seq]) s.load(state, a.width, aligned);
  const float skip = exists ? gates.skip(head, row) : 0.0f;
  const int64_t stop = a.step.query_start[seq + 1];
  for (int64_t first = a.step.query_start[seq]; first < stop; first += kTokens) {
    const int tokens = static_cast<int>(min(int64_t{kTokens}, stop - first));
    for (int i = thread; i < tokens * Row::kWidth; i += kMemoryThreads) {
      const int t = i / Row::kWidth, c = i % Row::kWidth;
      keys[i] = c < a.width ? a.k.at(first + t, key_head, c) : 0.0f;
      queries[i] = c < a.width ? a.q.at(first + t, key_head, c) : 0.0f;
    }
    for (int i = thread; i < tokens * kRows; i += kMemoryThreads) {
      const int t = i / kRows, r = first_row + i % kRows;
      values[i] = r < a.rows ? a.v.at(first + t, head, r) : 0.0f;
    }
    if (thread < tokens) {
      const MemoryGates g = gates(first + thread, head);
      marks[3 * thread] = g.keep, marks[3 * thread + 1] = g.add, marks[3 * thread + 2] = g.weight;
    }
    __syncthreads();
    for (int t = 0; t < tokens; ++t) {
      const float keep = marks[3 * t], value = values[t * kRows + own], in = marks[3 * t + 1] * value;
      float sums[4] = {};
#pragma unroll
      for (int p = 0; p < Row::kPacks; ++p) {
        const auto k = Row::part(keys + t * Row::kWidth, p), q = Row::part(queries + t * Row::kWidth, p);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          s.x[p][i] = keep * s.x[p][i] + in * k.x[i];
          sums[i] += s.x[p][i] * q.x[i];
        }
      }
      const float y = Row::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
      if (exists && Row::lane() == 0) a.y.set(first + t, head, row, marks[3 * t + 2] * y + skip * value);
    }
    __syncthreads();
  }
  if (exists) s.store(state, a.width, aligned);
}

template <class Gates>
void run_matrix_memory(const KernelCall& call, MemoryArgs a, int64_t heads, const Gates& gates) {
  dispatch_state_row(a.width, [&](auto row) {
    using Row = decltype(row);
    const dim3 grid(static_cast<unsigned>(call.device->num_seqs), blocks_for(a.rows, MemoryTile<Row>::kRows),
                    static_cast<unsigned>(heads));
    const LaunchConfig config{grid, dim3(kMemoryThreads), stream_of(call),
                              MemoryTile<Row>::kFloats * sizeof(float), true};
    launch(config, matrix_memory_kernel<Row, Gates>, a, gates);
  });
}

}  // namespace autodeploy::cuda
