// Weights in the layouts that the CPU kernels read. The loader fills them row by row; kernels and embedding
// read them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace autodeploy {

// One segment of a weight: `rows` consecutive output rows in one format. For experts, rows = num_experts * N.
struct PackedSegment {
  Format format = Format::kF32;
  int64_t rows = 0, cols = 0;
  int64_t group_rows = 0;         // rows that belong together; interleaving never crosses a multiple of it
  int layout = 0;                 // version of the layout (kernels/cpu/packed_layout.h)
  int64_t bytes = 0;              // size of `data`
  const uint8_t* data = nullptr;  // 64-byte aligned; owned by the loader
};

// A weight operand: [rows, cols] = [sum of segment rows, cols] or [num_experts, rows per expert, cols] (rank
// 3, one segment).
struct PackedWeight {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<PackedSegment> segments;
};

// Chooses the layout of a segment for this processor and returns it with `bytes` set, `data` unset.
// group_rows: rows that belong together (rows of one expert, or all rows): interleaving never crosses it.
// Stored bytes never grow by more than the padding of the last interleaved group.
PackedSegment plan_packed_segment(Format format, int64_t rows, int64_t cols, int64_t group_rows);
// Packs rows [row_begin, row_begin + num_rows) given in stored (row-major checkpoint) format at src into dst
// (segment.bytes long). Rows may arrive in any order and from several threads, as long as calls cover
// disjoint multiples of packed_row_granule().
void pack_rows(const PackedSegment& segment, int64_t row_begin, int64_t num_rows, const void* src,
               uint8_t* dst);
int64_t packed_row_granule();
// Dequantizes one row to float32 [cols] (embedding lookup, tests).
void unpack_row(const PackedSegment& segment, int64_t row, float* dst);

}  // namespace autodeploy
